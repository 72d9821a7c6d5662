//! The store on this machine's disk: one redb file, and one thread that writes it. Everything is
//! loaded at the start; afterwards the file is only written. Start reading at `EmbeddedStore`,
//! then `writer`.

mod disk_health;
mod look;
mod offline;
mod open;
mod read;
mod readahead;
mod tables;
mod vacuum;
mod write_batch;
mod writer;

pub use look::{StoreLook, look};
pub use offline::{CompactedSize, ImportMode, ImportRun, OfflineStore};
pub use open::OpenError;
#[cfg(test)]
pub(crate) use tests::disk::Disk;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use redb::Database;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

use super::{GrantSink, LoadedGrants, StoreChange, StoreContents, StoreUnavailable};
use crate::metrics::{Metrics, StoreOutcome};
use disk_health::DiskHealth;
use open::{MissingFile, storage};
use read::LoadProgress;
use writer::{DatabaseOpener, StoreWriter};

/// Changes that may be queued; any more are refused at once. Fewer than the requests that may be
/// in flight, so that a disk that hangs does not block requests with known tokens.
const MAX_QUEUED: usize = 1024;

/// Interval of the log lines about a load.
const LOG_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });

/// Interval of the attempts to enter a full queue.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Called with the outcome of a change.
pub(super) type ChangeCallback = Box<dyn FnOnce(Result<(), StoreUnavailable>) + Send>;

/// A request to the writer thread.
enum WriterJob {
    Change(StoreChange, ChangeCallback),
    Load(
        Box<dyn GrantSink>,
        Arc<LoadProgress>,
        oneshot::Sender<Result<LoadedGrants, StoreUnavailable>>,
    ),
    /// This many more grants have died.
    Forget(u64),
    Close(oneshot::Sender<()>),
}

impl WriterJob {
    fn refuse(self, why: StoreUnavailable) {
        if let Self::Change(_, done) = self {
            done(Err(why));
        }
    }
}

/// Cancels a load when its caller stops waiting.
struct LoadRequest(Arc<LoadProgress>);

impl Drop for LoadRequest {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A handle to the writer thread, which ends when the handle is dropped.
pub struct EmbeddedStore {
    path: PathBuf,
    jobs: SyncSender<WriterJob>,
    disk_health: Arc<DiskHealth>,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the file, or creates it; reads everything but the grants.
    pub fn open(path: &Path, metrics: &Arc<Metrics>) -> Result<(Self, StoreContents), OpenError> {
        let database = open::open(path, MissingFile::Create, open::CACHE_OF_A_GATE)?;
        Self::start(
            path,
            writer::file_opener(path.to_owned()),
            database,
            metrics,
        )
    }

    fn start(
        path: &Path,
        opener: DatabaseOpener,
        database: Database,
        metrics: &Arc<Metrics>,
    ) -> Result<(Self, StoreContents), OpenError> {
        let contents = read::contents(&database).map_err(|error| match error {
            read::LoadError::Engine(error) => storage(path, error),
            row @ read::LoadError::Row { .. } => OpenError::Damaged {
                path: path.to_owned(),
                reason: row.to_string(),
            },
        })?;
        let disk_health = Arc::new(DiskHealth::default());
        let health = Arc::clone(&disk_health);
        let writer = StoreWriter::new(path, opener, database, health, Arc::clone(metrics))
            .map_err(|error| storage(path, error))?;
        let (jobs, queue) = sync_channel(MAX_QUEUED);
        let thread = std::thread::Builder::new().name("store".to_owned());
        let thread = thread.spawn(move || writer.run(&queue));
        thread.map_err(|source| OpenError::Io {
            path: path.to_owned(),
            source,
        })?;
        metrics.store_up.set(1);
        let embedded = Self {
            path: path.to_owned(),
            jobs,
            disk_health,
            timeout: super::DEFAULT_TIMEOUT,
            metrics: Arc::clone(metrics),
        };
        Ok((embedded, contents))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Queues a change without waiting; `done` is called on the writer thread when it is on disk
    /// or refused.
    pub(super) fn submit(&self, change: StoreChange, done: ChangeCallback) {
        if let Some(reason) = self.hangs() {
            self.metrics.store_changes.add(StoreOutcome::Refused);
            return done(Err(StoreUnavailable::Failed(reason)));
        }
        match self.jobs.try_send(WriterJob::Change(change, done)) {
            Ok(()) => {}
            Err(TrySendError::Full(job)) => {
                self.metrics.store_changes.add(StoreOutcome::Busy);
                job.refuse(StoreUnavailable::Busy);
            }
            Err(TrySendError::Disconnected(job)) => job.refuse(StoreUnavailable::Closed),
        }
    }

    /// Passes every live grant to `sink` and logs the progress. The writer thread does nothing
    /// else meanwhile.
    pub async fn load(&self, sink: Box<dyn GrantSink>) -> Result<LoadedGrants, StoreUnavailable> {
        let (sender, mut receiver) = oneshot::channel();
        let progress = Arc::new(LoadProgress::default());
        let job = WriterJob::Load(sink, Arc::clone(&progress), sender);
        self.jobs.send(job).map_err(|_| StoreUnavailable::Closed)?;
        let _cancel_on_drop = LoadRequest(Arc::clone(&progress));
        let mut last = None;
        let (mut last_progress, mut warn_after) = (Instant::now(), self.timeout);
        loop {
            if let Ok(loaded) = timeout(LOG_INTERVAL, &mut receiver).await {
                return loaded.unwrap_or(Err(StoreUnavailable::Closed));
            }
            let current @ (megabytes, rows, total) = progress.current();
            if last.replace(current) != Some(current) {
                (last_progress, warn_after) = (Instant::now(), self.timeout);
                if total > 0 {
                    info!(megabytes, rows, total, "loading tokens");
                }
            } else if last_progress.elapsed() >= warn_after {
                warn!(path = %self.path.display(), megabytes, rows, total,
                    "token loading stalled: the disk is not responding");
                warn_after = last_progress.elapsed() * 2;
            }
        }
    }

    /// Counts grants that died in memory: their rows may be removed.
    pub fn forget(&self, count: u64) {
        // If the queue is full they are not counted; a later vacuum run finds them.
        let _ = self.jobs.try_send(WriterJob::Forget(count));
    }

    /// Why changes are refused now; None: they are not.
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.hangs().or_else(|| self.disk_health.trouble())
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The reason to refuse changes while the disk hangs; None: it responds, as far as is known.
    pub(super) fn hangs(&self) -> Option<Arc<str>> {
        let reason = "the disk is not responding";
        let alarm = || {
            self.metrics.store_up.set(0);
            error!(path = %self.path.display(), error = reason,
                "the store cannot be written; logins, logouts and changes of users and keys are \
                 refused until it can, requests with known tokens are served");
        };
        let hangs = self.disk_health.hangs(self.timeout, alarm);
        hangs.then(|| reason.into())
    }

    /// Writes what is queued and closes the file, so that another process can open it. Leaves no
    /// waiting thread behind: the runtime would wait for it when it shuts down.
    pub async fn close(&self) {
        if timeout(self.timeout, self.request_close()).await.is_err() {
            error!(path = %self.path.display(), "closed without waiting for the disk, which is not responding; queued changes may be lost");
        }
    }

    async fn request_close(&self) {
        let (closed, done) = oneshot::channel();
        let mut job = WriterJob::Close(closed);
        while let Err(refused) = self.jobs.try_send(job) {
            let TrySendError::Full(again) = refused else {
                return; // the writer thread has ended
            };
            job = again;
            sleep(RETRY_DELAY).await;
        }
        let _ = done.await; // an error: the writer thread has ended
    }
}

#[cfg(test)]
mod tests;
