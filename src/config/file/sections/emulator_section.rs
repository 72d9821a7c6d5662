//! `[emulator]`: the emulated services in this process.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::config::Emulator;
use crate::config::file::config_table::ConfigTable;
use crate::config::file::parse_report::ParseReport;
use crate::config::file::value_readers::{address, number, path, span};

const MAX_COUNT: u16 = 100;

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Without a section everything has its default.
pub(in crate::config::file) fn emulator(
    report: &ParseReport<'_>,
    table: Option<&ConfigTable<'_>>,
) -> Emulator {
    let mut emulator = Emulator {
        count: 1,
        address: loopback(9443),
        control: loopback(9444),
        folder: report.folder.join("certs"),
        token_lifetime: Duration::from_secs(7 * 86_400),
    };
    if let Some(table) = table {
        emulator.count = table.or("count", number(1..=MAX_COUNT), emulator.count);
        emulator.address = table.or("address", address, emulator.address);
        emulator.control = table.or("control", address, emulator.control);
        emulator.folder = table.or("folder", path, emulator.folder);
        emulator.token_lifetime = table.or("token_lifetime", span, emulator.token_lifetime);
        if !cfg!(feature = "emulator") {
            let reason = "is not part of this build";
            let suggestion = "remove the section, or build with --features emulator";
            table.complain("", reason, suggestion);
        }
        check_ports(table, &emulator);
        if !emulator.control.ip().is_loopback() {
            let reason = "is not loopback: any host that reaches it controls the emulator";
            table.warn("control", reason, "");
        }
    }
    *report.made_at_first_run.borrow_mut() = Some(emulator.folder.clone());
    emulator
}

/// Each has two ports of its own, all of them below 65,536.
fn check_ports(table: &ConfigTable<'_>, emulator: &Emulator) {
    let last = 2 * (emulator.count - 1);
    let addresses = [emulator.address.port(), emulator.control.port()];
    if addresses
        .iter()
        .any(|port| port.checked_add(last).is_none())
    {
        let reason =
            "takes ports above 65535: each emulated service has two above those of the one before";
        table.complain("count", reason, "lower address and control");
        return;
    }
    let [address, control] = addresses;
    let apart = address.abs_diff(control);
    if apart > 0 && apart <= last && apart % 2 == 0 {
        let reason = "is taken by the address of another emulated service: each has two ports above those of \
                      the one before";
        table.complain("control", reason, "a port that is one above address's");
    }
}
