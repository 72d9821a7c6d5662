//! `[log]`: what is logged, and how.

use std::str::FromStr as _;

use tracing_subscriber::filter::Targets;

use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::value_readers::{flag, text, word};
use crate::config::{Log, LogFormat};

pub(in crate::config::file) fn log(root: &ConfigTable<'_>) -> Log {
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
    // The parser would take these for a target that does not exist, or for `off`.
    let is_odd = |piece: &str| {
        let odd = |letter: char| letter.is_whitespace() || "[]{}".contains(letter);
        piece.is_empty() || piece.ends_with('=') || piece.contains(odd)
    };
    if filter.split(',').any(is_odd) || Targets::from_str(&filter).is_err() {
        value.complain(
            "is not a log filter",
            "such as \"info\" or \"info,tollgate=debug\"",
        );
        return None;
    }
    Some(filter)
}
