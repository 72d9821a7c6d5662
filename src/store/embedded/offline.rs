//! The file while no gateway runs: for export, import, check and compact.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableTable as _, ReadableTableMetadata as _};
use redb::{TableHandle as _, WriteTransaction};

use super::OpenError;
use super::open::{self, MissingFile, storage};
use super::read;
use super::tables::{BATCH_KEY, GRANTS, KEYS, LEASES, META, TOKEN_USERS, USERS};
use super::vacuum::Vacuum;
use super::write_batch::WriteBatch;
use crate::clock;
use crate::store::{ExportRecord, RecordCounts, StoreChange};

/// Grants written before more are read.
const MAX_UNWRITTEN: usize = 4096;

/// The open file; no other process can open it meanwhile.
#[derive(Debug)]
pub struct OfflineStore {
    path: PathBuf,
    database: Database,
}

/// Whether an import may add to records that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportMode {
    IntoEmpty,
    Merge,
}

/// The size of the file in bytes, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactedSize {
    pub before: u64,
    pub after: u64,
    /// Rows of dead tokens removed.
    pub removed: u64,
}

impl OfflineStore {
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::with(path, MissingFile::Refuse)
    }

    /// Opens the file, or creates it.
    pub fn open_or_create(path: &Path) -> Result<Self, OpenError> {
        Self::with(path, MissingFile::Create)
    }

    fn with(path: &Path, missing: MissingFile) -> Result<Self, OpenError> {
        Ok(Self {
            path: path.to_owned(),
            database: open::open(path, missing, open::CACHE_OF_A_COMMAND)?,
        })
    }

    /// Visits every live record, in an order that an import can follow.
    pub fn records<E: From<OpenError>>(
        &self,
        mut each: impl FnMut(&ExportRecord) -> Result<(), E>,
    ) -> Result<RecordCounts, E> {
        let mut counts = RecordCounts::default();
        let mut failed = None;
        let mut put = |record: ExportRecord| {
            if failed.is_none() {
                counts.count(&record);
                failed = each(&record).err();
            }
        };
        let wrong = |error| E::from(read_error(&self.path, error));
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
        counts.over = loaded.expired + loaded.ended;
        failed.map_or(Ok(counts), Err)
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

    /// Begins an import; nothing is changed before `ImportRun::commit`.
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
            batch: WriteBatch::default(),
            unwritten: 0,
            counts: RecordCounts::default(),
        })
    }

    /// Removes dead rows, and returns free space to the disk.
    pub fn compact(&mut self) -> Result<CompactedSize, OpenError> {
        let path = self.path.clone();
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |facts| facts.len());
        let before = size(&path);
        let mut work = || -> Result<u64, redb::Error> {
            let removed = self.remove_dead()?;
            while self.database.compact()? {}
            Ok(removed)
        };
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
        let mut vacuum = Vacuum::new();
        vacuum.add_ended(&ended);
        let txn = self.database.begin_write()?;
        let removed = vacuum.remove_all(&txn, &mut numbers)?;
        {
            let users = txn.open_table(USERS)?;
            let mut token_users = txn.open_table(TOKEN_USERS)?;
            let mut idle = Vec::new();
            for row in token_users.iter()? {
                let (name, token_user) = row?;
                let number = super::tables::UserRow::decode(token_user.value()).number;
                if !numbers.contains(&number) && users.get(name.value())?.is_none() {
                    idle.push(name.value().to_owned());
                }
            }
            for name in idle {
                token_users.remove(name.as_str())?;
            }
        }
        txn.commit()?;
        Ok(removed)
    }
}

/// An import: one transaction.
pub struct ImportRun<'a> {
    offline: &'a OfflineStore,
    txn: WriteTransaction,
    is_empty: bool,
    batch: WriteBatch,
    unwritten: usize,
    counts: RecordCounts,
}

impl std::fmt::Debug for ImportRun<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Import")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl ImportRun<'_> {
    pub fn is_allowed(&self, mode: ImportMode) -> bool {
        mode == ImportMode::Merge || self.is_empty
    }

    pub fn put(&mut self, record: ExportRecord) -> Result<(), OpenError> {
        let put = self.try_put(record);
        put.map_err(|error| storage(&self.offline.path, error))
    }

    fn try_put(&mut self, record: ExportRecord) -> Result<(), redb::Error> {
        let change = match record {
            ExportRecord::Epoch(epoch) => {
                self.counts.epochs += 1;
                return self.batch.import_epoch(&epoch, &self.txn);
            }
            ExportRecord::Grant(grant) if grant.ends_millis <= clock::unix_millis() => {
                self.counts.over += 1;
                return Ok(());
            }
            ExportRecord::Grant(grant) => {
                match self.batch.import_grant(&grant, &self.txn)? {
                    true => self.counts.grants += 1,
                    false => self.counts.over += 1,
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
            self.counts.known += 1;
            return Ok(());
        }
        match table.name() {
            name if name == USERS.name() => self.counts.users += 1,
            name if name == KEYS.name() => self.counts.keys += 1,
            _ => self.counts.leases += 1,
        }
        self.batch
            .add(&self.without_first_admin(change)?, &self.txn)
    }

    /// There is one first admin: the one that the store has already.
    fn without_first_admin(&self, change: StoreChange) -> Result<StoreChange, redb::Error> {
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
        self.unwritten += 1;
        if self.unwritten >= MAX_UNWRITTEN {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), redb::Error> {
        self.unwritten = 0;
        let batch = {
            let table = self.txn.open_table(META)?;
            let batch = table.get(BATCH_KEY)?;
            batch.map_or(0, |batch| batch.value())
        };
        std::mem::take(&mut self.batch).write(&self.txn, batch + 1)?;
        Ok(())
    }

    pub fn commit(mut self) -> Result<RecordCounts, OpenError> {
        let path = &self.offline.path;
        let flushed = self.flush();
        flushed.map_err(|error| storage(path, error))?;
        let committed = self.txn.commit();
        committed.map_err(|error| storage(path, error.into()))?;
        Ok(self.counts)
    }
}

fn is_empty(txn: &WriteTransaction) -> Result<bool, redb::Error> {
    for table in [USERS, KEYS, LEASES] {
        if !txn.open_table(table)?.is_empty()? {
            return Ok(false);
        }
    }
    Ok(txn.open_table(GRANTS)?.is_empty()? && txn.open_table(TOKEN_USERS)?.is_empty()?)
}

fn read_error(path: &Path, error: read::LoadError) -> OpenError {
    match error {
        read::LoadError::Engine(error) => storage(path, error),
        row @ read::LoadError::Row { .. } => OpenError::Damaged {
            path: path.to_owned(),
            reason: row.to_string(),
        },
    }
}
