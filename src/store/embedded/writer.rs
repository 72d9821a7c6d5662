//! The one thread that writes. It takes what has queued up, commits it in one
//! transaction with one sync, and answers all of it: while a sync runs the next batch
//! gathers, so the rate of changes does not hang on the rate of syncs.
//!
//! After an error the engine must be opened anew. Until that works changes are
//! refused at once; what is known already goes on. Whether a commit that failed took
//! place all the same is looked up then, and undone: refused means not done.

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

/// More in one transaction makes the first of them wait too long.
const MOST_IN_A_BATCH: usize = 1024;
/// Between two tries to open a store that has failed, and two looks at what is to be
/// forgotten.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });

/// How the file is opened; a test opens something else.
pub(super) type DatabaseOpener = Box<dyn Fn() -> Result<Database, OpenError> + Send>;

pub(super) struct StoreWriter {
    path: PathBuf,
    opener: DatabaseOpener,
    /// None after a failure.
    database: Option<Database>,
    /// Which file that is, so that another in its place is noticed.
    file: Option<(u64, u64)>,
    /// The last batch that was committed for sure.
    batch: u64,
    /// What a failed commit may have done.
    doubt: Option<UndoLog>,
    tried: Instant,
    looked: Instant,
    walk: Vacuum,
    condition: Arc<DiskHealth>,
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
        condition: Arc<DiskHealth>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, redb::Error> {
        Ok(Self {
            batch: last_batch(&database)?,
            database: Some(database),
            file: identity(path),
            path: path.to_owned(),
            opener,
            doubt: None,
            tried: Instant::now(),
            looked: Instant::now(),
            walk: Vacuum::new(),
            condition,
            metrics,
        })
    }

    /// Works until told to close, or until nobody is left who could ask for anything.
    pub(super) fn run(mut self, jobs: &Receiver<WriterJob>) {
        let _ended = WriterEnded(Arc::clone(&self.condition), Arc::clone(&self.metrics));
        loop {
            let patience = match self.walk.is_under_way() && self.database.is_some() {
                true => Duration::ZERO,
                false => PAUSE,
            };
            let mut next = match jobs.recv_timeout(patience) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.close(),
            };
            let mut batch = Vec::new();
            while let Some(WriterJob::Change(change, done)) = next {
                batch.push((change, done));
                next = match batch.len() < MOST_IN_A_BATCH {
                    true => jobs.try_recv().ok(),
                    false => None,
                };
            }
            self.work(batch);
            match next {
                Some(WriterJob::Load(mut intake, progress, answer)) => {
                    let loaded = self.load(&mut *intake, &progress);
                    drop(intake); // what it took is in use, what it needed is not
                    let _ = answer.send(loaded); // whoever asked may have left
                }
                Some(WriterJob::Forget(dead)) => self.walk.add_dead(dead),
                Some(WriterJob::Close(closed)) => {
                    self.close();
                    let _ = closed.send(()); // the same
                    return;
                }
                Some(WriterJob::Change(..)) | None => {}
            }
        }
    }

    fn close(self) {
        // Takes the lock off and marks the file as left cleanly.
        if let Some(database) = self.database
            && let Err(error) = database.close()
        {
            error!(path = %self.path.display(), %error, "the store could not be closed cleanly");
        }
    }

    fn work(&mut self, batch: Vec<(StoreChange, ChangeCallback)>) {
        self.condition.begin();
        self.apply_batch(batch);
        self.condition.end(|| {
            if self.database.is_some() {
                self.metrics.store_up.set(1);
                info!(path = %self.path.display(), "the disk answers again");
            }
        });
    }

    /// Commits a batch, tells each of its changes what became of it, and takes the
    /// walk a step further.
    fn apply_batch(&mut self, batch: Vec<(StoreChange, ChangeCallback)>) {
        if self.looked.elapsed() >= PAUSE {
            self.check_file();
        }
        if batch.is_empty() && !self.walk.is_under_way() {
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
        StoreUnavailable::Failed(self.condition.trouble().unwrap_or_else(|| "closed".into()))
    }

    fn commit(&mut self, batch: &[(StoreChange, ChangeCallback)]) -> Result<(), StoreUnavailable> {
        let begin = Instant::now();
        // The engine may panic over a file that was damaged under it: that ends the file's
        // use until it is opened anew, not the thread.
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

    /// One transaction. What it does to the rows is remembered in `doubt` as long as
    /// nobody can say whether it took place.
    fn write(&mut self, batch: &[(StoreChange, ChangeCallback)]) -> Result<(), BatchFailure> {
        let database = self.database.as_ref();
        let database = database.ok_or_else(|| BatchFailure("closed".to_owned()))?;
        let txn = database.begin_write()?;
        let mut round = WriteBatch::default();
        for (change, _) in batch {
            round.take(change, &txn)?;
        }
        let moved = std::mem::take(&mut round.moved);
        let before = round.write(&txn, self.batch + 1)?;
        let slice = self.walk.slice(&txn)?;
        self.doubt = Some(before);
        txn.commit()?;
        self.doubt = None;
        self.batch += 1;
        self.walk.ended(&moved);
        if let Some(slice) = slice {
            self.walk.done(slice);
            debug!(removed = slice.removed(), "dead tokens taken off the disk");
        }
        Ok(())
    }

    fn load(
        &mut self,
        intake: &mut dyn GrantSink,
        progress: &LoadProgress,
    ) -> Result<LoadedGrants, StoreUnavailable> {
        let Some(database) = &self.database else {
            return Err(self.refusal());
        };
        let read = || read::in_parts(database, &self.path, intake, progress);
        let read = catch_unwind(AssertUnwindSafe(read));
        match read {
            Err(_) => Err(StoreUnavailable::Failed("the file is damaged".into())),
            Ok(Ok((loaded, ended))) => {
                self.walk.add_dead(loaded.expired + loaded.ended);
                self.walk.ended(&ended);
                Ok(loaded)
            }
            Ok(Err(error)) => Err(StoreUnavailable::Failed(error.to_string().into())),
        }
    }

    fn fail(&mut self, trouble: &BatchFailure) {
        self.database = None; // the engine refuses everything after an error
        self.tried = Instant::now();
        self.metrics.store_up.set(0);
        if self.condition.set(Some(trouble.0.as_str().into())) {
            error!(path = %self.path.display(), error = trouble.0,
                "the store cannot be written; logins, logouts and changes of users and keys are \
                 refused until it can, known tokens go on");
        }
    }

    /// Ready to write, after another try if it was not.
    fn is_usable(&mut self) -> bool {
        if self.database.is_some() && self.file != identity(&self.path) {
            let gone = OpenError::Gone {
                path: self.path.clone(),
            };
            self.fail(&BatchFailure(gone.to_string()));
        }
        if self.database.is_none() && self.tried.elapsed() >= PAUSE {
            match self.reopen() {
                Ok(()) => {
                    self.metrics.store_up.set(1);
                    self.condition.set(None);
                    info!(path = %self.path.display(), "the store can be written again");
                }
                Err(trouble) => self.fail(&trouble),
            }
        }
        self.database.is_some()
    }

    /// What is done about once a second, load or none.
    fn check_file(&mut self) {
        self.looked = Instant::now();
        if !self.is_usable() {
            return;
        }
        let facts = std::fs::metadata(&self.path);
        let bytes = facts.map_or(0, |facts| facts.len());
        let gauge = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.store_bytes.set(gauge);
        match self.rows() {
            Ok(rows) => self.walk.consider(rows),
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
            let lost = "an older file has taken its place; restart the gate to use that one";
            return Err(BatchFailure(lost.to_owned()));
        }
        // Refused means not done: a commit that failed and took place is undone. This
        // first write also shows that the disk takes writes again.
        let doubt = self.doubt.as_ref().filter(|_| found > self.batch);
        let txn = opened.begin_write()?;
        if let Some(before) = doubt {
            before.restore(&txn)?;
        }
        txn.open_table(META)?.insert(BATCH_KEY, found + 1)?;
        txn.commit()?;
        self.doubt = None;
        self.batch = found + 1;
        self.file = identity(&self.path);
        self.database = Some(opened);
        Ok(())
    }
}

/// Tells that nothing is written any more, however the thread came to its end.
struct WriterEnded(Arc<DiskHealth>, Arc<Metrics>);

impl Drop for WriterEnded {
    fn drop(&mut self) {
        self.1.store_up.set(0);
        self.0.set(Some("it is closed".into()));
    }
}

/// The file at `path`, whatever its name will be tomorrow.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let facts = std::fs::metadata(path).ok()?;
    Some((facts.dev(), facts.ino()))
}

/// The number of the last commit in the file.
fn last_batch(database: &Database) -> Result<u64, redb::Error> {
    let txn = database.begin_read()?;
    let table = txn.open_table(META)?;
    let batch = table.get(BATCH_KEY)?;
    Ok(batch.map_or(0, |batch| batch.value()))
}

/// Opens the file that must be there.
pub(super) fn at(path: PathBuf) -> DatabaseOpener {
    Box::new(move || open::open(&path, MissingFile::Refuse, open::CACHE_OF_A_GATE))
}
