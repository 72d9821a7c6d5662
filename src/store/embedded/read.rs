//! Reading the whole file: at the start, and for an export.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};
use redb::{ReadTransaction, TableDefinition};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::{info, warn};

use super::tables::{GRANTS, Grant, HOLDERS, Holder, KEYS, LEASES, META, USERS, WALL_KEY};
use crate::clock;
use crate::store::{Contents, GrantRecord, Loaded, UserEpoch};

/// A clock that is this far behind the last commit has been set back.
const SET_BACK_MILLIS: u64 = 60_000;
const PROGRESS: Duration = Duration::from_secs(1);

/// Why the file cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Engine(#[from] redb::Error),
    #[error("table {table} has a row that cannot be understood: {reason}")]
    Row { table: String, reason: String },
}

/// Users, keys and leases: few, and needed at once.
pub(super) fn contents(database: &Database) -> Result<Contents, Error> {
    let txn = database.begin_read().map_err(redb::Error::from)?;
    warn_of_a_clock_set_back(&txn)?;
    Ok(Contents {
        users: records(&txn, USERS)?,
        keys: records(&txn, KEYS)?,
        leases: records(&txn, LEASES)?,
    })
}

fn records<R: DeserializeOwned>(
    txn: &ReadTransaction,
    definition: TableDefinition<'_, &'static str, &'static str>,
) -> Result<Vec<R>, Error> {
    use redb::TableHandle as _;
    let name = definition.name().to_owned();
    let table = txn.open_table(definition).map_err(redb::Error::from)?;
    let mut records = Vec::new();
    for row in table.iter().map_err(redb::Error::from)? {
        let (_, text) = row.map_err(redb::Error::from)?;
        let record = serde_json::from_str(text.value());
        records.push(record.map_err(|error| Error::Row {
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
pub(super) fn epochs(database: &Database, mut each: impl FnMut(UserEpoch)) -> Result<(), Error> {
    let txn = database.begin_read().map_err(redb::Error::from)?;
    let table = txn.open_table(HOLDERS).map_err(redb::Error::from)?;
    for row in table.iter().map_err(redb::Error::from)? {
        let (name, holder) = row.map_err(redb::Error::from)?;
        let holder = Holder::decode(holder.value());
        each(UserEpoch {
            user: name.value().into(),
            epoch: holder.epoch,
            issued: holder.issued,
        });
    }
    Ok(())
}

/// Holders by their number.
struct Names(Vec<Option<(Arc<str>, Holder)>>);

impl Names {
    fn read(txn: &ReadTransaction) -> Result<Self, redb::Error> {
        let table = txn.open_table(HOLDERS)?;
        let mut names = Vec::new();
        for row in table.iter()? {
            let (name, holder) = row?;
            let holder = Holder::decode(holder.value());
            let place = usize::try_from(holder.number).unwrap_or(usize::MAX);
            if names.len() <= place {
                names.resize(place + 1, None);
            }
            names[place] = Some((Arc::from(name.value()), holder));
        }
        Ok(Self(names))
    }

    fn find(&self, number: u32) -> Option<&(Arc<str>, Holder)> {
        self.0.get(usize::try_from(number).ok()?)?.as_ref()
    }
}

/// Every live grant, in the order of the file.
pub(super) fn grants(
    database: &Database,
    each: &mut dyn FnMut(GrantRecord),
) -> Result<(Loaded, Vec<Holder>), Error> {
    let begin = Instant::now();
    let txn = database.begin_read().map_err(redb::Error::from)?;
    let names = Names::read(&txn)?;
    let table = txn.open_table(GRANTS).map_err(redb::Error::from)?;
    let total = table.len().map_err(redb::Error::from)?;
    let now = clock::unix_millis();
    let mut loaded = Loaded::default();
    let mut ended = HashMap::new();
    let mut said = begin;
    for (count, row) in table.iter().map_err(redb::Error::from)?.enumerate() {
        let (digest, bytes) = row.map_err(redb::Error::from)?;
        // Looking at the clock costs more than a row.
        if count % 65_536 == 0 && said.elapsed() >= PROGRESS {
            said = Instant::now();
            info!(loaded = count, total, "loading tokens");
        }
        let Some(grant) = Grant::decode(bytes.value()) else {
            return Err(Error::Row {
                table: "grants".to_owned(),
                reason: "no version of this program wrote it".to_owned(),
            });
        };
        match names.find(grant.holder) {
            _ if grant.ends_millis <= now => loaded.expired += 1,
            Some((name, holder)) if grant.epoch >= holder.epoch => {
                loaded.live += 1;
                each(grant.record(*digest.value(), Arc::clone(name)));
            }
            Some((_, holder)) => {
                loaded.ended += 1;
                ended.insert(holder.number, *holder);
            }
            None => loaded.ended += 1,
        }
    }
    loaded.took = begin.elapsed();
    Ok((loaded, ended.into_values().collect()))
}
