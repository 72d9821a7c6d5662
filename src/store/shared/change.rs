//! The numbered changes that the server publishes, and the replicas that apply them.

use std::fmt;
use std::sync::Arc;

use redis::Value;

use super::shared_entry::SharedEntry;
use crate::store::RecordDigest;

/// One change, as all gateways see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SharedChange {
    /// A token was minted or learned: an answer "unknown" for it is out of date.
    TokenPut(RecordDigest),
    TokenRevoked(RecordDigest),
    /// All tokens of a user from before this change are dead.
    UserEnded {
        user: Arc<str>,
        end: RevokedUpTo,
    },
    /// None: the user was removed.
    User(Arc<str>, Option<SharedEntry>),
    Key(Arc<str>, SharedEntry),
    /// An upstream's lease was renewed or refused: read it again.
    Lease(Arc<str>),
    /// All users and keys, after changes may have been missed.
    Directory {
        users: Vec<(Arc<str>, SharedEntry)>,
        keys: Vec<(Arc<str>, SharedEntry)>,
    },
}

/// Change numbers up to which a user's tokens are dead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RevokedUpTo {
    /// Tokens from before this change are dead.
    pub tokens: u64,
    /// Logins that began before this change get no token; 0: the user only logged out.
    pub logins: u64,
}

/// A change with its number and its random mark.
#[derive(Clone, Debug)]
pub(super) struct NumberedChange {
    pub seq: u64,
    pub mark: Vec<u8>,
    pub changes: Vec<SharedChange>,
}

/// A copy of some of the shared state, kept in memory. Called on the control runtime, one
/// change after the other, in the order of their numbers; must not block.
pub trait Replica: Send + Sync + fmt::Debug {
    /// Takes over change number `seq`.
    fn apply(&self, change: &SharedChange, seq: u64);

    /// Changes after number `seen` may have been missed: nothing held is valid without a
    /// look-up until it has been read again.
    fn invalidate(&self, seen: u64);

    /// Gives everything this replica holds, for a store that lost its data.
    fn snapshot(&self, give: &mut dyn FnMut(super::StateSnapshotItem));
}

impl NumberedChange {
    /// None: the entry has an unknown form.
    pub(super) fn read(entry: &Value) -> Option<Self> {
        let Value::Array(parts) = entry else {
            return None;
        };
        let [id, Value::Array(fields)] = parts.as_slice() else {
            return None;
        };
        let id: String = redis::from_redis_value_ref(id).ok()?;
        let seq = id.split_once('-')?.0.parse().ok()?;
        let mut numbered = Self {
            seq,
            mark: Vec::new(),
            changes: Vec::new(),
        };
        let mut known = ChangeFields::default();
        for pair in fields.chunks_exact(2) {
            let name: String = redis::from_redis_value_ref(&pair[0]).ok()?;
            let value: Vec<u8> = redis::from_redis_value_ref(&pair[1]).ok()?;
            match name.as_str() {
                "m" => numbered.mark = value,
                "k" => known.kind = value,
                "d" => known.digest = value,
                "u" | "n" => known.name = String::from_utf8(value).ok()?,
                "x" => known.mode = value,
                "g" => known.end = std::str::from_utf8(&value).ok()?.parse().ok()?,
                "t" => known.text = String::from_utf8(value).ok()?,
                _ => {}
            }
        }
        known.changes(seq, &mut numbered.changes)?;
        Some(numbered)
    }
}

#[derive(Debug, Default)]
struct ChangeFields {
    kind: Vec<u8>,
    digest: Vec<u8>,
    name: String,
    mode: Vec<u8>,
    end: u64,
    text: String,
}

impl ChangeFields {
    fn changes(self, seq: u64, changes: &mut Vec<SharedChange>) -> Option<()> {
        let digest = || self.digest.as_slice().try_into().ok().map(RecordDigest);
        let name: Arc<str> = self.name.as_str().into();
        match self.kind.as_slice() {
            b"put" => changes.push(SharedChange::TokenPut(digest()?)),
            b"del" => changes.push(SharedChange::TokenRevoked(digest()?)),
            b"end" => {
                let tokens = if self.end == 0 { seq } else { self.end };
                let is_logout = self.mode == b"logout";
                let logins = if is_logout { 0 } else { tokens };
                changes.push(SharedChange::UserEnded {
                    user: Arc::clone(&name),
                    end: RevokedUpTo { tokens, logins },
                });
                if self.mode == b"remove" {
                    changes.push(SharedChange::User(name, None));
                }
            }
            b"lease" => changes.push(SharedChange::Lease(name)),
            kind @ (b"user" | b"key") => {
                let entry = SharedEntry::parse(&self.text)?;
                changes.push(match kind {
                    b"user" => SharedChange::User(name, Some(entry)),
                    _ => SharedChange::Key(name, entry),
                });
            }
            // A kind that a newer version publishes: no replica here has such state.
            _ => {}
        }
        Some(())
    }
}
