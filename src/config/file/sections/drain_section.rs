//! `[drain]`: the end of the program.

use std::time::Duration;

use crate::config::Drain;
use crate::config::file::config_table::ConfigTable;
use crate::config::file::value_readers::span_or_none;

pub(in crate::config::file) fn drain(root: &ConfigTable<'_>) -> Drain {
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
