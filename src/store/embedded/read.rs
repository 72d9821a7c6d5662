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
    GRANTS, GrantRow, HOLDERS, KEYS, LEASES, META, PREFIXES, USERS, UserRow, WALL_KEY, prefix_of,
    start_of,
};
use crate::clock;
use crate::store::{GrantSink, LiveGrant, LoadedGrants, StoreContents, UserEpoch, threads_for};

/// A clock that is this far behind the last commit has been set back.
const SET_BACK_MILLIS: u64 = 60_000;
/// Rows looked at together, and counted.
const PILE: usize = if cfg!(test) { 16 } else { 512 };
/// Bytes of the file a row may take: one that takes more is mostly room that is free.
const FULL_ROW: u64 = 256;

/// Why the file cannot be read to its end.
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
    warn_of_a_clock_set_back(&txn)?;
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

/// Tokens end by the wall clock across a restart: there is no other.
fn warn_of_a_clock_set_back(txn: &ReadTransaction) -> Result<(), redb::Error> {
    let table = txn.open_table(META)?;
    let last = table.get(WALL_KEY)?.map_or(0, |last| last.value());
    let behind = last.saturating_sub(clock::unix_millis());
    if behind > SET_BACK_MILLIS {
        warn!(
            seconds = behind / 1000,
            "this host's clock is behind the store's last change: tokens live that much longer"
        );
    }
    Ok(())
}

/// Every user with an epoch or a count.
pub(super) fn epochs(
    database: &Database,
    mut each: impl FnMut(UserEpoch),
) -> Result<(), LoadError> {
    let txn = database.begin_read().map_err(redb::Error::from)?;
    let table = txn.open_table(HOLDERS).map_err(redb::Error::from)?;
    for row in table.iter().map_err(redb::Error::from)? {
        let (name, holder) = row.map_err(redb::Error::from)?;
        let holder = UserRow::decode(holder.value());
        each(UserEpoch {
            user: name.value().into(),
            epoch: holder.epoch,
            issued: holder.issued,
        });
    }
    Ok(())
}

/// Numbers of holders, and the epoch from which their grants are live.
pub(super) type EndedUsers = Vec<(u32, u64)>;

/// Holders by their number. What is looked at for each of millions of grants is by itself,
/// so that much of it fits into a core's own cache.
struct HolderTable {
    /// `NOBODY` where the number is not in use.
    epochs: Vec<u64>,
    names: Vec<Arc<str>>,
}

const NOBODY: u64 = u64::MAX;

impl HolderTable {
    /// Two threads come from both ends of many, and meet in the middle.
    fn of(database: &Database) -> Result<Self, redb::Error> {
        let txn = database.begin_read()?;
        let table = txn.open_table(HOLDERS)?;
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
        let mut holders = Self {
            epochs: Vec::new(),
            names: Vec::new(),
        };
        let nameless: Arc<str> = "".into();
        for (holder, name) in rows {
            let place = usize::try_from(holder.number).unwrap_or(usize::MAX);
            if holders.epochs.len() <= place {
                holders.epochs.resize(place + 1, NOBODY);
                holders.names.resize(place + 1, Arc::clone(&nameless));
            }
            holders.epochs[place] = holder.epoch;
            holders.names[place] = name;
        }
        holders
    }

    fn epoch(&self, number: u32) -> u64 {
        let epoch = self.epochs.get(number as usize);
        epoch.copied().unwrap_or(NOBODY)
    }
}

type HolderRow<'a> = (
    AccessGuard<'a, &'static str>,
    AccessGuard<'a, &'static [u8; UserRow::BYTES]>,
);

fn decoded<'a>(
    rows: impl Iterator<Item = Result<HolderRow<'a>, redb::StorageError>>,
) -> Result<Vec<(UserRow, Arc<str>)>, redb::Error> {
    let decoded = rows.map(|row| {
        let (name, holder) = row?;
        Ok((UserRow::decode(holder.value()), name.value().into()))
    });
    decoded.collect()
}

/// Every live grant, in the order of the file.
pub(super) fn grants(
    database: &Database,
    each: &mut dyn FnMut(&[LiveGrant<'_>]),
) -> Result<(LoadedGrants, EndedUsers), LoadError> {
    let begin = Instant::now();
    let progress = LoadProgress::default(); // nobody asks
    let mut part = LoadedPart::default();
    let holders = HolderTable::of(database)?;
    part.read(database, 0..PREFIXES, &holders, each, &progress)?;
    Ok(part.sum(begin))
}

/// Every live grant, by as many threads as there are cores: each has a part of the file
/// at `path`.
pub(super) fn in_parts(
    database: &Database,
    path: &Path,
    intake: &mut dyn GrantSink,
    progress: &LoadProgress,
) -> Result<(LoadedGrants, EndedUsers), LoadError> {
    let begin = Instant::now();
    let total = progress.begin(database)?;
    let threads = threads_for(total as usize);
    let holders = thread::scope(|scope| {
        if threads > 1 && readahead::is_worth_it(path, total * FULL_ROW) {
            readahead::begin(scope, path, threads, |bytes| progress.fetched(bytes));
        }
        let holders = HolderTable::of(database).inspect_err(|_| progress.give_up())?;
        intake.users(&holders.names);
        Ok::<_, LoadError>(holders)
    })?; // The rest is fetched by now: grants are all over the file.
    let length = PREFIXES.div_ceil(threads as u64);
    let parts = PREFIXES.div_ceil(length);
    let read = |number: u64| -> Result<LoadedPart, LoadError> {
        let mut part = LoadedPart::default();
        let prefixes = number * length..PREFIXES.min((number + 1) * length);
        part.read(database, prefixes, &holders, &mut intake.part(), progress)?;
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
    if !progress.is_given_up() {
        intake.finish();
    }
    Ok(all.sum(begin))
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// How far a load has come.
#[derive(Debug, Default)]
pub(super) struct LoadProgress {
    /// Of the file, fetched into the kernel's memory.
    bytes: AtomicU64,
    rows: AtomicU64,
    total: AtomicU64,
    is_given_up: AtomicBool,
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

    /// Whether to go on.
    fn fetched(&self, bytes: u64) -> bool {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        !self.is_given_up()
    }

    /// Nobody waits for the load any more, or it has failed.
    pub(super) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }

    /// Megabytes of the file fetched, rows read, and rows in all.
    pub(super) fn so_far(&self) -> (u64, u64, u64) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (
            read(&self.bytes) / 1_000_000,
            read(&self.rows),
            read(&self.total),
        )
    }
}

/// What came of a part of the grants.
#[derive(Default)]
struct LoadedPart {
    loaded: LoadedGrants,
    /// Holders that have ended some, and the epoch from which theirs are live.
    ended: HashMap<u32, u64>,
}

impl LoadedPart {
    fn read(
        &mut self,
        database: &Database,
        prefixes: Range<u64>,
        holders: &HolderTable,
        each: &mut dyn FnMut(&[LiveGrant<'_>]),
        progress: &LoadProgress,
    ) -> Result<(), LoadError> {
        let txn = database.begin_read().map_err(redb::Error::from)?;
        let table = txn.open_table(GRANTS).map_err(redb::Error::from)?;
        // Not by a range, which looks at both of its ends for each row: a tenth slower.
        let first = start_of(prefixes.start);
        let rows = table.lower_bound(Bound::<&[u8; 32]>::Included(&first));
        let mut rows = rows.map_err(redb::Error::from)?;
        let mut pile = Vec::with_capacity(PILE);
        while let Some((digest, bytes)) = rows.next().map_err(redb::Error::from)? {
            if prefix_of(digest.value()) >= prefixes.end {
                break;
            }
            let Some(grant) = GrantRow::decode(bytes.value()) else {
                return Err(LoadError::Row {
                    table: "grants".to_owned(),
                    reason: "no version of this program wrote it".to_owned(),
                });
            };
            pile.push((*digest.value(), grant));
            if pile.len() == PILE {
                progress.add(PILE as u64);
                self.give(&mut pile, holders, each);
                if progress.is_given_up() {
                    return Ok(()); // to nobody
                }
            }
        }
        progress.add(pile.len() as u64);
        self.give(&mut pile, holders, each);
        Ok(())
    }

    /// Those that are live. First what is known of all their holders, so that the processor
    /// fetches many of them at a time.
    fn give(
        &mut self,
        pile: &mut Vec<([u8; 32], GrantRow)>,
        holders: &HolderTable,
        each: &mut dyn FnMut(&[LiveGrant<'_>]),
    ) {
        let now = clock::unix_millis();
        let epochs = pile.iter().map(|(_, grant)| holders.epoch(grant.holder));
        let epochs: Vec<u64> = epochs.collect();
        let mut live = Vec::with_capacity(pile.len());
        for ((digest, grant), from) in pile.iter().zip(epochs) {
            if grant.ends_millis <= now {
                self.loaded.expired += 1;
            } else if from != NOBODY && grant.epoch >= from {
                self.loaded.live += 1;
                live.push(grant.live(digest, &holders.names[grant.holder as usize]));
            } else {
                self.loaded.ended += 1;
                if from != NOBODY {
                    self.ended.insert(grant.holder, from);
                }
            }
        }
        each(&live);
        pile.clear();
    }

    fn with(mut self, other: Self) -> Self {
        self.loaded.live += other.loaded.live;
        self.loaded.expired += other.loaded.expired;
        self.loaded.ended += other.loaded.ended;
        self.ended.extend(other.ended);
        self
    }

    fn sum(self, begin: Instant) -> (LoadedGrants, EndedUsers) {
        let loaded = LoadedGrants {
            took: begin.elapsed(),
            ..self.loaded
        };
        (loaded, self.ended.into_iter().collect())
    }
}
