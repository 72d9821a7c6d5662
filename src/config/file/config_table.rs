//! One table or value of the file, and which of its keys were read.

use std::cell::{Cell, RefCell};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::key_path::{join, line_offset};
use super::parse_report::ParseReport;

/// One table of the file. On drop, keys that were not read are reported.
#[derive(Debug)]
pub(super) struct ConfigTable<'a> {
    pub(super) report: &'a ParseReport<'a>,
    table: &'a DeTable<'a>,
    pub(super) key: String,
    pub(super) line: Option<usize>,
    read_keys: RefCell<Vec<&'static str>>,
    /// Its keys are names that the operator chose.
    open: Cell<bool>,
}

impl<'a> ConfigTable<'a> {
    /// The top of the file.
    pub(super) fn root(report: &'a ParseReport<'a>) -> Self {
        Self::new(report, report.top(), String::new(), None)
    }

    fn new(
        report: &'a ParseReport<'a>,
        table: &'a DeTable<'a>,
        key: String,
        line: Option<usize>,
    ) -> Self {
        Self {
            report,
            table,
            key,
            line,
            read_keys: RefCell::default(),
            open: Cell::new(false),
        }
    }

    /// The value of `key`, if the file has one.
    pub(super) fn value(&self, key: &'static str) -> Option<ConfigValue<'a>> {
        self.read_keys.borrow_mut().push(key);
        let full = join(&self.key, key);
        self.report.note_known(&full);
        let (name, value) = self
            .table
            .iter()
            .find(|(name, _)| name.get_ref().as_ref() == key)?;
        Some(ConfigValue {
            report: self.report,
            inner: value.get_ref(),
            key: full,
            line: self.report.line(line_offset(name, value)),
        })
    }

    pub(super) fn read<T>(
        &self,
        key: &'static str,
        reader: impl Fn(&ConfigValue<'a>) -> Option<T>,
    ) -> Option<T> {
        reader(&self.value(key)?)
    }

    /// The value, or `default` when there is none or it is wrong (which is then reported).
    pub(super) fn or<T>(
        &self,
        key: &'static str,
        reader: impl Fn(&ConfigValue<'a>) -> Option<T>,
        default: T,
    ) -> T {
        self.read(key, reader).unwrap_or(default)
    }

    /// The value; a problem when there is none.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        reader: impl Fn(&ConfigValue<'a>) -> Option<T>,
        example: &str,
    ) -> Option<T> {
        let Some(value) = self.value(key) else {
            self.missing(key, example);
            return None;
        };
        reader(&value)
    }

    pub(super) fn missing(&self, key: &str, example: &str) {
        let suggestion = match example.starts_with('[') && self.line.is_none() {
            true => format!("add {example}"),
            false => format!("add {key} = {example}"),
        };
        // With a syntax error a key may only look missing.
        if !self.report.broken {
            self.complain(key, "is missing", &suggestion);
        }
    }

    /// Keys of this table that are not read are not reported as unknown.
    pub(super) fn leave_unread(&self) {
        self.open.set(true);
    }

    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    pub(super) fn section(&self, key: &'static str) -> Option<Self> {
        self.value(key)?.table()
    }

    /// Each table of `[[key]]`.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Self> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        if matches!(value.inner, DeValue::Table(_)) {
            value.complain("must be a list of tables", &format!("write [[{key}]]"));
            return Vec::new();
        }
        value
            .items()
            .unwrap_or_default()
            .iter()
            .filter_map(ConfigValue::table)
            .collect()
    }

    /// Each table under a key that the operator chose, with that key.
    pub(super) fn named(&self) -> Vec<(String, Self)> {
        self.open.set(true);
        let mut tables = Vec::new();
        for (name, value) in self.table {
            let text = name.get_ref().to_string();
            let value = ConfigValue {
                report: self.report,
                inner: value.get_ref(),
                key: join(&self.key, &text),
                line: self.report.line(line_offset(name, value)),
            };
            if let Some(table) = value.table() {
                tables.push((text, table));
            }
        }
        tables
    }

    /// The values under keys that were not read: names that the operator chose.
    pub(super) fn others(&self) -> Vec<(String, ConfigValue<'a>)> {
        self.open.set(true);
        let read_keys = self.read_keys.borrow();
        let others = self.table.iter().map(|(name, value)| {
            let text = name.get_ref().to_string();
            let value = ConfigValue {
                report: self.report,
                inner: value.get_ref(),
                key: join(&self.key, &text),
                line: self.report.line(line_offset(name, value)),
            };
            (text, value)
        });
        others
            .filter(|(name, _)| !read_keys.contains(&name.as_str()))
            .collect()
    }

    /// Reports a problem with one key of this table, at the key's line if it is present.
    pub(super) fn complain(&self, key: &str, reason: &str, suggestion: &str) {
        let (key, line) = self.locate(key);
        self.report.note_problem(line, key, reason, suggestion);
    }

    /// Reports a warning: the file can be used.
    pub(super) fn warn(&self, key: &str, reason: &str, suggestion: &str) {
        let (key, line) = self.locate(key);
        self.report.note_warning(line, key, reason, suggestion);
    }

    /// Whether a problem of this key's value has been reported.
    pub(super) fn has_problem(&self, key: &str) -> bool {
        self.report.has_problem(&self.locate(key).0)
    }

    fn locate(&self, key: &str) -> (String, Option<usize>) {
        let found = self
            .table
            .iter()
            .find(|(name, _)| name.get_ref().as_ref() == key);
        let line = found.map(|(name, value)| self.report.line(line_offset(name, value)));
        let full = if key.is_empty() {
            self.key.clone()
        } else {
            join(&self.key, key)
        };
        (full, line.or(self.line))
    }
}

impl Drop for ConfigTable<'_> {
    fn drop(&mut self) {
        if self.open.get() {
            return;
        }
        let read_keys = self.read_keys.borrow();
        for (name, _) in self.table {
            if !read_keys.contains(&name.get_ref().as_ref()) {
                let line = self.report.line(name.span().start);
                self.report.note_unknown(line, &self.key, name.get_ref());
            }
        }
    }
}

/// One value of the file, with its key and line.
#[derive(Debug)]
pub(super) struct ConfigValue<'a> {
    pub(super) report: &'a ParseReport<'a>,
    pub(super) inner: &'a DeValue<'a>,
    pub(super) key: String,
    pub(super) line: usize,
}

impl<'a> ConfigValue<'a> {
    pub(super) fn complain(&self, reason: &str, suggestion: &str) {
        self.report
            .note_problem(Some(self.line), self.key.clone(), reason, suggestion);
    }

    pub(super) fn warn(&self, reason: &str, suggestion: &str) {
        self.report
            .note_warning(Some(self.line), self.key.clone(), reason, suggestion);
    }

    pub(super) fn table(&self) -> Option<ConfigTable<'a>> {
        let DeValue::Table(table) = self.inner else {
            self.complain("must be a table", "");
            return None;
        };
        let line = Some(self.line);
        Some(ConfigTable::new(self.report, table, self.key.clone(), line))
    }

    /// The elements of a list, each with its key and line.
    pub(super) fn items(&self) -> Option<Vec<Self>> {
        let DeValue::Array(list) = self.inner else {
            self.complain("must be a list", "write it in [ ]");
            return None;
        };
        let element = |(position, item): (usize, &'a Spanned<DeValue<'a>>)| Self {
            report: self.report,
            inner: item.get_ref(),
            key: format!("{}[{position}]", self.key),
            line: self.report.line(item.span().start),
        };
        Some(list.iter().enumerate().map(element).collect())
    }
}
