//! Problems of a config file: all at once, without values that could be secrets.

use std::collections::BTreeSet;
use std::fmt;

use super::{Config, KeyLines};

/// One problem: where it is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1. None: the file lacks the key.
    pub line: Option<usize>,
    /// Such as `upstream.main.renew_at` or `listener[0].tls`.
    pub key: String,
    pub reason: String,
    pub suggestion: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, self.reason)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, " ({suggestion})"),
            None => Ok(()),
        }
    }
}

/// A valid configuration, with its warnings.
#[derive(Clone, Debug)]
pub struct LoadedConfig {
    pub config: Config,
    pub warnings: Vec<Problem>,
    /// The line of each key.
    pub lines: KeyLines,
}

/// A config file that was refused. `Display` prints the whole list.
#[derive(Clone, Debug, PartialEq)]
pub struct Problems {
    /// The file's name, for the heading.
    pub file: String,
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// What could be parsed, with defaults for wrong values: only to look for further problems.
    pub rest: Option<Box<(Config, KeyLines)>>,
}

impl std::error::Error for Problems {}

impl Problems {
    /// Of a configuration that was read from `file` and cannot be used.
    pub fn found(file: String, problems: Vec<Problem>) -> Self {
        Self {
            file,
            problems,
            warnings: Vec::new(),
            rest: None,
        }
    }

    /// With those of `more` that are on lines of their own: a second problem with one value repeats
    /// the first.
    #[must_use]
    pub fn and(mut self, more: Self) -> Self {
        let known: BTreeSet<_> = self.problems.iter().map(|problem| problem.line).collect();
        let new = more.problems.into_iter();
        self.problems
            .extend(new.filter(|problem| !known.contains(&problem.line)));
        self.problems
            .sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        self
    }

    /// Adds the line of each key, and sorts by it.
    #[must_use]
    pub fn located(mut self, lines: &KeyLines) -> Self {
        for problem in &mut self.problems {
            problem.line = problem.line.or_else(|| lines.line(&problem.key));
        }
        let by_line = |problem: &Problem| problem.line.unwrap_or(usize::MAX);
        self.problems.sort_by_key(by_line);
        self
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "{}: {count} problem{plural}", self.file)?;
        write!(f, "{}", ProblemTable(&self.problems))
    }
}

/// Problems as rows: line, key, reason and suggestion, in columns.
#[derive(Debug)]
pub struct ProblemTable<'a>(pub &'a [Problem]);

impl fmt::Display for ProblemTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line_of = |row: &Problem| row.line.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let lines = self.0.iter().map(|row| line_of(row).len()).max();
        let keys = self.0.iter().map(|row| row.key.len()).max();
        let (lines, keys) = (lines.unwrap_or(0), keys.unwrap_or(0));
        for row in self.0 {
            let line = line_of(row);
            write!(f, "\n  {line:>lines$}  {:keys$}  {}", row.key, row.reason)?;
            if let Some(suggestion) = &row.suggestion {
                write!(f, " ({suggestion})")?;
            }
        }
        Ok(())
    }
}

/// The word of `known` that `word` was most likely meant to be.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // `user` for `username` is a larger distance than a typing error, and a likely mistake.
    let distance = |candidate: &str| match word.len() >= 3 && candidate.starts_with(word) {
        true => 1,
        false => strsim::damerau_levenshtein(word, candidate),
    };
    known
        .into_iter()
        .map(|candidate| (distance(candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_aligned_in_columns() {
        let row = |line, key: &str, suggestion: Option<&str>| Problem {
            line,
            key: key.to_owned(),
            reason: "is wrong".to_owned(),
            suggestion: suggestion.map(str::to_owned),
        };
        let problems = Problems {
            file: "config.toml".to_owned(),
            problems: vec![
                row(Some(7), "drain", None),
                row(Some(112), "http.min_body_rate", Some("mend it")),
            ],
            warnings: Vec::new(),
            rest: None,
        };
        assert_eq!(
            problems.to_string(),
            "config.toml: 2 problems\n    \
             7  drain               is wrong\n  \
             112  http.min_body_rate  is wrong (mend it)"
        );
    }

    #[test]
    fn a_misspelt_key_gets_a_suggestion_and_an_unknown_one_does_not() {
        let known = ["renew_at", "renew_floor", "url"];
        assert_eq!(nearest("renew_att", known), Some("renew_at"));
        assert_eq!(nearest("rul", known), Some("url"));
        assert_eq!(nearest("user", ["password", "username"]), Some("username"));
        assert_eq!(nearest("certificates", known), None);
    }
}
