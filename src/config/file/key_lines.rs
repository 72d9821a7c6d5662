//! The line of each key of the file, for problems that are found after parsing.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::key_path::{join, line_offset};

/// The line of each key, tables and elements of arrays included. Keys are written as in
/// problems: `listener[0].tls.certificates[1].key`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyLines(BTreeMap<String, usize>);

impl KeyLines {
    pub(super) fn of(text: &str, top: &DeTable<'_>) -> Self {
        let mut lines = Self::default();
        let line = |offset: usize| {
            let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
            memchr::memchr_iter(b'\n', before).count() + 1
        };
        lines.add_table("", top, &line);
        lines
    }

    fn add_table(&mut self, key: &str, table: &DeTable<'_>, line: &impl Fn(usize) -> usize) {
        for (name, value) in table {
            let key = join(key, name.get_ref());
            self.add(key, line_offset(name, value), value.get_ref(), line);
        }
    }

    fn add(
        &mut self,
        key: String,
        offset: usize,
        value: &DeValue<'_>,
        line: &impl Fn(usize) -> usize,
    ) {
        match value {
            DeValue::Table(table) => self.add_table(&key, table, line),
            DeValue::Array(list) => {
                for (position, element) in list.iter().enumerate() {
                    let key = format!("{key}[{position}]");
                    self.add(key, element.span().start, element.get_ref(), line);
                }
            }
            _ => {}
        }
        self.0.insert(key, line(offset));
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// The line of a key, or of the innermost table or list around it that is present.
    pub fn line(&self, key: &str) -> Option<usize> {
        let mut key = key;
        loop {
            if let Some(line) = self.0.get(key) {
                return Some(*line);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }
}
