//! `[emulator]`: the emulated service in this process.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::config::Emulator;
use crate::config::file::config_table::ConfigTable;
use crate::config::file::parse_report::ParseReport;
use crate::config::file::value_readers::{address, path, span};

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Without a section everything has its default.
pub(in crate::config::file) fn emulator(
    report: &ParseReport<'_>,
    table: Option<&ConfigTable<'_>>,
) -> Emulator {
    let mut emulator = Emulator {
        address: loopback(9443),
        control: loopback(9444),
        folder: report.folder.join("certs"),
        token_lifetime: Duration::from_secs(7 * 86_400),
    };
    if let Some(table) = table {
        emulator.address = table.or("address", address, emulator.address);
        emulator.control = table.or("control", address, emulator.control);
        emulator.folder = table.or("folder", path, emulator.folder);
        emulator.token_lifetime = table.or("token_lifetime", span, emulator.token_lifetime);
        if !cfg!(feature = "emulator") {
            let reason = "is not part of this build";
            let suggestion = "remove the section, or build with --features emulator";
            table.complain("", reason, suggestion);
        }
        if !emulator.control.ip().is_loopback() {
            let reason = "is not loopback: any host that reaches it controls the emulator";
            table.warn("control", reason, "");
        }
    }
    *report.made_at_first_run.borrow_mut() = Some(emulator.folder.clone());
    emulator
}
