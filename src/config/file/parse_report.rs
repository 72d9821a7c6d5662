//! What parsing a file finds: problems, warnings, known and unknown keys.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use toml::de::DeTable;

use super::key_lines::KeyLines;
use super::key_path::{join, without_positions};
use crate::config::problem::{Problem, nearest};

/// The report of parsing one file.
#[derive(Debug)]
pub(super) struct ParseReport<'a> {
    text: &'a str,
    top: &'a DeTable<'a>,
    pub(super) lines: KeyLines,
    /// Relative paths start here.
    pub(super) folder: &'a Path,
    /// The file has syntax errors: a key that looks missing may only be unreadable.
    pub(super) broken: bool,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    /// Every key that was read, without array positions.
    known: RefCell<BTreeSet<String>>,
    unknown_keys: RefCell<Vec<UnknownKey>>,
    /// Files under it are made at the first run and may be missing before.
    pub(super) made_at_first_run: RefCell<Option<std::path::PathBuf>>,
}

/// A key that was not read. Reported at the end, when all known keys are known.
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
            unknown_keys: RefCell::default(),
            made_at_first_run: RefCell::default(),
        };
        for error in errors {
            report.syntax(error);
        }
        report
    }

    /// The parser's message only: its `Display` would show the whole line.
    /// The usual cause of a bad number or date is a text without quotes.
    fn syntax(&self, error: &toml::de::Error) {
        let (line, column) = self.position(error.span().map_or(0, |span| span.start));
        let message = error.message();
        let bare = message.starts_with("invalid ") || message.contains("quoted");
        let suggestion = if bare { "texts stand in quotes" } else { "" };
        self.note_problem(Some(line), format!("column {column}"), message, suggestion);
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

    pub(super) fn note_problem(
        &self,
        line: Option<usize>,
        key: String,
        reason: &str,
        suggestion: &str,
    ) {
        let problem = problem(line, key, reason, suggestion);
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn note_warning(
        &self,
        line: Option<usize>,
        key: String,
        reason: &str,
        suggestion: &str,
    ) {
        let problem = problem(line, key, reason, suggestion);
        self.warnings.borrow_mut().push(problem);
    }

    pub(super) fn note_known(&self, key: &str) {
        self.known.borrow_mut().insert(without_positions(key));
    }

    pub(super) fn note_unknown(&self, line: usize, section: &str, key: &str) {
        self.unknown_keys.borrow_mut().push(UnknownKey {
            line,
            section: section.to_owned(),
            key: key.to_owned(),
        });
    }

    /// Reports a problem under a whole key such as `listener[0].address`.
    pub(super) fn complain(&self, key: &str, reason: &str, suggestion: &str) {
        let line = self.lines.line(key);
        self.note_problem(line, key.to_owned(), reason, suggestion);
    }

    /// Reports a warning under a whole key.
    pub(super) fn warn(&self, key: &str, reason: &str, suggestion: &str) {
        let line = self.lines.line(key);
        self.note_warning(line, key.to_owned(), reason, suggestion);
    }

    /// Whether a problem of this value, or of one of its elements, has been reported.
    pub(super) fn has_problem(&self, key: &str) -> bool {
        let is_of_it = |problem: &Problem| {
            let rest = problem.key.strip_prefix(key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
        };
        self.problems.borrow().iter().any(is_of_it)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.lines.has(key)
    }

    pub(super) fn top(&self) -> &'a DeTable<'a> {
        self.top
    }

    /// Problems, warnings and known keys, when every key has been read.
    pub(super) fn close(self) -> (Vec<Problem>, Vec<Problem>, BTreeSet<String>) {
        let known = self.known.into_inner();
        let mut problems = self.problems.into_inner();
        for unknown in self.unknown_keys.into_inner() {
            problems.push(unknown_key(&unknown, &known));
        }
        if self.broken {
            // One mistake often causes several parser messages; the first is the most specific.
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

fn unknown_key(unknown: &UnknownKey, known: &BTreeSet<String>) -> Problem {
    let section = without_positions(&unknown.section);
    let siblings = known.iter().filter_map(|key| match key.rsplit_once('.') {
        Some((parent, name)) if parent == section => Some(name),
        None if section.is_empty() => Some(key.as_str()),
        _ => None,
    });
    let elsewhere = || {
        known.iter().find_map(|key| match key.rsplit_once('.') {
            Some((parent, name)) if name == unknown.key => Some(parent),
            _ => None,
        })
    };
    let suggestion = match nearest(&unknown.key, siblings) {
        Some(meant) => Some(format!("did you mean {meant}?")),
        None => elsewhere().map(|parent| format!("it belongs to {parent}")),
    };
    Problem {
        line: Some(unknown.line),
        key: join(&unknown.section, &unknown.key),
        reason: "is not a known key".to_owned(),
        suggestion,
    }
}
