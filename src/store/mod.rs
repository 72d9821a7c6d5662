//! The records that outlive a restart, and the engines that keep them: memory, a file
//! (`embedded`), a Redis server shared by several gateways (`shared`). Start reading at
//! `Store` and `StoreBackend`, then `record`.
//!
//! The guarantee: a change whose `commit` succeeded survives a kill or a power cut; a change
//! whose `commit` failed did not take place. Requests never read from here: everything they
//! need is loaded at the start and kept in memory, by `token` and `identity`.

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

/// How long a caller waits for a change, unless the configuration says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// One atomic change: it takes place completely or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreChange {
    /// A token was minted or learned; the store sets its epoch to the user's current one.
    PutGrant(GrantRecord),
    /// The same, and another token of the user (`ended`) ends to make room for it.
    ReplaceGrant {
        grant: GrantRecord,
        ended: RecordDigest,
    },
    RemoveGrant(RecordDigest),
    /// All tokens of a user end: one row is written, with the user's next epoch.
    EndTokens {
        user: Arc<str>,
    },
    /// All tokens of a user but `kept` end.
    EndOtherTokens {
        kept: GrantRecord,
    },
    PutUser(UserRecord),
    /// The user's tokens end as well.
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

/// Why a change did not take place. It can be retried; only after `Late` may it have taken
/// place all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreUnavailable {
    #[error("the store has too many changes queued")]
    Busy,
    #[error("the store cannot be written: {0}")]
    Failed(Arc<str>),
    #[error("the store is closed")]
    Closed,
    /// The change is under way, and may still take place.
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

/// The records that are few, and needed at once when the gateway starts.
#[derive(Debug, Default)]
pub struct StoreContents {
    pub users: Vec<UserRecord>,
    pub keys: Vec<KeyRecord>,
    pub leases: Vec<SealedLease>,
}

/// The result of loading the grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadedGrants {
    pub live: u64,
    /// Dropped: expired.
    pub expired: u64,
    /// Dropped: their user had ended them (logout, deletion).
    pub ended: u64,
    /// Left in the store: live, but of a user that is not in the directory, or of another origin.
    pub others: u64,
    pub took: Duration,
}

/// A live grant while it is loaded. There are millions, so none of them allocates.
#[derive(Clone, Copy, Debug)]
pub struct LiveGrant<'a> {
    pub digest: RecordDigest,
    pub user: &'a Arc<str>,
    /// The user's number in this store.
    pub token_user: u32,
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

/// Takes loaded grants, hundreds per call.
pub type GrantBatchSink<'a> = Box<dyn FnMut(&[LiveGrant<'_>]) + Send + 'a>;

/// The destination of loaded grants.
pub trait GrantSink: Send + Sync {
    /// Called first, with the names of all users. A grant's `token_user` is an index into `names`.
    /// Unused slots have an empty name and no grants.
    fn users(&mut self, names: &[Arc<str>]);

    /// Then called once per thread: the sink for that thread's part of the grants.
    fn part(&self) -> GrantBatchSink<'_>;

    /// All parts are complete. Not called if a part failed or the load was cancelled.
    fn finish(&mut self);
}

/// For a caller that needs the grants only.
impl<F: Fn() -> GrantBatchSink<'static> + Send + Sync> GrantSink for F {
    fn users(&mut self, _: &[Arc<str>]) {}

    fn part(&self) -> GrantBatchSink<'_> {
        self()
    }

    fn finish(&mut self) {}
}

/// How many threads to read `rows` rows with: few rows are read faster than a thread starts.
pub(crate) fn threads_for(rows: usize) -> usize {
    const MIN_ROWS: usize = if cfg!(test) { 64 } else { 65_536 };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (rows / MIN_ROWS).clamp(1, cores)
}

/// Where a gateway keeps its records: in a store of its own, or in one that it shares with
/// other gateways, where each change is a call whose outcome the others have a say in.
#[derive(Clone, Debug)]
pub enum StoreBackend {
    Local(Arc<Store>),
    Shared(Arc<SharedStore>),
}

impl StoreBackend {
    pub fn shared(&self) -> Option<&Arc<SharedStore>> {
        match self {
            Self::Shared(shared) => Some(shared),
            Self::Local(_) => None,
        }
    }

    /// Waits for `guard`, the right to make a change, but no longer than a change may take.
    pub async fn acquire<T>(&self, guard: impl Future<Output = T>) -> Result<T, StoreUnavailable> {
        match self {
            Self::Local(store) => store.acquire(guard).await,
            Self::Shared(_) => {
                let guard = within(Some(DEFAULT_TIMEOUT), guard).await;
                guard.ok_or(StoreUnavailable::Busy)
            }
        }
    }

    /// Why changes are refused now; None: they are not.
    pub fn trouble(&self) -> Option<Arc<str>> {
        match self {
            Self::Local(store) => store.trouble(),
            Self::Shared(shared) => shared.trouble(),
        }
    }

    /// Writes what is queued, and closes the file if there is one.
    pub async fn close(&self) {
        if let Self::Local(store) = self {
            store.close().await;
        }
    }
}

/// A store that only this gateway uses.
#[derive(Debug)]
pub enum Store {
    /// Keeps nothing: a restart forgets everything.
    Memory,
    Embedded(EmbeddedStore),
}

impl Store {
    /// Opens the file at `path`, or creates it; returns what the start needs of its contents.
    pub fn open(path: &Path, metrics: &Arc<Metrics>) -> Result<(Self, StoreContents), OpenError> {
        let (embedded, contents) = EmbeddedStore::open(path, metrics)?;
        Ok((Self::Embedded(embedded), contents))
    }

    /// Queues a change. Its position among all changes is fixed when this returns. `done`
    /// gets the outcome, in that order, and also when the caller has given up waiting.
    pub fn submit(
        &self,
        change: StoreChange,
        done: impl FnOnce(Result<(), StoreUnavailable>) + Send + 'static,
    ) {
        match self {
            Self::Memory => done(Ok(())),
            Self::Embedded(embedded) => embedded.submit(change, Box::new(done)),
        }
    }

    /// Submits a change and waits for its outcome, for the store's timeout at most.
    pub async fn commit(&self, change: StoreChange) -> Result<(), StoreUnavailable> {
        let (sender, receiver) = oneshot::channel();
        self.submit(change, |outcome| {
            let _ = sender.send(outcome); // the caller may have given up
        });
        self.outcome(receiver).await
    }

    /// Waits for the outcome of a submitted change, for the store's timeout at most.
    pub async fn outcome<T>(
        &self,
        receiver: oneshot::Receiver<Result<T, StoreUnavailable>>,
    ) -> Result<T, StoreUnavailable> {
        let received = within(self.timeout(), receiver).await;
        let received = received.ok_or(StoreUnavailable::Late)?;
        received.unwrap_or(Err(StoreUnavailable::Closed))
    }

    /// Waits for `guard`, the right to make a change, for the store's timeout at most: its
    /// holder may be waiting for a disk that hangs. While the disk is known to hang, it does
    /// not wait at all.
    pub async fn acquire<T>(&self, guard: impl Future<Output = T>) -> Result<T, StoreUnavailable> {
        let limit = match self.hangs() {
            Some(_) => Some(Duration::ZERO),
            None => self.timeout(),
        };
        let guard = within(limit, guard).await;
        guard.ok_or_else(|| {
            self.hangs()
                .map_or(StoreUnavailable::Busy, StoreUnavailable::Failed)
        })
    }

    /// How long a caller waits for a change; None: no change ever waits.
    fn timeout(&self) -> Option<Duration> {
        match self {
            Self::Memory => None,
            Self::Embedded(embedded) => Some(embedded.timeout()),
        }
    }

    fn hangs(&self) -> Option<Arc<str>> {
        match self {
            Self::Memory => None,
            Self::Embedded(embedded) => embedded.hangs(),
        }
    }

    /// The same store, with this timeout for the disk.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        if let Self::Embedded(embedded) = &mut self {
            embedded.set_timeout(timeout);
        }
        self
    }

    /// Whether a change is complete as soon as memory has it.
    pub fn is_memory(&self) -> bool {
        matches!(self, Self::Memory)
    }

    /// Passes every live grant to `sink`, on several threads if there are many.
    pub async fn load(
        &self,
        sink: impl GrantSink + 'static,
    ) -> Result<LoadedGrants, StoreUnavailable> {
        match self {
            Self::Memory => Ok(LoadedGrants::default()),
            Self::Embedded(embedded) => embedded.load(Box::new(sink)).await,
        }
    }

    /// Counts `count` grants that died in memory: their rows may be removed.
    pub fn forget(&self, count: u64) {
        match self {
            Self::Memory => {}
            Self::Embedded(embedded) => embedded.forget(count),
        }
    }

    /// Why changes are refused now; None: they are not.
    pub fn trouble(&self) -> Option<Arc<str>> {
        match self {
            Self::Memory => None,
            Self::Embedded(embedded) => embedded.trouble(),
        }
    }

    /// Writes what is queued, and closes the file if there is one.
    pub async fn close(&self) {
        match self {
            Self::Memory => {}
            Self::Embedded(embedded) => embedded.close().await,
        }
    }
}

/// Awaits `future` for `limit` at most; None: the limit was reached.
async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
    match limit {
        None => Some(future.await),
        Some(limit) => timeout(limit, future).await.ok(),
    }
}
