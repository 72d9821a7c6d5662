//! Many changes in one transaction. They are applied in the order in which they came, and written
//! in the order of their keys, which touches each page of the tree once. The old rows are kept
//! until the commit is certain.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use redb::{Error, ReadableTable as _, Table, TableDefinition, WriteTransaction};
use serde::Serialize;

use super::read::EndedUsers;
use super::tables::{
    BATCH_KEY, GRANTS, GrantRow, KEYS, LEASES, MAX_EPOCH, META, NEXT_KEY, TOKEN_USERS, USERS,
    UserRow, WALL_KEY,
};
use crate::clock;
use crate::store::{GrantRecord, StoreChange, UserEpoch, UserRecord};

type TextChanges = BTreeMap<Arc<str>, Option<String>>;

/// The rows to write.
#[derive(Debug, Default)]
pub(super) struct WriteBatch {
    token_users: HashMap<Arc<str>, UserRow>,
    grants: BTreeMap<[u8; 32], Option<GrantRow>>,
    users: TextChanges,
    keys: TextChanges,
    leases: TextChanges,
    /// The next free number; None until a new user needs one.
    next: Option<u64>,
    /// Users whose epoch has changed: their rows of an earlier epoch are dead.
    pub(super) moved: EndedUsers,
}

/// The old rows, to restore should a refused commit have taken place.
#[derive(Debug, Default)]
pub(super) struct UndoLog {
    token_users: Vec<(Arc<str>, Option<[u8; UserRow::BYTES]>)>,
    grants: Vec<([u8; 32], Option<[u8; GrantRow::BYTES]>)>,
    users: TextChanges,
    keys: TextChanges,
    leases: TextChanges,
}

impl WriteBatch {
    /// Adds one change.
    pub(super) fn add(
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
                let token_user = self.token_user(&kept.user, txn)?;
                let row = GrantRow::of(kept, token_user);
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

    /// Imports a user's epoch and token count.
    pub(super) fn import_epoch(
        &mut self,
        epoch: &UserEpoch,
        txn: &WriteTransaction,
    ) -> Result<(), Error> {
        let mut token_user = self.token_user(&epoch.user, txn)?;
        token_user.epoch = token_user.epoch.max(epoch.epoch.min(MAX_EPOCH));
        token_user.issued = token_user.issued.max(epoch.issued);
        self.token_users.insert(Arc::clone(&epoch.user), token_user);
        Ok(())
    }

    /// Imports a grant with its epoch; false: its user has ended it since.
    pub(super) fn import_grant(
        &mut self,
        grant: &GrantRecord,
        txn: &WriteTransaction,
    ) -> Result<bool, Error> {
        let mut token_user = self.token_user(&grant.user, txn)?;
        if grant.epoch < token_user.epoch {
            return Ok(false);
        }
        token_user.epoch = grant.epoch.min(MAX_EPOCH);
        self.token_users.insert(Arc::clone(&grant.user), token_user);
        let row = GrantRow::of(grant, token_user);
        self.grants.insert(grant.digest.0, Some(row));
        Ok(true)
    }

    fn put_grant(&mut self, grant: &GrantRecord, txn: &WriteTransaction) -> Result<(), Error> {
        let mut token_user = self.token_user(&grant.user, txn)?;
        token_user.issued = token_user.issued.saturating_add(1);
        self.token_users.insert(Arc::clone(&grant.user), token_user);
        let row = GrantRow::of(grant, token_user);
        self.grants.insert(grant.digest.0, Some(row));
        Ok(())
    }

    /// A user created again gets none of the tokens of an earlier user of that name.
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
        let Some(mut token_user) = self.known(user, txn)? else {
            return Ok(()); // a user without a row has no grants
        };
        if token_user.epoch == MAX_EPOCH {
            // Practically unreachable. With a new number the older grants have no user.
            token_user = UserRow {
                number: self.number(txn)?,
                epoch: 0,
                ..token_user
            };
        } else {
            token_user.epoch += 1;
        }
        self.moved.push((token_user.number, token_user.epoch));
        self.token_users.insert(Arc::clone(user), token_user);
        Ok(())
    }

    fn token_user(&mut self, user: &Arc<str>, txn: &WriteTransaction) -> Result<UserRow, Error> {
        match self.known(user, txn)? {
            Some(token_user) => Ok(token_user),
            None => Ok(UserRow {
                number: self.number(txn)?,
                epoch: 0,
                issued: 0,
            }),
        }
    }

    fn known(&self, user: &Arc<str>, txn: &WriteTransaction) -> Result<Option<UserRow>, Error> {
        if let Some(token_user) = self.token_users.get(user) {
            return Ok(Some(*token_user));
        }
        let table = txn.open_table(TOKEN_USERS)?;
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

    /// Writes all rows and the number of this commit.
    pub(super) fn write(self, txn: &WriteTransaction, batch: u64) -> Result<UndoLog, Error> {
        let mut undo = UndoLog::default();
        let mut meta = txn.open_table(META)?;
        meta.insert(BATCH_KEY, batch)?;
        meta.insert(WALL_KEY, clock::unix_millis())?;
        if let Some(next) = self.next {
            meta.insert(NEXT_KEY, next)?;
        }
        drop(meta);
        if !self.token_users.is_empty() {
            let mut table = txn.open_table(TOKEN_USERS)?;
            let sorted: BTreeMap<_, _> = self.token_users.into_iter().collect();
            for (name, token_user) in sorted {
                let row = table.insert(&*name, &token_user.encode())?;
                let old = row.map(|row| *row.value());
                undo.token_users.push((name, old));
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
                undo.grants.push((digest, old));
            }
        }
        undo.users = write_texts(txn, USERS, self.users)?;
        undo.keys = write_texts(txn, KEYS, self.keys)?;
        undo.leases = write_texts(txn, LEASES, self.leases)?;
        Ok(undo)
    }
}

impl UndoLog {
    /// Writes the old rows back.
    pub(super) fn restore(&self, txn: &WriteTransaction) -> Result<(), Error> {
        let mut table = txn.open_table(TOKEN_USERS)?;
        for (name, old) in &self.token_users {
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

/// Writes the rows; returns the old ones.
fn write_texts(
    txn: &WriteTransaction,
    definition: TableDefinition<'_, &'static str, &'static str>,
    texts: TextChanges,
) -> Result<TextChanges, Error> {
    let mut old_texts = TextChanges::new();
    if texts.is_empty() {
        return Ok(old_texts);
    }
    let mut table: Table<'_, &str, &str> = txn.open_table(definition)?;
    for (name, text) in texts {
        let row = match &text {
            Some(text) => table.insert(&*name, text.as_str())?,
            None => table.remove(&*name)?,
        };
        let old = row.map(|row| row.value().to_owned());
        old_texts.insert(name, old);
    }
    Ok(old_texts)
}
