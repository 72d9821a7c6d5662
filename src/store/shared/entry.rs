//! A user or API key as the store has it: `made.changed seq`, a line end, the record.

use std::fmt;

/// Tells an entry from an earlier one of the same name, and from what it was before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryRevision {
    /// Number of the change that made it.
    pub made: u64,
    /// Changes since, but for those that change nothing that counts.
    pub changed: u64,
}

#[derive(Clone, PartialEq, Eq)]
pub struct SharedEntry {
    pub revision: EntryRevision,
    /// Number of the change that wrote it.
    pub seq: u64,
    /// The record, as JSON; empty: it was removed, by this change.
    pub text: String,
}

impl fmt::Display for EntryRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.made, self.changed)
    }
}

/// Without the text: it holds a password hash.
impl fmt::Debug for SharedEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} of change {}", self.revision, self.seq)
    }
}

impl SharedEntry {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (head, text) = text.split_once('\n')?;
        let (revision, seq) = head.split_once(' ')?;
        let (made, changed) = revision.split_once('.')?;
        Some(Self {
            revision: EntryRevision {
                made: made.parse().ok()?,
                changed: changed.parse().ok()?,
            },
            seq: seq.parse().ok()?,
            text: text.to_owned(),
        })
    }

    pub fn is_removed(&self) -> bool {
        self.text.is_empty()
    }

    pub(super) fn encode(&self) -> String {
        format!("{} {}\n{}", self.revision, self.seq, self.text)
    }
}
