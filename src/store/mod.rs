//! What outlives a restart, and the engines that keep it. Knows records (`record`)
//! and changes to them; nothing of what a token, a user or a key may do.
//!
//! The promise: when `commit` says yes, the change is there after a kill or a power
//! cut; when it says no, it is not. What requests need is never read from here: it
//! is loaded at the start and stays in memory, in `token` and `identity`.

mod embedded;
mod record;
mod seal;
pub mod shared;
mod transfer;

#[cfg(test)]
pub(crate) use embedded::Disk;
pub use embedded::{
    CompactedSize, EmbeddedStore, ImportMode, ImportRun, OfflineStore, OpenError, StoreLook, look,
};
pub use record::{
    ExportRecord, GrantRecord, KeyRecord, PhcText, RecordDigest, SealedBytes, SealedLease,
    TokenOrigin, UserEpoch, UserRecord,
};
pub use seal::{BadSealKey, SealKey, SealingKeys, UnsealError};
pub use transfer::{BadLine, RecordCounts, RecordExporter, TransferError, read_lines};

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::metrics::Metrics;
use crate::profiles::Role;
use shared::SharedStore;

/// How long somebody waits for a change, where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(5);

/// One thing that changes. Whole in itself: it takes place or it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreChange {
    /// A token given out or learned; its epoch is the user's as it then is.
    PutGrant(GrantRecord),
    /// The same, and another of the user's tokens ends for it.
    ReplaceGrant {
        grant: GrantRecord,
        ended: RecordDigest,
    },
    RemoveGrant(RecordDigest),
    /// All tokens of a user end: the user's epoch moves, in one row.
    EndTokens {
        user: Arc<str>,
    },
    /// The same, but for this one of them.
    EndOtherTokens {
        kept: GrantRecord,
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

/// Why a change did not take place. Nothing has changed, anywhere, but for `Late`; it may
/// be tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreUnavailable {
    #[error("the store has too many changes in hand")]
    Busy,
    #[error("the store cannot be written: {0}")]
    Failed(Arc<str>),
    #[error("the store is closed")]
    Closed,
    /// The exception to the rule: the change is under way, and may still take place.
    #[error("the store has not answered in time")]
    Late,
}

impl StoreUnavailable {
    /// When a client may try again.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Busy | Self::Closed => Duration::from_secs(1),
            Self::Failed(_) | Self::Late => Duration::from_secs(5),
        }
    }
}

/// What is few and needed at once when the gate starts.
#[derive(Debug, Default)]
pub struct StoreContents {
    pub users: Vec<UserRecord>,
    pub keys: Vec<KeyRecord>,
    pub leases: Vec<SealedLease>,
}

/// What a load of the grants came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadedGrants {
    pub live: u64,
    /// Dropped: their time had come.
    pub expired: u64,
    /// Dropped: their user had ended them.
    pub ended: u64,
    /// Left where they are: live, but nobody's that the gate knows, or of another origin.
    pub others: u64,
    pub took: Duration,
}

/// A live grant as it is loaded: millions of them, so nothing is made for each.
#[derive(Clone, Copy, Debug)]
pub struct LiveGrant<'a> {
    pub digest: RecordDigest,
    pub user: &'a Arc<str>,
    /// The user's number in this store.
    pub holder: u32,
    pub role: Option<Role>,
    pub ends_millis: u64,
    pub epoch: u64,
    pub origin: TokenOrigin,
}

impl LiveGrant<'_> {
    fn record(self) -> GrantRecord {
        GrantRecord {
            digest: self.digest,
            user: Arc::clone(self.user),
            role: self.role,
            ends_millis: self.ends_millis,
            epoch: self.epoch,
            origin: self.origin,
        }
    }
}

/// Takes grants that are loaded, hundreds at a time.
pub type GrantBatchSink<'a> = Box<dyn FnMut(&[LiveGrant<'_>]) + Send + 'a>;

/// Where grants that are loaded go.
pub trait GrantSink: Send + Sync {
    /// First of all: the users there are. A grant's `holder` is the place of its user here;
    /// at a place that is nobody's the name is empty, and no grant is.
    fn users(&mut self, names: &[Arc<str>]);

    /// Then, for each thread: what takes its part of the grants.
    fn part(&self) -> GrantBatchSink<'_>;

    /// All parts are in, and over. Not called if one failed, or nobody waits any more.
    fn finish(&mut self);
}

/// Of one who only wants the grants.
impl<F: Fn() -> GrantBatchSink<'static> + Send + Sync> GrantSink for F {
    fn users(&mut self, _: &[Arc<str>]) {}

    fn part(&self) -> GrantBatchSink<'_> {
        self()
    }

    fn finish(&mut self) {}
}

/// How many threads so many rows are worth: fewer are read sooner than one is made.
pub(crate) fn threads_for(rows: usize) -> usize {
    const LEAST: usize = if cfg!(test) { 64 } else { 65_536 };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (rows / LEAST).clamp(1, cores)
}

/// Where the records are.
#[derive(Debug)]
pub enum Store {
    /// Nowhere: a restart forgets everything.
    Memory,
    Embedded(EmbeddedStore),
    /// A server that several gates share. What changes something calls it directly:
    /// other gates have a say in whether it takes place.
    Shared(Arc<SharedStore>),
}

impl Store {
    /// What there is in a file at the start.
    pub fn open(path: &Path, metrics: &Arc<Metrics>) -> Result<(Self, StoreContents), OpenError> {
        let (embedded, contents) = EmbeddedStore::open(path, metrics)?;
        Ok((Self::Embedded(embedded), contents))
    }

    pub fn shared(&self) -> Option<&Arc<SharedStore>> {
        match self {
            Self::Shared(shared) => Some(shared),
            Self::Memory | Self::Embedded(_) => None,
        }
    }

    /// Hands a change over. It has its place in the order of all changes when this
    /// returns. `done` is told whether it took place, in that order, and also when
    /// whoever wanted the change has left meanwhile.
    pub fn submit(
        &self,
        change: StoreChange,
        done: impl FnOnce(Result<(), StoreUnavailable>) + Send + 'static,
    ) {
        match self {
            Self::Memory => done(Ok(())),
            Self::Embedded(embedded) => embedded.submit(change, Box::new(done)),
            Self::Shared(_) => done(Err(StoreUnavailable::Failed("the store is shared".into()))),
        }
    }

    /// Makes a change last; waits until it does, but not for ever.
    pub async fn commit(&self, change: StoreChange) -> Result<(), StoreUnavailable> {
        let (answer, answered) = oneshot::channel();
        self.submit(change, |outcome| {
            let _ = answer.send(outcome); // whoever asked may have left
        });
        self.outcome(answered).await
    }

    /// What became of a change that was submitted, if that is known soon enough for
    /// somebody who waits.
    pub async fn outcome<T>(
        &self,
        answered: oneshot::Receiver<Result<T, StoreUnavailable>>,
    ) -> Result<T, StoreUnavailable> {
        let answered = soon(self.patience(), answered).await;
        let answered = answered.ok_or(StoreUnavailable::Late)?;
        answered.unwrap_or(Err(StoreUnavailable::Closed))
    }

    /// Somebody's turn to make a change, if it comes soon enough: whoever has it may be
    /// waiting for a disk that hangs. Where that is known already, it comes at once or not.
    pub async fn turn<T>(&self, turn: impl Future<Output = T>) -> Result<T, StoreUnavailable> {
        let patience = match self.hangs() {
            Some(_) => Some(Duration::ZERO),
            None => self.patience(),
        };
        let turn = soon(patience, turn).await;
        turn.ok_or_else(|| {
            self.hangs()
                .map_or(StoreUnavailable::Busy, StoreUnavailable::Failed)
        })
    }

    /// How long somebody waits; None: there is nothing to wait for.
    fn patience(&self) -> Option<Duration> {
        match self {
            Self::Memory => None,
            Self::Shared(_) => Some(PATIENCE),
            Self::Embedded(embedded) => Some(embedded.patience()),
        }
    }

    fn hangs(&self) -> Option<Arc<str>> {
        match self {
            Self::Memory | Self::Shared(_) => None,
            Self::Embedded(embedded) => embedded.hangs(),
        }
    }

    /// Waits so long for the disk.
    #[must_use]
    pub fn waiting(mut self, patience: Duration) -> Self {
        if let Self::Embedded(embedded) = &mut self {
            embedded.wait(patience);
        }
        self
    }

    /// Nothing to wait for: a change is over as soon as memory has it.
    pub fn is_memory(&self) -> bool {
        matches!(self, Self::Memory)
    }

    /// Gives every live grant to the intake, by several threads if there are many.
    pub async fn load(
        &self,
        intake: impl GrantSink + 'static,
    ) -> Result<LoadedGrants, StoreUnavailable> {
        match self {
            // A shared store's grants are looked up one by one, as they are needed.
            Self::Memory | Self::Shared(_) => Ok(LoadedGrants::default()),
            Self::Embedded(embedded) => embedded.load(Box::new(intake)).await,
        }
    }

    /// So many grants have died in memory; what is kept of them may go.
    pub fn forget(&self, count: u64) {
        match self {
            Self::Memory | Self::Shared(_) => {}
            Self::Embedded(embedded) => embedded.forget(count),
        }
    }

    /// Why changes are refused now, if they are.
    pub fn trouble(&self) -> Option<Arc<str>> {
        match self {
            Self::Memory => None,
            Self::Embedded(embedded) => embedded.trouble(),
            Self::Shared(shared) => shared.trouble(),
        }
    }

    /// What is wrong with the store although it takes changes.
    pub fn warning(&self) -> Option<String> {
        let shared = self.shared()?;
        shared.eviction().map(|server| server.to_string())
    }

    /// Leaves everything in good order.
    pub async fn close(&self) {
        match self {
            Self::Memory | Self::Shared(_) => {}
            Self::Embedded(embedded) => embedded.close().await,
        }
    }
}

async fn soon<T>(patience: Option<Duration>, awaited: impl Future<Output = T>) -> Option<T> {
    match patience {
        None => Some(awaited.await),
        Some(patience) => timeout(patience, awaited).await.ok(),
    }
}
