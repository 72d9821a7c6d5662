//! `workers`: how many request threads.

use crate::config::file::config_table::ConfigValue;
use crate::config::file::value_readers::number;

pub(in crate::config::file) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A number, or `"auto"` for one per core.
pub(in crate::config::file) fn workers(value: &ConfigValue<'_>) -> Option<usize> {
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
