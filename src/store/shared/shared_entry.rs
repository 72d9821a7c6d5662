//! A user or API key in the store: `made.changed seq`, a line end, the record as JSON.

use std::fmt;

/// Identifies a version of an entry, also among entries of the same name created later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryRevision {
    /// Number of the change that created it.
    pub made: u64,
    /// How often it was changed since; a re-hash of the same password does not count.
    pub changed: u64,
}

#[derive(Clone, PartialEq, Eq)]
pub struct SharedEntry {
    pub revision: EntryRevision,
    /// Number of the change that wrote it.
    pub seq: u64,
    /// The record as JSON; empty: this change removed the entry.
    pub text: String,
}

impl fmt::Display for EntryRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.made, self.changed)
    }
}

/// Without the text, which may contain a password hash.
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
