//! What outlives a restart, and the engines that keep it. Knows records (`record`)
//! and changes to them; nothing of what a token, a user or a key may do.
//!
//! The promise: when `commit` says yes, the change is there after a kill or a power
//! cut; when it says no, it is not. What requests need is never read from here: it
//! is loaded at the start and stays in memory, in `token` and `identity`.

mod record;
mod seal;

pub use record::{
    Digest, GrantRecord, KeyRecord, Origin, PhcText, Record, SealedBytes, SealedLease, UserEpoch,
    UserRecord,
};
pub use seal::{BadSealKey, Seal, SealKey, Unsealable};

use std::sync::Arc;
use std::time::Duration;

/// One thing that changes. Whole in itself: it takes place or it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A token given out or learned; its epoch is the user's as it then is.
    PutGrant(GrantRecord),
    RemoveGrant(Digest),
    /// All tokens of a user end: the user's epoch moves, in one row.
    EndTokens {
        user: Arc<str>,
    },
    PutUser(UserRecord),
    /// Ends the user's tokens as well.
    RemoveUser {
        name: Arc<str>,
    },
    PutKey(KeyRecord),
    RemoveKey {
        name: Arc<str>,
    },
    PutLease(SealedLease),
    RemoveLease {
        upstream: Arc<str>,
    },
}

/// Why a change did not take place. Nothing has changed, anywhere; it may be tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("the store has too many changes in hand")]
    Busy,
    #[error("the store cannot be written: {0}")]
    Failed(Arc<str>),
    #[error("the store is closed")]
    Closed,
}

impl Unavailable {
    /// When a client may try again.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Busy | Self::Closed => Duration::from_secs(1),
            Self::Failed(_) => Duration::from_secs(5),
        }
    }
}

/// Where the records are.
#[derive(Debug)]
pub enum Store {
    /// Nowhere: a restart forgets everything.
    Memory,
}

impl Store {
    /// Makes a change last before it is answered.
    pub async fn commit(&self, _change: Change) -> Result<(), Unavailable> {
        match self {
            Self::Memory => Ok(()),
        }
    }
}
