//! Export and import of the shared store: for backups, and for moving from a file.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;

use super::SharedStore;
use super::shared_entry::{EntryRevision, SharedEntry};
use super::snapshot::StateSnapshotItem;
use super::tokens::TokenKind;
use crate::clock;
use crate::store::{
    ExportRecord, GrantRecord, KeyRecord, RecordCounts, RecordDigest, SealedLease,
    StoreUnavailable, UserEpoch, UserRecord,
};

const PAGE: usize = 500;

/// The revision of imported users and keys: as if the first of all changes had created them.
const FIRST: EntryRevision = EntryRevision {
    made: 1,
    changed: 0,
};

impl SharedStore {
    /// Whether the store has no records that an import could conflict with.
    pub async fn is_empty(&self) -> Result<bool, StoreUnavailable> {
        let mut connection = self.connection()?;
        let mut count = redis::pipe();
        count.hlen(&self.keys.users).hlen(&self.keys.keys);
        count.hlen(&self.keys.ends);
        let lengths: (u64, u64, u64) = self.checked(count.query_async(&mut connection).await)?;
        Ok(lengths == (0, 0, 0))
    }

    /// Visits every record that outlives a restart.
    pub async fn records<E: From<StoreUnavailable>>(
        &self,
        mut each: impl FnMut(ExportRecord) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut connection = self.connection()?;
        for (text, is_user) in self.entries(&mut connection).await? {
            let read = match is_user {
                true => serde_json::from_str::<UserRecord>(&text).map(ExportRecord::User),
                false => serde_json::from_str::<KeyRecord>(&text).map(ExportRecord::Key),
            };
            each(read.map_err(|_| unknown_record())?)?;
        }
        let issued = connection.hgetall(&self.keys.issued).await;
        for (user, issued) in self.checked::<Vec<(String, u64)>>(issued)? {
            each(ExportRecord::Epoch(UserEpoch {
                user: user.into(),
                epoch: 0,
                issued,
            }))?;
        }
        let leases = format!("{}*", self.keys.lease(""));
        for key in self.scan(&mut connection, &leases, &mut 0).await? {
            let upstream = String::from_utf8_lossy(&key).replace(&self.keys.lease(""), "");
            if let Some(at) = self.lease(&upstream).await? {
                each(ExportRecord::Lease(SealedLease {
                    upstream: upstream.into(),
                    ends_millis: clock::unix_millis() + super::tokens::millis(at.left),
                    sealed: at.sealed,
                }))?;
            }
        }
        let (mut cursor, mut ends) = (0, HashMap::new());
        loop {
            let pattern = self.keys.tokens();
            let keys = self.scan(&mut connection, &pattern, &mut cursor).await?;
            for grant in self.grants(&mut connection, &keys, &mut ends).await? {
                each(ExportRecord::Grant(grant))?;
            }
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Adds records that are not in the store; those that are stay as they are.
    pub async fn import(
        &self,
        records: Vec<ExportRecord>,
    ) -> Result<RecordCounts, StoreUnavailable> {
        let mut counts = RecordCounts::default();
        let mut items = Vec::new();
        for record in records {
            let is_over = matches!(&record, ExportRecord::Grant(grant)
                if grant.ends_millis <= clock::unix_millis());
            match is_over {
                true => counts.over += 1,
                false => counts.count(&record),
            }
            items.extend(snapshot_item(record).filter(|_| !is_over));
        }
        let Some(up) = self.up.load_full() else {
            return Err(StoreUnavailable::Failed(Arc::clone(
                &self.down.load().reason,
            )));
        };
        self.merge_items(&up.commands, &up.id, items, true).await?;
        Ok(counts)
    }

    async fn entries(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<Vec<(String, bool)>, StoreUnavailable> {
        let mut all = redis::pipe();
        all.hvals(&self.keys.users).hvals(&self.keys.keys);
        let (users, keys): (Vec<String>, Vec<String>) =
            self.checked(all.query_async(connection).await)?;
        let users = users.into_iter().map(|text| (text, true));
        let keys = keys.into_iter().map(|text| (text, false));
        let read =
            |(text, is_user): (String, bool)| Some((SharedEntry::parse(&text)?.text, is_user));
        let all: Result<Vec<_>, _> = users
            .chain(keys)
            .map(|entry| read(entry).ok_or_else(unknown_record))
            .collect();
        let mut all = all?;
        all.retain(|(text, _)| !text.is_empty()); // keys that were removed
        Ok(all)
    }

    async fn scan(
        &self,
        connection: &mut MultiplexedConnection,
        pattern: &str,
        cursor: &mut u64,
    ) -> Result<Vec<Vec<u8>>, StoreUnavailable> {
        let mut found = Vec::new();
        loop {
            let step = redis::cmd("SCAN")
                .arg(*cursor)
                .arg("MATCH")
                .arg(pattern)
                .arg("COUNT")
                .arg(PAGE)
                .query_async(connection)
                .await;
            let (next, keys): (u64, Vec<Vec<u8>>) = self.checked(step)?;
            found.extend(keys);
            *cursor = next;
            if next == 0 || found.len() >= PAGE {
                return Ok(found);
            }
        }
    }

    /// The live ones among these tokens.
    async fn grants(
        &self,
        connection: &mut MultiplexedConnection,
        keys: &[Vec<u8>],
        ends: &mut HashMap<String, u64>,
    ) -> Result<Vec<GrantRecord>, StoreUnavailable> {
        let mut grants = Vec::new();
        let mut all = redis::pipe();
        for key in keys {
            all.get(key).pttl(key);
        }
        if keys.is_empty() {
            return Ok(grants);
        }
        let values: Vec<redis::Value> = self.checked(all.query_async(connection).await)?;
        for (key, pair) in keys.iter().zip(values.chunks_exact(2)) {
            let value: Option<String> = redis::from_redis_value_ref(&pair[0]).ok().flatten();
            let left: i64 = redis::from_redis_value_ref(&pair[1]).unwrap_or(-1);
            let Some((seq, kind, user)) = value.as_deref().and_then(parse) else {
                continue; // expired or revoked meanwhile
            };
            if !ends.contains_key(user) {
                let end = redis::cmd("HGET")
                    .arg(self.keys.token_user(user))
                    .arg("g")
                    .query_async(connection)
                    .await;
                let end: Option<u64> = self.checked(end)?;
                ends.insert(user.to_owned(), end.unwrap_or(0));
            }
            let digest = key.last_chunk::<32>().map(|digest| RecordDigest(*digest));
            if let (Some(digest), Ok(left)) = (digest, u64::try_from(left))
                && ends.get(user).is_none_or(|end| seq >= *end)
            {
                grants.push(GrantRecord {
                    digest,
                    user: user.into(),
                    role: kind.role,
                    ends_millis: clock::unix_millis() + left,
                    epoch: 0,
                    origin: kind.origin,
                });
            }
        }
        Ok(grants)
    }

    fn connection(&self) -> Result<MultiplexedConnection, StoreUnavailable> {
        let up = self.up.load_full();
        let up =
            up.ok_or_else(|| StoreUnavailable::Failed(Arc::clone(&self.down.load().reason)))?;
        Ok(up.commands.0.clone())
    }

    fn checked<T>(&self, reply: redis::RedisResult<T>) -> Result<T, StoreUnavailable> {
        reply.map_err(|error| self.record_failure(&error))
    }
}

fn unknown_record() -> StoreUnavailable {
    StoreUnavailable::Failed("the store has a record of an unknown form".into())
}

fn parse(value: &str) -> Option<(u64, TokenKind, &str)> {
    let mut parts = value.splitn(4, ':');
    let seq = parts.next()?.parse().ok()?;
    let _bucket = parts.next()?;
    Some((seq, TokenKind::parse(parts.next()?)?, parts.next()?))
}

/// The record as an item of shared state; None: the shared store has no such state.
fn snapshot_item(record: ExportRecord) -> Option<StateSnapshotItem> {
    let entry = |text: serde_json::Result<String>| {
        Some(SharedEntry {
            revision: FIRST,
            seq: FIRST.made,
            text: text.ok()?,
        })
    };
    let left = |millis: u64| Duration::from_millis(millis.saturating_sub(clock::unix_millis()));
    Some(match record {
        ExportRecord::User(user) => {
            StateSnapshotItem::User(Arc::clone(&user.name), entry(serde_json::to_string(&user))?)
        }
        ExportRecord::Key(key) => {
            StateSnapshotItem::Key(Arc::clone(&key.name), entry(serde_json::to_string(&key))?)
        }
        // The epoch counts in the exported store only.
        ExportRecord::Epoch(epoch) if epoch.issued > 0 => StateSnapshotItem::Issued {
            user: epoch.user,
            count: epoch.issued,
        },
        ExportRecord::Epoch(_) => return None,
        ExportRecord::Grant(grant) => StateSnapshotItem::Token {
            digest: grant.digest,
            user: grant.user,
            kind: TokenKind {
                origin: grant.origin,
                role: grant.role,
            },
            left: left(grant.ends_millis),
            seq: FIRST.made,
        },
        ExportRecord::Lease(lease) => StateSnapshotItem::Lease {
            upstream: lease.upstream,
            generation: 1,
            refused: 0,
            left: left(lease.ends_millis),
            sealed: lease.sealed,
        },
    })
}
