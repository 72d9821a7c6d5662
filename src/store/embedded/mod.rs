//! The engine on this machine's disk: one redb file, one thread that writes it.
//! Everything is loaded at the start; later the file is only written.

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

/// Changes that may wait for the disk; more are refused at once. Fewer than requests
/// that may be inside the gate: a disk that hangs must not keep out known tokens.
const MOST_WAITING: usize = 1024;

/// Between two lines on a load.
const SAID_EVERY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });

/// Between two tries to get into a queue that is full.
const PAUSE: Duration = Duration::from_millis(10);

/// Told what became of a change.
pub(super) type ChangeCallback = Box<dyn FnOnce(Result<(), StoreUnavailable>) + Send>;

/// What the writer is asked for.
enum WriterJob {
    Change(StoreChange, ChangeCallback),
    Load(
        Box<dyn GrantSink>,
        Arc<LoadProgress>,
        oneshot::Sender<Result<LoadedGrants, StoreUnavailable>>,
    ),
    /// So many grants have died since.
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

/// A load that somebody waits for.
struct LoadRequest(Arc<LoadProgress>);

impl Drop for LoadRequest {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// A handle to the writer's thread, which ends with it.
pub struct EmbeddedStore {
    path: PathBuf,
    jobs: SyncSender<WriterJob>,
    condition: Arc<DiskHealth>,
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
    /// Opens the file, or makes it if nothing is there; reads all but the grants.
    pub fn open(path: &Path, metrics: &Arc<Metrics>) -> Result<(Self, StoreContents), OpenError> {
        let database = open::open(path, MissingFile::Make, open::CACHE_OF_A_GATE)?;
        Self::start(path, writer::at(path.to_owned()), database, metrics)
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
        let condition = Arc::new(DiskHealth::default());
        let health = Arc::clone(&condition);
        let writer = StoreWriter::new(path, opener, database, health, Arc::clone(metrics))
            .map_err(|error| storage(path, error))?;
        let (jobs, queue) = sync_channel(MOST_WAITING);
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
            condition,
            timeout: super::DEFAULT_TIMEOUT,
            metrics: Arc::clone(metrics),
        };
        Ok((embedded, contents))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a change in the queue at once; `done` is told, on the writer's thread, when
    /// it is on disk or refused.
    pub(super) fn submit(&self, change: StoreChange, done: ChangeCallback) {
        if let Some(why) = self.hangs() {
            self.metrics.store_changes.add(StoreOutcome::Refused);
            return done(Err(StoreUnavailable::Failed(why)));
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

    /// Gives every live grant to the intake, and says how far that has come. The writer
    /// does nothing else meanwhile.
    pub async fn load(&self, intake: Box<dyn GrantSink>) -> Result<LoadedGrants, StoreUnavailable> {
        let (answer, mut answered) = oneshot::channel();
        let progress = Arc::new(LoadProgress::default());
        let job = WriterJob::Load(intake, Arc::clone(&progress), answer);
        self.jobs.send(job).map_err(|_| StoreUnavailable::Closed)?;
        let _wanted = LoadRequest(Arc::clone(&progress));
        let (mut said, mut moved, mut patience) = (None, Instant::now(), self.timeout);
        loop {
            if let Ok(loaded) = timeout(SAID_EVERY, &mut answered).await {
                return loaded.unwrap_or(Err(StoreUnavailable::Closed));
            }
            let so_far @ (megabytes, rows, total) = progress.so_far();
            if said.replace(so_far) != Some(so_far) {
                (moved, patience) = (Instant::now(), self.timeout);
                if total > 0 {
                    info!(megabytes, rows, total, "loading tokens");
                }
            } else if moved.elapsed() >= patience {
                warn!(path = %self.path.display(), megabytes, rows, total,
                    "loading tokens does not get on; its disk does not answer");
                patience = moved.elapsed() * 2;
            }
        }
    }

    /// So many grants have died in memory; their rows may go, in time.
    pub fn forget(&self, count: u64) {
        // A full queue means much to do; what is not counted now is found by a later walk.
        let _ = self.jobs.try_send(WriterJob::Forget(count));
    }

    /// Why changes are refused now, if they are.
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.hangs().or_else(|| self.condition.trouble())
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// What to say of a disk that has had its time; None: it answers, as far as we know.
    pub(super) fn hangs(&self) -> Option<Arc<str>> {
        let why = "the disk does not answer";
        let tell = || {
            self.metrics.store_up.set(0);
            error!(path = %self.path.display(), error = why,
                "the store cannot be written; logins, logouts and changes of users and keys are \
                 refused until it can, known tokens go on");
        };
        let hangs = self.condition.hangs(self.timeout, tell);
        hangs.then(|| why.into())
    }

    /// Writes what is in the queue and leaves the file, so that another may have it. Leaves
    /// no thread behind that waits: the runtime would not end before it.
    pub async fn close(&self) {
        if timeout(self.timeout, self.closed()).await.is_err() {
            error!(path = %self.path.display(), "left while the disk does not answer");
        }
    }

    async fn closed(&self) {
        let (closed, done) = oneshot::channel();
        let mut job = WriterJob::Close(closed);
        while let Err(refused) = self.jobs.try_send(job) {
            let TrySendError::Full(again) = refused else {
                return; // it has ended by itself
            };
            job = again;
            sleep(PAUSE).await;
        }
        let _ = done.await; // the same
    }
}

#[cfg(test)]
mod tests;
