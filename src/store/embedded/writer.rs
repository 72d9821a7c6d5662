//! The one thread that writes. It takes all queued changes, commits them in one transaction with
//! one sync, and reports their outcome. The next batch gathers while a sync runs, so the rate of
//! changes does not depend on the rate of syncs.
//!
//! After an error the engine must be opened again. Until that works changes are refused at once;
//! requests with known tokens are served. A commit that failed may have taken place all the same;
//! if so, it is found and undone when the engine is opened again: a refused change never takes
//! place.

use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use redb::{Database, ReadableDatabase as _, ReadableTableMetadata as _};
use tokio::time::Instant;
use tracing::{debug, error, info};

use super::disk_health::DiskHealth;
use super::open::{self, MissingFile, OpenError};
use super::read::LoadProgress;
use super::tables::{BATCH_KEY, GRANTS, META};
use super::vacuum::Vacuum;
use super::write_batch::{UndoLog, WriteBatch};
use super::{ChangeCallback, WriterJob, read};
use crate::metrics::{Metrics, StoreOutcome};
use crate::store::{GrantSink, LoadedGrants, StoreChange, StoreUnavailable};

/// Maximum changes in one transaction: in a larger one the first of them would wait too long.
const MAX_BATCH: usize = 1024;
/// Interval of the attempts to open a store that has failed, and of the checks of the file.
const CHECK_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });

/// Opens the file, or in a test something else.
pub(super) type DatabaseOpener = Box<dyn Fn() -> Result<Database, OpenError> + Send>;

pub(super) struct StoreWriter {
    path: PathBuf,
    opener: DatabaseOpener,
    /// None after a failure.
    database: Option<Database>,
    /// Device and inode of the open file, to notice that another has replaced it.
    file: Option<(u64, u64)>,
    /// Number of the last batch that is known to be committed.
    batch: u64,
    /// Undoes a failed commit, should it have taken place.
    undo: Option<UndoLog>,
    last_attempt: Instant,
    last_check: Instant,
    vacuum: Vacuum,
    disk_health: Arc<DiskHealth>,
    metrics: Arc<Metrics>,
}

/// Why a batch failed, in one line.
#[derive(Debug)]
pub(super) struct BatchFailure(String);

impl<E: Into<redb::Error>> From<E> for BatchFailure {
    fn from(error: E) -> Self {
        Self(error.into().to_string())
    }
}

impl StoreWriter {
    pub(super) fn new(
        path: &Path,
        opener: DatabaseOpener,
        database: Database,
        disk_health: Arc<DiskHealth>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, redb::Error> {
        Ok(Self {
            batch: last_batch(&database)?,
            database: Some(database),
            file: identity(path),
            path: path.to_owned(),
            opener,
            undo: None,
            last_attempt: Instant::now(),
            last_check: Instant::now(),
            vacuum: Vacuum::new(),
            disk_health,
            metrics,
        })
    }

    /// Works until it is told to close, or all handles are dropped.
    pub(super) fn run(mut self, jobs: &Receiver<WriterJob>) {
        let _ended = WriterEnded(Arc::clone(&self.disk_health), Arc::clone(&self.metrics));
        loop {
            let wait = match self.vacuum.is_running() && self.database.is_some() {
                true => Duration::ZERO,
                false => CHECK_INTERVAL,
            };
            let mut next = match jobs.recv_timeout(wait) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.close(),
            };
            let mut batch = Vec::new();
            while let Some(WriterJob::Change(change, done)) = next {
                batch.push((change, done));
                next = match batch.len() < MAX_BATCH {
                    true => jobs.try_recv().ok(),
                    false => None,
                };
            }
            self.work(batch);
            match next {
                Some(WriterJob::Load(mut sink, progress, sender)) => {
                    let loaded = self.load(&mut *sink, &progress);
                    drop(sink); // frees what only the load needed
                    let _ = sender.send(loaded); // the caller may have left
                }
                Some(WriterJob::Forget(dead)) => self.vacuum.add_dead(dead),
                Some(WriterJob::Close(closed)) => {
                    self.close();
                    let _ = closed.send(()); // the caller may have left
                    return;
                }
                Some(WriterJob::Change(..)) | None => {}
            }
        }
    }

    fn close(self) {
        // Releases the lock and marks the file as closed cleanly.
        if let Some(database) = self.database
            && let Err(error) = database.close()
        {
            error!(path = %self.path.display(), %error, "the store could not be closed cleanly");
        }
    }

    fn work(&mut self, batch: Vec<(StoreChange, ChangeCallback)>) {
        self.disk_health.begin();
        self.apply_batch(batch);
        self.disk_health.end(|| {
            if self.database.is_some() {
                self.metrics.store_up.set(1);
                info!(path = %self.path.display(), "the disk responds again");
            }
        });
    }

    /// Commits a batch, reports the outcome of each change, and runs the next vacuum slice.
    fn apply_batch(&mut self, batch: Vec<(StoreChange, ChangeCallback)>) {
        if self.last_check.elapsed() >= CHECK_INTERVAL {
            self.check_file();
        }
        if batch.is_empty() && !self.vacuum.is_running() {
            return;
        }
        let outcome = match self.is_usable() {
            true => self.commit(&batch),
            false => Err(self.refusal()),
        };
        let label = match outcome {
            Ok(()) => StoreOutcome::Committed,
            Err(_) => StoreOutcome::Refused,
        };
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        self.metrics.store_changes.add_many(label, count);
        for (_, done) in batch {
            done(outcome.clone());
        }
    }

    fn refusal(&self) -> StoreUnavailable {
        StoreUnavailable::Failed(
            self.disk_health
                .trouble()
                .unwrap_or_else(|| "closed".into()),
        )
    }

    fn commit(&mut self, batch: &[(StoreChange, ChangeCallback)]) -> Result<(), StoreUnavailable> {
        let begin = Instant::now();
        // The engine may panic over a damaged file: that must only make the file unusable until it
        // is opened again, not end the thread.
        let written = catch_unwind(AssertUnwindSafe(|| self.write(batch)));
        let written =
            written.unwrap_or_else(|_| Err(BatchFailure("the file is damaged".to_owned())));
        let took = begin.elapsed().as_secs_f64();
        self.metrics.store_commit_seconds.observe(took);
        written.map_err(|trouble| {
            self.fail(&trouble);
            self.refusal()
        })
    }

    /// One transaction. `undo` has the old rows until it is certain whether the commit took place.
    fn write(&mut self, batch: &[(StoreChange, ChangeCallback)]) -> Result<(), BatchFailure> {
        let database = self
            .database
            .as_ref()
            .ok_or_else(|| BatchFailure("closed".to_owned()))?;
        let txn = database.begin_write()?;
        let mut writes = WriteBatch::default();
        for (change, _) in batch {
            writes.add(change, &txn)?;
        }
        let moved = std::mem::take(&mut writes.moved);
        let undo = writes.write(&txn, self.batch + 1)?;
        let slice = self.vacuum.slice(&txn)?;
        self.undo = Some(undo);
        txn.commit()?;
        self.undo = None;
        self.batch += 1;
        self.vacuum.add_ended(&moved);
        if let Some(slice) = slice {
            self.vacuum.commit_slice(slice);
            debug!(
                removed = slice.removed(),
                "removed dead tokens from the disk"
            );
        }
        Ok(())
    }

    fn load(
        &mut self,
        sink: &mut dyn GrantSink,
        progress: &LoadProgress,
    ) -> Result<LoadedGrants, StoreUnavailable> {
        let Some(database) = &self.database else {
            return Err(self.refusal());
        };
        let read = || read::in_parts(database, &self.path, sink, progress);
        let read = catch_unwind(AssertUnwindSafe(read));
        match read {
            Err(_) => Err(StoreUnavailable::Failed("the file is damaged".into())),
            Ok(Ok((loaded, ended))) => {
                self.vacuum.add_dead(loaded.expired + loaded.ended);
                self.vacuum.add_ended(&ended);
                Ok(loaded)
            }
            Ok(Err(error)) => Err(StoreUnavailable::Failed(error.to_string().into())),
        }
    }

    fn fail(&mut self, failure: &BatchFailure) {
        self.database = None; // the engine refuses everything after an error
        self.last_attempt = Instant::now();
        self.metrics.store_up.set(0);
        if self.disk_health.set(Some(failure.0.as_str().into())) {
            error!(path = %self.path.display(), error = failure.0,
                "the store cannot be written; logins, logouts and changes of users and keys are \
                 refused until it can, requests with known tokens are served");
        }
    }

    /// Whether the store can be written; tries to open it again if it has failed.
    fn is_usable(&mut self) -> bool {
        if self.database.is_some() && self.file != identity(&self.path) {
            let gone = OpenError::Gone {
                path: self.path.clone(),
            };
            self.fail(&BatchFailure(gone.to_string()));
        }
        if self.database.is_none() && self.last_attempt.elapsed() >= CHECK_INTERVAL {
            match self.reopen() {
                Ok(()) => {
                    self.metrics.store_up.set(1);
                    self.disk_health.set(None);
                    info!(path = %self.path.display(), "the store can be written again");
                }
                Err(trouble) => self.fail(&trouble),
            }
        }
        self.database.is_some()
    }

    /// Checks the file about once a second, under load or not.
    fn check_file(&mut self) {
        self.last_check = Instant::now();
        if !self.is_usable() {
            return;
        }
        let bytes = std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        let gauge = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.store_bytes.set(gauge);
        match self.rows() {
            Ok(rows) => self.vacuum.start_if_due(rows),
            Err(trouble) => self.fail(&trouble),
        }
    }

    fn rows(&self) -> Result<u64, BatchFailure> {
        let Some(database) = &self.database else {
            return Ok(0);
        };
        let txn = database.begin_read()?;
        Ok(txn.open_table(GRANTS)?.len()?)
    }

    fn reopen(&mut self) -> Result<(), BatchFailure> {
        let opened = (self.opener)().map_err(|error| BatchFailure(error.to_string()))?;
        let found = last_batch(&opened)?;
        if found < self.batch {
            let lost = "an older file has replaced it; restart the gateway to use that one";
            return Err(BatchFailure(lost.to_owned()));
        }
        // A commit that failed and took place is undone. This first write also shows that the disk
        // can be written again.
        let undo = self.undo.as_ref().filter(|_| found > self.batch);
        let txn = opened.begin_write()?;
        if let Some(undo) = undo {
            undo.restore(&txn)?;
        }
        txn.open_table(META)?.insert(BATCH_KEY, found + 1)?;
        txn.commit()?;
        self.undo = None;
        self.batch = found + 1;
        self.file = identity(&self.path);
        self.database = Some(opened);
        Ok(())
    }
}

/// Marks the store as closed, however the thread ends.
struct WriterEnded(Arc<DiskHealth>, Arc<Metrics>);

impl Drop for WriterEnded {
    fn drop(&mut self) {
        self.1.store_up.set(0);
        self.0.set(Some("it is closed".into()));
    }
}

/// Device and inode of the file at `path`.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Number of the last commit in the file.
fn last_batch(database: &Database) -> Result<u64, redb::Error> {
    let txn = database.begin_read()?;
    let table = txn.open_table(META)?;
    let batch = table.get(BATCH_KEY)?;
    Ok(batch.map_or(0, |batch| batch.value()))
}

/// Opens the file, which must exist.
pub(super) fn file_opener(path: PathBuf) -> DatabaseOpener {
    Box::new(move || open::open(&path, MissingFile::Refuse, open::CACHE_OF_A_GATE))
}
