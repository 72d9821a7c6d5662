//! The short sections: workers, operator, http, drain, log, emulator.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr as _;
use std::time::Duration;

use tracing_subscriber::filter::Targets;

use super::places::secret_that;
use super::report::ParseReport;
use super::section::{ConfigTable, ConfigValue};
use super::value::{address, flag, number, path, span, span_or_none};
use super::value::{text, word};
use crate::config::{Drain, Emulator, Log, LogFormat, Operator};
use crate::secret::{LEAST_OPERATOR_TOKEN, Secret};

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A number, or `"auto"` for one per core.
pub(super) fn workers(value: &ConfigValue<'_>) -> Option<usize> {
    match value.inner {
        toml::de::DeValue::String(text) if text == "auto" => return Some(cores()),
        toml::de::DeValue::String(_) => {
            value.complain(
                "must be \"auto\" or a whole number",
                "one per core with \"auto\"",
            );
            return None;
        }
        _ => {}
    }
    number(1..=1024)(value)
}

pub(super) fn operator(root: &ConfigTable<'_>) -> Operator {
    let table = root.section("operator");
    let address = table
        .as_ref()
        .and_then(|table| table.read("address", address));
    let address = address.unwrap_or_else(|| loopback(9090));
    let rule = "must have 16 characters at least: whoever guesses it makes API keys";
    let is_long = |secret: &Secret| secret.expose().chars().count() >= LEAST_OPERATOR_TOKEN;
    let token = table.as_ref();
    let token = token.and_then(|table| table.read("token", secret_that(is_long, rule)));
    let is_meant = |table: &ConfigTable<'_>| table.or("allow_plaintext", flag, false);
    if let Some(table) = table.filter(|table| !is_meant(table) && !address.ip().is_loopback()) {
        let reason = "is not loopback: whoever can reach it can read health and metrics";
        table.warn(
            "address",
            reason,
            "say allow_plaintext = true if that is meant",
        );
    }
    Operator { address, token }
}

pub(super) fn drain(root: &ConfigTable<'_>) -> Drain {
    let mut drain = Drain {
        wait: Duration::from_secs(5),
        deadline: Duration::from_secs(20),
    };
    if let Some(table) = root.section("drain") {
        drain.wait = table.or("wait", span_or_none, drain.wait);
        drain.deadline = table.or("deadline", span_or_none, drain.deadline);
    }
    drain
}

pub(super) fn log(root: &ConfigTable<'_>) -> Log {
    const FORMATS: &[(&str, LogFormat)] = &[("json", LogFormat::Json), ("text", LogFormat::Text)];
    let mut log = Log {
        format: LogFormat::Json,
        access: true,
        filter: "info".to_owned(),
    };
    if let Some(table) = root.section("log") {
        log.format = table.or("format", word(FORMATS), log.format);
        log.access = table.or("access", flag, log.access);
        log.filter = table.or("filter", filter, log.filter);
    }
    log
}

fn filter(value: &ConfigValue<'_>) -> Option<String> {
    let filter = text(value)?;
    // What the parser would take for a target that nothing bears, or for silence.
    let is_odd = |piece: &str| {
        let odd = |letter: char| letter.is_whitespace() || "[]{}".contains(letter);
        piece.is_empty() || piece.ends_with('=') || piece.contains(odd)
    };
    if filter.split(',').any(is_odd) || Targets::from_str(&filter).is_err() {
        value.complain(
            "is no log filter",
            "such as \"info\" or \"info,tollgate=debug\"",
        );
        return None;
    }
    Some(filter)
}

/// Without a section everything has its default.
pub(super) fn emulator(report: &ParseReport<'_>, table: Option<&ConfigTable<'_>>) -> Emulator {
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
            let reason = "is not loopback: whoever can reach it commands the emulator";
            table.warn("control", reason, "");
        }
    }
    *report.made_at_first_run.borrow_mut() = Some(emulator.folder.clone());
    emulator
}
