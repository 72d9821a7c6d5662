//! Reading the whole file: at the start, and for an export.

use std::collections::HashMap;
use std::ops::{Bound, Range};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};

use redb::{
    AccessGuard, Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
};
use redb::{ReadTransaction, TableDefinition};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::warn;

use super::readahead;
use super::tables::{
    GRANTS, GrantRow, KEYS, LEASES, META, PREFIXES, TOKEN_USERS, USERS, UserRow, WALL_KEY,
    prefix_of, start_of,
};
use crate::clock;
use crate::store::{GrantSink, LiveGrant, LoadedGrants, StoreContents, UserEpoch, threads_for};

/// A clock at least this far behind the last commit has been set back.
const MIN_SET_BACK_MILLIS: u64 = 60_000;
/// Rows read and counted together.
const BATCH: usize = if cfg!(test) { 16 } else { 512 };
/// Most bytes of the file per row; in a file with more, most of the space is free.
const MAX_ROW_BYTES: u64 = 256;

/// Why the file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Engine(#[from] redb::Error),
    #[error("table {table} has a row that cannot be understood: {reason}")]
    Row { table: String, reason: String },
}

/// Users, keys and leases: few, and needed at once.
pub(super) fn contents(database: &Database) -> Result<StoreContents, LoadError> {
    let txn = database.begin_read().map_err(redb::Error::from)?;
    warn_if_clock_was_set_back(&txn)?;
    Ok(StoreContents {
        users: records(&txn, USERS)?,
        keys: records(&txn, KEYS)?,
        leases: records(&txn, LEASES)?,
    })
}

fn records<R: DeserializeOwned>(
    txn: &ReadTransaction,
    definition: TableDefinition<'_, &'static str, &'static str>,
) -> Result<Vec<R>, LoadError> {
    use redb::TableHandle as _;
    let name = definition.name().to_owned();
    let table = txn.open_table(definition).map_err(redb::Error::from)?;
    let mut records = Vec::new();
    for row in table.iter().map_err(redb::Error::from)? {
        let (_, text) = row.map_err(redb::Error::from)?;
        let record = serde_json::from_str(text.value());
        records.push(record.map_err(|error| LoadError::Row {
            table: name.clone(),
            reason: error.to_string(),
        })?);
    }
    Ok(records)
}

/// Warns if the clock was set back: across a restart tokens expire by the wall clock.
fn warn_if_clock_was_set_back(txn: &ReadTransaction) -> Result<(), redb::Error> {
    let table = txn.open_table(META)?;
    let last = table.get(WALL_KEY)?.map_or(0, |last| last.value());
    let behind = last.saturating_sub(clock::unix_millis());
    if behind > MIN_SET_BACK_MILLIS {
        warn!(
            seconds = behind / 1000,
            "this host's clock is behind the store's last change; stored tokens expire that \
                 much later"
        );
    }
    Ok(())
}

/// Visits every user with an epoch or a count of tokens.
pub(super) fn epochs(
    database: &Database,
    mut each: impl FnMut(UserEpoch),
) -> Result<(), LoadError> {
    let txn = database.begin_read().map_err(redb::Error::from)?;
    let table = txn.open_table(TOKEN_USERS).map_err(redb::Error::from)?;
    for row in table.iter().map_err(redb::Error::from)? {
        let (name, token_user) = row.map_err(redb::Error::from)?;
        let token_user = UserRow::decode(token_user.value());
        each(UserEpoch {
            user: name.value().into(),
            epoch: token_user.epoch,
            issued: token_user.issued,
        });
    }
    Ok(())
}

/// Numbers of users, each with the epoch from which its grants are live.
pub(super) type EndedUsers = Vec<(u32, u64)>;

/// The users of the grants by number. What is read for each of millions of grants has an array of
/// its own, so that much of it fits into a core's cache.
struct TokenUserTable {
    /// `UNUSED` where a number is not in use.
    epochs: Vec<u64>,
    names: Vec<Arc<str>>,
}

const UNUSED: u64 = u64::MAX;

impl TokenUserTable {
    /// Reads the table; if it is long, two threads read it from both ends.
    fn of(database: &Database) -> Result<Self, redb::Error> {
        let txn = database.begin_read()?;
        let table = txn.open_table(TOKEN_USERS)?;
        let count = table.len()? as usize;
        let late = if threads_for(count) > 1 { count / 2 } else { 0 };
        let (first, last) = thread::scope(|scope| {
            let last = || decoded(table.iter()?.rev().take(late));
            let last = (late > 0).then(|| scope.spawn(last));
            let first = table.iter().map_err(redb::Error::from);
            let first = first.and_then(|rows| decoded(rows.take(count - late)));
            (first, last.map_or(Ok(Vec::new()), joined))
        });
        Ok(Self::by_number(first?.into_iter().chain(last?)))
    }

    fn by_number(rows: impl Iterator<Item = (UserRow, Arc<str>)>) -> Self {
        let mut token_users = Self {
            epochs: Vec::new(),
            names: Vec::new(),
        };
        let nameless: Arc<str> = "".into();
        for (token_user, name) in rows {
            let index = usize::try_from(token_user.number).unwrap_or(usize::MAX);
            if token_users.epochs.len() <= index {
                token_users.epochs.resize(index + 1, UNUSED);
                token_users.names.resize(index + 1, Arc::clone(&nameless));
            }
            token_users.epochs[index] = token_user.epoch;
            token_users.names[index] = name;
        }
        token_users
    }

    fn epoch(&self, number: u32) -> u64 {
        let epoch = self.epochs.get(number as usize);
        epoch.copied().unwrap_or(UNUSED)
    }
}

type TokenUserRow<'a> = (
    AccessGuard<'a, &'static str>,
    AccessGuard<'a, &'static [u8; UserRow::BYTES]>,
);

fn decoded<'a>(
    rows: impl Iterator<Item = Result<TokenUserRow<'a>, redb::StorageError>>,
) -> Result<Vec<(UserRow, Arc<str>)>, redb::Error> {
    let decoded = rows.map(|row| {
        let (name, token_user) = row?;
        Ok((UserRow::decode(token_user.value()), name.value().into()))
    });
    decoded.collect()
}

/// Visits every live grant, in the order of the file.
pub(super) fn grants(
    database: &Database,
    each: &mut dyn FnMut(&[LiveGrant<'_>]),
) -> Result<(LoadedGrants, EndedUsers), LoadError> {
    let begin = Instant::now();
    let progress = LoadProgress::default(); // not shown
    let mut part = LoadedPart::default();
    let token_users = TokenUserTable::of(database)?;
    part.read(database, 0..PREFIXES, &token_users, each, &progress)?;
    Ok(part.finish(begin))
}

/// Passes every live grant to `sink`, with as many threads as there are cores; each reads a part
/// of the file at `path`.
pub(super) fn in_parts(
    database: &Database,
    path: &Path,
    sink: &mut dyn GrantSink,
    progress: &LoadProgress,
) -> Result<(LoadedGrants, EndedUsers), LoadError> {
    let begin = Instant::now();
    let total = progress.begin(database)?;
    let threads = threads_for(total as usize);
    if threads > 1 && readahead::is_worth_it(path, total * MAX_ROW_BYTES) {
        readahead::read_whole(path, |bytes| progress.fetched(bytes));
    }
    let token_users = TokenUserTable::of(database)?;
    sink.users(&token_users.names);
    let length = PREFIXES.div_ceil(threads as u64);
    let parts = PREFIXES.div_ceil(length);
    let read = |number: u64| -> Result<LoadedPart, LoadError> {
        let mut part = LoadedPart::default();
        let prefixes = number * length..PREFIXES.min((number + 1) * length);
        part.read(database, prefixes, &token_users, &mut sink.part(), progress)?;
        Ok(part)
    };
    let all = thread::scope(|scope| {
        let read = &read;
        let threads: Vec<_> = (1..parts)
            .map(|number| scope.spawn(move || read(number)))
            .collect();
        let all = read(0);
        threads.into_iter().map(joined).fold(all, |all, part| {
            let (all, part) = (all?, part?);
            Ok(all.with(part))
        })
    })?;
    if !progress.is_cancelled() {
        sink.finish();
    }
    Ok(all.finish(begin))
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// The progress of a load.
#[derive(Debug, Default)]
pub(super) struct LoadProgress {
    /// Bytes of the file read into the page cache.
    bytes: AtomicU64,
    rows: AtomicU64,
    total: AtomicU64,
    is_cancelled: AtomicBool,
}

impl LoadProgress {
    fn begin(&self, database: &Database) -> Result<u64, redb::Error> {
        let total = database.begin_read()?.open_table(GRANTS)?.len()?;
        self.total.store(total, Ordering::Relaxed);
        Ok(total)
    }

    fn add(&self, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// Counts bytes read ahead; returns whether to go on.
    fn fetched(&self, bytes: u64) -> bool {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        !self.is_cancelled()
    }

    /// Cancels the load: its caller has left, or it has failed.
    pub(super) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Megabytes read ahead, rows read, and rows in all.
    pub(super) fn current(&self) -> (u64, u64, u64) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (
            read(&self.bytes) / 1_000_000,
            read(&self.rows),
            read(&self.total),
        )
    }
}

/// The result for a part of the grants.
#[derive(Default)]
struct LoadedPart {
    loaded: LoadedGrants,
    /// Users that have ended some grants, each with the epoch from which its grants are live.
    ended: HashMap<u32, u64>,
}

impl LoadedPart {
    fn read(
        &mut self,
        database: &Database,
        prefixes: Range<u64>,
        token_users: &TokenUserTable,
        each: &mut dyn FnMut(&[LiveGrant<'_>]),
        progress: &LoadProgress,
    ) -> Result<(), LoadError> {
        let txn = database.begin_read().map_err(redb::Error::from)?;
        let table = txn.open_table(GRANTS).map_err(redb::Error::from)?;
        // A range would compare each row with both of its ends: a tenth slower.
        let first = start_of(prefixes.start);
        let rows = table.lower_bound(Bound::<&[u8; 32]>::Included(&first));
        let mut rows = rows.map_err(redb::Error::from)?;
        let mut batch = Vec::with_capacity(BATCH);
        while let Some((digest, bytes)) = rows.next().map_err(redb::Error::from)? {
            if prefix_of(digest.value()) >= prefixes.end {
                break;
            }
            let Some(grant) = GrantRow::decode(bytes.value()) else {
                return Err(LoadError::Row {
                    table: "grants".to_owned(),
                    reason: "it has an unknown form".to_owned(),
                });
            };
            batch.push((*digest.value(), grant));
            if batch.len() == BATCH {
                progress.add(BATCH as u64);
                self.pass_on(&mut batch, token_users, each);
                if progress.is_cancelled() {
                    return Ok(()); // cancelled
                }
            }
        }
        progress.add(batch.len() as u64);
        self.pass_on(&mut batch, token_users, each);
        Ok(())
    }

    /// Passes on the live ones of a batch. Reads the epochs of all their users first, so that the
    /// processor fetches many of them at a time.
    fn pass_on(
        &mut self,
        batch: &mut Vec<([u8; 32], GrantRow)>,
        token_users: &TokenUserTable,
        each: &mut dyn FnMut(&[LiveGrant<'_>]),
    ) {
        let now = clock::unix_millis();
        let epochs = batch
            .iter()
            .map(|(_, grant)| token_users.epoch(grant.token_user));
        let epochs: Vec<u64> = epochs.collect();
        let mut live = Vec::with_capacity(batch.len());
        for ((digest, grant), from) in batch.iter().zip(epochs) {
            if grant.ends_millis <= now {
                self.loaded.expired += 1;
            } else if from != UNUSED && grant.epoch >= from {
                self.loaded.live += 1;
                live.push(grant.live(digest, &token_users.names[grant.token_user as usize]));
            } else {
                self.loaded.ended += 1;
                if from != UNUSED {
                    self.ended.insert(grant.token_user, from);
                }
            }
        }
        each(&live);
        batch.clear();
    }

    fn with(mut self, other: Self) -> Self {
        self.loaded.live += other.loaded.live;
        self.loaded.expired += other.loaded.expired;
        self.loaded.ended += other.loaded.ended;
        self.ended.extend(other.ended);
        self
    }

    fn finish(self, begin: Instant) -> (LoadedGrants, EndedUsers) {
        let loaded = LoadedGrants {
            took: begin.elapsed(),
            ..self.loaded
        };
        (loaded, self.ended.into_iter().collect())
    }
}
