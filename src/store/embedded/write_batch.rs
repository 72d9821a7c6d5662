//! Many changes, one transaction. They are taken in the order in which they came and
//! written in the order of their keys, which touches each page of the tree once. What
//! was there before is remembered until the commit is sure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use redb::{Error, ReadableTable as _, Table, TableDefinition, WriteTransaction};
use serde::Serialize;

use super::read::EndedUsers;
use super::tables::{
    BATCH_KEY, GRANTS, GrantRow, HOLDERS, KEYS, LEASES, META, MOST_EPOCH, NEXT_KEY, USERS, UserRow,
    WALL_KEY,
};
use crate::clock;
use crate::store::{GrantRecord, StoreChange, UserEpoch, UserRecord};

type TextChanges = BTreeMap<Arc<str>, Option<String>>;

/// What the changes come to, before anything is written.
#[derive(Debug, Default)]
pub(super) struct WriteBatch {
    holders: HashMap<Arc<str>, UserRow>,
    grants: BTreeMap<[u8; 32], Option<GrantRow>>,
    users: TextChanges,
    keys: TextChanges,
    leases: TextChanges,
    /// None until a holder without a number turned up.
    next: Option<u64>,
    /// Holders whose epoch has moved: rows of an earlier one are dead.
    pub(super) moved: EndedUsers,
}

/// The rows as they were, to put back should a refused commit have taken place.
#[derive(Debug, Default)]
pub(super) struct UndoLog {
    holders: Vec<(Arc<str>, Option<[u8; UserRow::BYTES]>)>,
    grants: Vec<([u8; 32], Option<[u8; GrantRow::BYTES]>)>,
    users: TextChanges,
    keys: TextChanges,
    leases: TextChanges,
}

impl WriteBatch {
    /// Adds one change to what is to be written.
    pub(super) fn take(
        &mut self,
        change: &StoreChange,
        txn: &WriteTransaction,
    ) -> Result<(), Error> {
        match change {
            StoreChange::PutGrant(grant) => self.put_grant(grant, txn)?,
            StoreChange::ReplaceGrant { grant, ended } => {
                self.put_grant(grant, txn)?;
                self.grants.insert(ended.0, None);
            }
            StoreChange::RemoveGrant(digest) => {
                self.grants.insert(digest.0, None);
            }
            StoreChange::EndTokens { user } => self.end(user, txn)?,
            StoreChange::EndOtherTokens { kept } => {
                self.end(&kept.user, txn)?;
                let holder = self.holder(&kept.user, txn)?;
                let row = GrantRow::of(kept, holder);
                self.grants.insert(kept.digest.0, Some(row));
            }
            StoreChange::PutUser(user) => self.put_user(user, txn)?,
            StoreChange::RemoveUser { name } => {
                self.users.insert(Arc::clone(name), None);
                self.end(name, txn)?;
            }
            StoreChange::PutKey(key) => put(&mut self.keys, &key.name, key),
            StoreChange::RemoveKey { name } => {
                self.keys.insert(Arc::clone(name), None);
            }
            StoreChange::PutLease(lease) => put(&mut self.leases, &lease.upstream, lease),
            StoreChange::RemoveLease { upstream } => {
                self.leases.insert(Arc::clone(upstream), None);
            }
        }
        Ok(())
    }

    /// Takes over a user's epoch and count from another store.
    pub(super) fn take_epoch(
        &mut self,
        epoch: &UserEpoch,
        txn: &WriteTransaction,
    ) -> Result<(), Error> {
        let mut holder = self.holder(&epoch.user, txn)?;
        holder.epoch = holder.epoch.max(epoch.epoch.min(MOST_EPOCH));
        holder.issued = holder.issued.max(epoch.issued);
        self.holders.insert(Arc::clone(&epoch.user), holder);
        Ok(())
    }

    /// Takes over a grant with its epoch; false: its user has ended it since.
    pub(super) fn take_kept(
        &mut self,
        grant: &GrantRecord,
        txn: &WriteTransaction,
    ) -> Result<bool, Error> {
        let mut holder = self.holder(&grant.user, txn)?;
        if grant.epoch < holder.epoch {
            return Ok(false);
        }
        holder.epoch = grant.epoch.min(MOST_EPOCH);
        self.holders.insert(Arc::clone(&grant.user), holder);
        let row = GrantRow::of(grant, holder);
        self.grants.insert(grant.digest.0, Some(row));
        Ok(true)
    }

    fn put_grant(&mut self, grant: &GrantRecord, txn: &WriteTransaction) -> Result<(), Error> {
        let mut holder = self.holder(&grant.user, txn)?;
        holder.issued = holder.issued.saturating_add(1);
        self.holders.insert(Arc::clone(&grant.user), holder);
        let row = GrantRow::of(grant, holder);
        self.grants.insert(grant.digest.0, Some(row));
        Ok(())
    }

    /// A user made anew has no tokens of an earlier one of that name.
    fn put_user(&mut self, user: &UserRecord, txn: &WriteTransaction) -> Result<(), Error> {
        let is_known = match self.users.get(&user.name) {
            Some(text) => text.is_some(),
            None => txn.open_table(USERS)?.get(&*user.name)?.is_some(),
        };
        if !is_known {
            self.end(&user.name, txn)?;
        }
        put(&mut self.users, &user.name, user);
        Ok(())
    }

    fn end(&mut self, user: &Arc<str>, txn: &WriteTransaction) -> Result<(), Error> {
        let Some(mut holder) = self.known(user, txn)? else {
            return Ok(()); // without a grant there is nothing to end
        };
        if holder.epoch == MOST_EPOCH {
            // Never met; a new number makes every older grant nobody's all the same.
            holder = UserRow {
                number: self.number(txn)?,
                epoch: 0,
                ..holder
            };
        } else {
            holder.epoch += 1;
        }
        self.moved.push((holder.number, holder.epoch));
        self.holders.insert(Arc::clone(user), holder);
        Ok(())
    }

    fn holder(&mut self, user: &Arc<str>, txn: &WriteTransaction) -> Result<UserRow, Error> {
        match self.known(user, txn)? {
            Some(holder) => Ok(holder),
            None => Ok(UserRow {
                number: self.number(txn)?,
                epoch: 0,
                issued: 0,
            }),
        }
    }

    fn known(&self, user: &Arc<str>, txn: &WriteTransaction) -> Result<Option<UserRow>, Error> {
        if let Some(holder) = self.holders.get(user) {
            return Ok(Some(*holder));
        }
        let table = txn.open_table(HOLDERS)?;
        let row = table.get(&**user)?;
        Ok(row.map(|row| UserRow::decode(row.value())))
    }

    fn number(&mut self, txn: &WriteTransaction) -> Result<u32, Error> {
        let next = match self.next {
            Some(next) => next,
            None => {
                let table = txn.open_table(META)?;
                let row = table.get(NEXT_KEY)?;
                row.map_or(0, |row| row.value())
            }
        };
        self.next = Some(next + 1);
        u32::try_from(next)
            .map_err(|_| Error::Corrupted("no number is left for another user".to_owned()))
    }

    /// Writes everything, and the number of this commit with it.
    pub(super) fn write(self, txn: &WriteTransaction, batch: u64) -> Result<UndoLog, Error> {
        let mut before = UndoLog::default();
        let mut meta = txn.open_table(META)?;
        meta.insert(BATCH_KEY, batch)?;
        meta.insert(WALL_KEY, clock::unix_millis())?;
        if let Some(next) = self.next {
            meta.insert(NEXT_KEY, next)?;
        }
        drop(meta);
        if !self.holders.is_empty() {
            let mut table = txn.open_table(HOLDERS)?;
            let sorted: BTreeMap<_, _> = self.holders.into_iter().collect();
            for (name, holder) in sorted {
                let row = table.insert(&*name, &holder.encode())?;
                let old = row.map(|row| *row.value());
                before.holders.push((name, old));
            }
        }
        if !self.grants.is_empty() {
            let mut table = txn.open_table(GRANTS)?;
            for (digest, grant) in self.grants {
                let row = match grant {
                    Some(grant) => table.insert(&digest, &grant.encode())?,
                    None => table.remove(&digest)?,
                };
                let old = row.map(|row| *row.value());
                before.grants.push((digest, old));
            }
        }
        before.users = write_texts(txn, USERS, self.users)?;
        before.keys = write_texts(txn, KEYS, self.keys)?;
        before.leases = write_texts(txn, LEASES, self.leases)?;
        Ok(before)
    }
}

impl UndoLog {
    /// Puts the old rows back.
    pub(super) fn restore(&self, txn: &WriteTransaction) -> Result<(), Error> {
        let mut table = txn.open_table(HOLDERS)?;
        for (name, old) in &self.holders {
            match old {
                Some(old) => table.insert(&**name, old)?,
                None => table.remove(&**name)?,
            };
        }
        drop(table);
        let mut table = txn.open_table(GRANTS)?;
        for (digest, old) in &self.grants {
            match old {
                Some(old) => table.insert(digest, old)?,
                None => table.remove(digest)?,
            };
        }
        drop(table);
        write_texts(txn, USERS, self.users.clone())?;
        write_texts(txn, KEYS, self.keys.clone())?;
        write_texts(txn, LEASES, self.leases.clone())?;
        Ok(())
    }
}

fn put(texts: &mut TextChanges, name: &Arc<str>, record: &impl Serialize) {
    // A struct of texts and numbers always has a JSON form.
    let text = serde_json::to_string(record).ok();
    texts.insert(Arc::clone(name), text);
}

/// Writes the rows, gives back those that were there.
fn write_texts(
    txn: &WriteTransaction,
    definition: TableDefinition<'_, &'static str, &'static str>,
    texts: TextChanges,
) -> Result<TextChanges, Error> {
    let mut before = TextChanges::new();
    if texts.is_empty() {
        return Ok(before);
    }
    let mut table: Table<'_, &str, &str> = txn.open_table(definition)?;
    for (name, text) in texts {
        let row = match &text {
            Some(text) => table.insert(&*name, text.as_str())?,
            None => table.remove(&*name)?,
        };
        let old = row.map(|row| row.value().to_owned());
        before.insert(name, old);
    }
    Ok(before)
}
