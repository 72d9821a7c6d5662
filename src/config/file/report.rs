//! Reading with a memory: which keys were asked for, which are there, what is wrong.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::lines::KeyLines;
use super::section::ConfigTable;
use crate::config::problem::{Problem, nearest};

/// What one reading of a file gathers.
#[derive(Debug)]
pub(super) struct ParseReport<'a> {
    text: &'a str,
    top: &'a DeTable<'a>,
    pub(super) lines: KeyLines,
    /// Relative paths start here.
    pub(super) folder: &'a Path,
    /// The file has syntax errors: what looks missing may only be unreadable.
    pub(super) broken: bool,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    /// Every key that was asked for, without array positions.
    known: RefCell<BTreeSet<String>>,
    strangers: RefCell<Vec<UnknownKey>>,
    /// Files under it are made at the first run and may be missing before.
    pub(super) made_at_first_run: RefCell<Option<std::path::PathBuf>>,
}

/// A key that nobody asked for. Judged at the end, when all known keys are known.
#[derive(Debug)]
struct UnknownKey {
    line: usize,
    section: String,
    key: String,
}

impl<'a> ParseReport<'a> {
    pub(super) fn new(
        text: &'a str,
        top: &'a DeTable<'a>,
        folder: &'a Path,
        errors: &[toml::de::Error],
    ) -> Self {
        let report = Self {
            text,
            top,
            lines: KeyLines::of(text, top),
            folder,
            broken: !errors.is_empty(),
            problems: RefCell::default(),
            warnings: RefCell::default(),
            known: RefCell::default(),
            strangers: RefCell::default(),
            made_at_first_run: RefCell::default(),
        };
        for error in errors {
            report.syntax(error);
        }
        report
    }

    /// The parser's message only: its `Display` would show the line with all that is in it.
    /// The usual cause of a bad number or date is a text without quotes.
    fn syntax(&self, error: &toml::de::Error) {
        let (line, column) = self.position(error.span().map_or(0, |span| span.start));
        let message = error.message();
        let bare = message.starts_with("invalid ") || message.contains("quoted");
        let suggestion = if bare { "texts stand in quotes" } else { "" };
        self.wrong(Some(line), format!("column {column}"), message, suggestion);
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.matches('\n').count() + 1;
        (line, before[line_start..].chars().count() + 1)
    }

    pub(super) fn line(&self, offset: usize) -> usize {
        self.position(offset).0
    }

    pub(super) fn wrong(&self, line: Option<usize>, key: String, reason: &str, suggestion: &str) {
        let problem = problem(line, key, reason, suggestion);
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn odd(&self, line: Option<usize>, key: String, reason: &str, suggestion: &str) {
        let problem = problem(line, key, reason, suggestion);
        self.warnings.borrow_mut().push(problem);
    }

    pub(super) fn asked_for(&self, key: &str) {
        self.known.borrow_mut().insert(without_positions(key));
    }

    pub(super) fn stranger(&self, line: usize, section: &str, key: &str) {
        self.strangers.borrow_mut().push(UnknownKey {
            line,
            section: section.to_owned(),
            key: key.to_owned(),
        });
    }

    /// Notes a problem under a whole key such as `listener[0].address`.
    pub(super) fn complain(&self, key: &str, reason: &str, suggestion: &str) {
        let line = self.lines.line(key);
        self.wrong(line, key.to_owned(), reason, suggestion);
    }

    /// Notes something odd under a whole key.
    pub(super) fn warn(&self, key: &str, reason: &str, suggestion: &str) {
        let line = self.lines.line(key);
        self.odd(line, key.to_owned(), reason, suggestion);
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.lines.has(key)
    }

    /// The top of the file.
    pub(super) fn root(&'a self) -> ConfigTable<'a> {
        ConfigTable::new(self, self.top, String::new(), None)
    }

    /// Problems, warnings and known keys, once everything has been asked for.
    pub(super) fn close(self) -> (Vec<Problem>, Vec<Problem>, BTreeSet<String>) {
        let known = self.known.into_inner();
        let mut problems = self.problems.into_inner();
        for stranger in self.strangers.into_inner() {
            problems.push(judge(&stranger, &known));
        }
        if self.broken {
            // One slip often makes several parser messages; the first says the most.
            problems.sort_by_key(|problem| (problem.line, !problem.key.starts_with("column ")));
            problems.dedup_by_key(|problem| problem.line);
        }
        let mut warnings = self.warnings.into_inner();
        for list in [&mut problems, &mut warnings] {
            list.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        }
        (problems, warnings, known)
    }
}

/// An empty suggestion is none.
fn problem(line: Option<usize>, key: String, reason: &str, suggestion: &str) -> Problem {
    Problem {
        line,
        key,
        reason: reason.to_owned(),
        suggestion: (!suggestion.is_empty()).then(|| suggestion.to_owned()),
    }
}

fn judge(stranger: &UnknownKey, known: &BTreeSet<String>) -> Problem {
    let section = without_positions(&stranger.section);
    let siblings = known.iter().filter_map(|key| match key.rsplit_once('.') {
        Some((parent, name)) if parent == section => Some(name),
        None if section.is_empty() => Some(key.as_str()),
        _ => None,
    });
    let elsewhere = || {
        known.iter().find_map(|key| match key.rsplit_once('.') {
            Some((parent, name)) if name == stranger.key => Some(parent),
            _ => None,
        })
    };
    let suggestion = match nearest(&stranger.key, siblings) {
        Some(meant) => Some(format!("did you mean {meant}?")),
        None => elsewhere().map(|parent| format!("it belongs to {parent}")),
    };
    Problem {
        line: Some(stranger.line),
        key: join(&stranger.section, &stranger.key),
        reason: "is not a known key".to_owned(),
        suggestion,
    }
}

pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("{section}.{key}")
    }
}

pub(super) fn without_positions(key: &str) -> String {
    let mut text = String::with_capacity(key.len());
    let mut inside = false;
    for letter in key.chars() {
        match letter {
            '[' => inside = true,
            ']' => inside = false,
            other if !inside => text.push(other),
            _ => {}
        }
    }
    text
}

/// A table's header says more than the first place its name occurs in.
pub(super) fn line_offset(
    name: &Spanned<std::borrow::Cow<'_, str>>,
    value: &Spanned<DeValue<'_>>,
) -> usize {
    match value.get_ref() {
        DeValue::Table(_) => value.span().start.max(name.span().start),
        _ => name.span().start,
    }
}
