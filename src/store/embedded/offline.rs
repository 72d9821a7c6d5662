//! The file while no gate runs: looked at, written out, filled, made smaller.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableTable as _, ReadableTableMetadata as _};
use redb::{TableHandle as _, WriteTransaction};

use super::OpenError;
use super::open::{self, MissingFile, storage};
use super::read;
use super::tables::{BATCH_KEY, GRANTS, HOLDERS, KEYS, LEASES, META, USERS};
use super::vacuum::Vacuum;
use super::write_batch::WriteBatch;
use crate::clock;
use crate::store::{ExportRecord, RecordCounts, StoreChange};

/// Records written before the next are read.
const CHUNK: usize = 4096;

/// The open file; nobody else has it meanwhile.
#[derive(Debug)]
pub struct OfflineStore {
    path: PathBuf,
    database: Database,
}

/// Whether records may be added to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportMode {
    IntoEmpty,
    Merge,
}

/// How large the file was, and is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactedSize {
    pub before: u64,
    pub after: u64,
    /// Rows of tokens that were over.
    pub removed: u64,
}

impl OfflineStore {
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::with(path, MissingFile::Refuse)
    }

    /// The same, or a new file.
    pub fn open_or_make(path: &Path) -> Result<Self, OpenError> {
        Self::with(path, MissingFile::Make)
    }

    fn with(path: &Path, missing: MissingFile) -> Result<Self, OpenError> {
        Ok(Self {
            path: path.to_owned(),
            database: open::open(path, missing, open::CACHE_OF_A_COMMAND)?,
        })
    }

    /// Every record that counts, in an order that an import can follow.
    pub fn records<E: From<OpenError>>(
        &self,
        mut each: impl FnMut(&ExportRecord) -> Result<(), E>,
    ) -> Result<RecordCounts, E> {
        let mut tally = RecordCounts::default();
        let mut failed = None;
        let mut put = |record: ExportRecord| {
            if failed.is_none() {
                tally.count(&record);
                failed = each(&record).err();
            }
        };
        let wrong = |error| E::from(told(&self.path, error));
        let contents = read::contents(&self.database).map_err(wrong)?;
        contents
            .users
            .into_iter()
            .map(ExportRecord::User)
            .for_each(&mut put);
        contents
            .keys
            .into_iter()
            .map(ExportRecord::Key)
            .for_each(&mut put);
        contents
            .leases
            .into_iter()
            .map(ExportRecord::Lease)
            .for_each(&mut put);
        read::epochs(&self.database, |epoch| put(ExportRecord::Epoch(epoch))).map_err(wrong)?;
        let read = read::grants(&self.database, &mut |grants| {
            for grant in grants {
                put(ExportRecord::Grant(grant.record()));
            }
        });
        let (loaded, _) = read.map_err(wrong)?;
        tally.over = loaded.expired + loaded.ended;
        failed.map_or(Ok(tally), Err)
    }

    /// Reads every page and every row.
    pub fn check(&mut self) -> Result<RecordCounts, OpenError> {
        let path = self.path.clone();
        let whole = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.database.check_integrity()
        }));
        let damaged = |reason: String| OpenError::Damaged {
            path: path.clone(),
            reason,
        };
        match whole {
            Err(_) => return Err(damaged("it cannot be read".to_owned())),
            Ok(Err(error)) => return Err(damaged(error.to_string())),
            Ok(Ok(_)) => {}
        }
        self.records(|_| Ok(()))
    }

    /// Begins to fill it; nothing is there before `Import::commit`.
    pub fn import(&self) -> Result<ImportRun<'_>, OpenError> {
        let begin = || -> Result<(WriteTransaction, bool), redb::Error> {
            let txn = self.database.begin_write()?;
            let is_empty = is_empty(&txn)?;
            Ok((txn, is_empty))
        };
        let (txn, is_empty) = begin().map_err(|error| storage(&self.path, error))?;
        Ok(ImportRun {
            offline: self,
            txn,
            is_empty,
            round: WriteBatch::default(),
            waiting: 0,
            tally: RecordCounts::default(),
        })
    }

    /// Takes out what is over, and gives the room back to the disk.
    pub fn compact(&mut self) -> Result<CompactedSize, OpenError> {
        let path = self.path.clone();
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |facts| facts.len());
        let before = size(&path);
        let work = || -> Result<u64, redb::Error> {
            let removed = self.remove_dead()?;
            while self.database.compact()? {}
            Ok(removed)
        };
        let mut work = work;
        let removed = work().map_err(|error| storage(&path, error))?;
        Ok(CompactedSize {
            before,
            after: size(&path),
            removed,
        })
    }

    fn remove_dead(&mut self) -> Result<u64, redb::Error> {
        let mut numbers = BTreeSet::new();
        let ended = match read::grants(&self.database, &mut |_| {}) {
            Ok((_, ended)) => ended,
            Err(read::LoadError::Engine(error)) => return Err(error),
            Err(row @ read::LoadError::Row { .. }) => {
                return Err(redb::Error::Corrupted(row.to_string()));
            }
        };
        let mut walk = Vacuum::new();
        walk.ended(&ended);
        let txn = self.database.begin_write()?;
        let removed = walk.all(&txn, &mut numbers)?;
        {
            let users = txn.open_table(USERS)?;
            let mut holders = txn.open_table(HOLDERS)?;
            let mut idle = Vec::new();
            for row in holders.iter()? {
                let (name, holder) = row?;
                let number = super::tables::UserRow::decode(holder.value()).number;
                if !numbers.contains(&number) && users.get(name.value())?.is_none() {
                    idle.push(name.value().to_owned());
                }
            }
            for name in idle {
                holders.remove(name.as_str())?;
            }
        }
        txn.commit()?;
        Ok(removed)
    }
}

/// An import under way: one transaction.
pub struct ImportRun<'a> {
    offline: &'a OfflineStore,
    txn: WriteTransaction,
    is_empty: bool,
    round: WriteBatch,
    waiting: usize,
    tally: RecordCounts,
}

impl std::fmt::Debug for ImportRun<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Import")
            .field("tally", &self.tally)
            .finish_non_exhaustive()
    }
}

impl ImportRun<'_> {
    pub fn may(&self, mode: ImportMode) -> bool {
        mode == ImportMode::Merge || self.is_empty
    }

    pub fn put(&mut self, record: ExportRecord) -> Result<(), OpenError> {
        let put = self.try_put(record);
        put.map_err(|error| storage(&self.offline.path, error))
    }

    fn try_put(&mut self, record: ExportRecord) -> Result<(), redb::Error> {
        let change = match record {
            ExportRecord::Epoch(epoch) => {
                self.tally.epochs += 1;
                return self.round.take_epoch(&epoch, &self.txn);
            }
            ExportRecord::Grant(grant) if grant.ends_millis <= clock::unix_millis() => {
                self.tally.over += 1;
                return Ok(());
            }
            ExportRecord::Grant(grant) => {
                match self.round.take_kept(&grant, &self.txn)? {
                    true => self.tally.grants += 1,
                    false => self.tally.over += 1,
                }
                return self.step();
            }
            ExportRecord::User(user) => StoreChange::PutUser(user),
            ExportRecord::Key(key) => StoreChange::PutKey(key),
            ExportRecord::Lease(lease) => StoreChange::PutLease(lease),
        };
        let (table, name) = match &change {
            StoreChange::PutUser(user) => (USERS, &user.name),
            StoreChange::PutKey(key) => (KEYS, &key.name),
            StoreChange::PutLease(lease) => (LEASES, &lease.upstream),
            _ => return Ok(()),
        };
        let is_known = self.txn.open_table(table)?.get(&**name)?.is_some();
        if is_known {
            self.tally.known += 1;
            return Ok(());
        }
        match table.name() {
            name if name == USERS.name() => self.tally.users += 1,
            name if name == KEYS.name() => self.tally.keys += 1,
            _ => self.tally.leases += 1,
        }
        self.round.take(&self.as_second(change)?, &self.txn)
    }

    /// There is one first admin: the one that is here already.
    fn as_second(&self, change: StoreChange) -> Result<StoreChange, redb::Error> {
        match change {
            StoreChange::PutUser(mut user) if !self.is_empty && user.is_first_admin => {
                user.is_first_admin = false;
                user.configured = None;
                Ok(StoreChange::PutUser(user))
            }
            other => Ok(other),
        }
    }

    fn step(&mut self) -> Result<(), redb::Error> {
        self.waiting += 1;
        if self.waiting >= CHUNK {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), redb::Error> {
        self.waiting = 0;
        let batch = {
            let table = self.txn.open_table(META)?;
            let batch = table.get(BATCH_KEY)?;
            batch.map_or(0, |batch| batch.value())
        };
        std::mem::take(&mut self.round).write(&self.txn, batch + 1)?;
        Ok(())
    }

    pub fn commit(mut self) -> Result<RecordCounts, OpenError> {
        let path = &self.offline.path;
        let flushed = self.flush();
        flushed.map_err(|error| storage(path, error))?;
        let committed = self.txn.commit();
        committed.map_err(|error| storage(path, error.into()))?;
        Ok(self.tally)
    }
}

fn is_empty(txn: &WriteTransaction) -> Result<bool, redb::Error> {
    for table in [USERS, KEYS, LEASES] {
        if !txn.open_table(table)?.is_empty()? {
            return Ok(false);
        }
    }
    Ok(txn.open_table(GRANTS)?.is_empty()? && txn.open_table(HOLDERS)?.is_empty()?)
}

fn told(path: &Path, error: read::LoadError) -> OpenError {
    match error {
        read::LoadError::Engine(error) => storage(path, error),
        row @ read::LoadError::Row { .. } => OpenError::Damaged {
            path: path.to_owned(),
            reason: row.to_string(),
        },
    }
}
