//! The engine on this machine's disk: one redb file, one thread that writes it.
//! Everything is loaded at the start; later the file is only written.

mod ahead;
mod condition;
mod look;
mod offline;
mod open;
mod read;
mod round;
mod tables;
mod walk;
mod writer;

pub use look::{StoreLook, look};
pub use offline::{Compacted, Import, Mode, Offline};
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

use super::{Change, Contents, Intake, Loaded, Unavailable};
use crate::metrics::{Metrics, StoreOutcome};
use condition::Condition;
use open::{Missing, storage};
use read::Progress;
use writer::{Opener, Writer};

/// Changes that may wait for the disk; more are refused at once. Fewer than requests
/// that may be inside the gate: a disk that hangs must not keep out known tokens.
const MOST_WAITING: usize = 1024;

/// Between two lines on a load.
const SAID_EVERY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });

/// Between two tries to get into a queue that is full.
const PAUSE: Duration = Duration::from_millis(10);

/// Told what became of a change.
pub(super) type Done = Box<dyn FnOnce(Result<(), Unavailable>) + Send>;

/// What the writer is asked for.
enum Job {
    Change(Change, Done),
    Load(
        Box<dyn Intake>,
        Arc<Progress>,
        oneshot::Sender<Result<Loaded, Unavailable>>,
    ),
    /// So many grants have died since.
    Forget(u64),
    Close(oneshot::Sender<()>),
}

impl Job {
    fn refuse(self, why: Unavailable) {
        if let Self::Change(_, done) = self {
            done(Err(why));
        }
    }
}

/// A load that somebody waits for.
struct Wanted(Arc<Progress>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// A handle to the writer's thread, which ends with it.
pub struct Embedded {
    path: PathBuf,
    jobs: SyncSender<Job>,
    condition: Arc<Condition>,
    patience: Duration,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the file, or makes it if nothing is there; reads all but the grants.
    pub fn open(path: &Path, metrics: &Arc<Metrics>) -> Result<(Self, Contents), OpenError> {
        let database = open::open(path, Missing::Make, open::CACHE_OF_A_GATE)?;
        Self::start(path, writer::at(path.to_owned()), database, metrics)
    }

    fn start(
        path: &Path,
        opener: Opener,
        database: Database,
        metrics: &Arc<Metrics>,
    ) -> Result<(Self, Contents), OpenError> {
        let contents = read::contents(&database).map_err(|error| match error {
            read::Error::Engine(error) => storage(path, error),
            row @ read::Error::Row { .. } => OpenError::Damaged {
                path: path.to_owned(),
                reason: row.to_string(),
            },
        })?;
        let condition = Arc::new(Condition::default());
        let shared = (Arc::clone(&condition), Arc::clone(metrics));
        let writer = Writer::new(path, opener, database, shared);
        let writer = writer.map_err(|error| storage(path, error))?;
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
            patience: super::PATIENCE,
            metrics: Arc::clone(metrics),
        };
        Ok((embedded, contents))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a change in the queue at once; `done` is told, on the writer's thread, when
    /// it is on disk or refused.
    pub(super) fn submit(&self, change: Change, done: Done) {
        if let Some(why) = self.hangs() {
            self.metrics.store_changes.add(StoreOutcome::Refused);
            return done(Err(Unavailable::Failed(why)));
        }
        match self.jobs.try_send(Job::Change(change, done)) {
            Ok(()) => {}
            Err(TrySendError::Full(job)) => {
                self.metrics.store_changes.add(StoreOutcome::Busy);
                job.refuse(Unavailable::Busy);
            }
            Err(TrySendError::Disconnected(job)) => job.refuse(Unavailable::Closed),
        }
    }

    /// Gives every live grant to the intake, and says how far that has come. The writer
    /// does nothing else meanwhile.
    pub async fn load(&self, intake: Box<dyn Intake>) -> Result<Loaded, Unavailable> {
        let (answer, mut answered) = oneshot::channel();
        let progress = Arc::new(Progress::default());
        let job = Job::Load(intake, Arc::clone(&progress), answer);
        self.jobs.send(job).map_err(|_| Unavailable::Closed)?;
        let _wanted = Wanted(Arc::clone(&progress));
        let (mut said, mut moved, mut patience) = (None, Instant::now(), self.patience);
        loop {
            if let Ok(loaded) = timeout(SAID_EVERY, &mut answered).await {
                return loaded.unwrap_or(Err(Unavailable::Closed));
            }
            let so_far @ (megabytes, rows, total) = progress.so_far();
            if said.replace(so_far) != Some(so_far) {
                (moved, patience) = (Instant::now(), self.patience);
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
        let _ = self.jobs.try_send(Job::Forget(count));
    }

    /// Why changes are refused now, if they are.
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.hangs().or_else(|| self.condition.trouble())
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    pub(super) fn wait(&mut self, patience: Duration) {
        self.patience = patience;
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
        let hangs = self.condition.hangs(self.patience, tell);
        hangs.then(|| why.into())
    }

    /// Writes what is in the queue and leaves the file, so that another may have it. Leaves
    /// no thread behind that waits: the runtime would not end before it.
    pub async fn close(&self) {
        if timeout(self.patience, self.closed()).await.is_err() {
            error!(path = %self.path.display(), "left while the disk does not answer");
        }
    }

    async fn closed(&self) {
        let (closed, done) = oneshot::channel();
        let mut job = Job::Close(closed);
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
