//! A replica of the user directory in a store that several gateways share. Changes made here go to
//! the store first; changes of other gateways are applied as they arrive.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::Mutex;
use tracing::error;

use super::first_admin::{FirstAdminStatus, user};
use super::{DirectoryState, DirectoryUser, Error, UserDirectory, UserRevision, VerifiedPassword};
use crate::config;
use crate::identity::{Hasher, PasswordHash};
use crate::store::shared::{
    self, Replica, SharedChange, SharedEntry, SharedStore, StateSnapshotItem,
};
use crate::store::{StoreBackend, StoreUnavailable, UserRecord};

/// Gateways that start at the same time all try to create the first admin; one succeeds.
const MAX_ATTEMPTS: usize = 50;
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Applies changes to the directory.
#[derive(Debug)]
pub(super) struct UserReplica {
    directory: Arc<RwLock<DirectoryState>>,
}

impl UserDirectory {
    /// An empty directory that follows `shared`. Call `ensure_first_admin` once the store is
    /// connected.
    pub fn sharing(hasher: Hasher, shared: &Arc<SharedStore>) -> Self {
        let directory = Arc::new(RwLock::new(DirectoryState::default()));
        let replica = Arc::new(UserReplica {
            directory: Arc::clone(&directory),
        });
        let weak: Weak<UserReplica> = Arc::downgrade(&replica);
        shared.add_replica(weak);
        Self {
            hasher,
            unknown_user_hash: PasswordHash::unmatchable(),
            directory,
            store: StoreBackend::Shared(Arc::clone(shared)),
            replica: Some(replica),
            changes: Arc::new(Mutex::new(())),
        }
    }

    /// Creates the first admin, unless another gateway has done so.
    pub async fn ensure_first_admin(
        &self,
        settings: &config::UsersConfig,
    ) -> Result<FirstAdminStatus, Error> {
        let mut attempts = MAX_ATTEMPTS;
        loop {
            match self.settle_first_admin(settings).await {
                Err(Error::Unavailable(StoreUnavailable::Busy)) if attempts > 0 => {
                    attempts -= 1;
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                result => return result,
            }
        }
    }
}

impl UserDirectory {
    /// The revision that the user must still have in the store when the token is inserted; None:
    /// the store is not shared.
    pub fn stored_revision(&self, verified: &VerifiedPassword) -> Option<shared::EntryRevision> {
        self.replica.as_ref().map(|_| verified.revision.stored())
    }
}

impl VerifiedPassword {
    /// The same user after its password was changed.
    pub fn with_new_password(mut self) -> Self {
        self.revision.changes += 1;
        self
    }
}

impl UserRevision {
    pub(super) fn stored(self) -> shared::EntryRevision {
        shared::EntryRevision {
            made: self.created,
            changed: self.changes,
        }
    }

    pub(super) fn of(stored: shared::EntryRevision) -> Self {
        Self {
            created: stored.made,
            changes: stored.changed,
        }
    }
}

impl UserReplica {
    fn apply_entry(directory: &mut DirectoryState, name: &str, entry: &SharedEntry) {
        let is_newer = |known: &DirectoryUser| known.seq >= entry.seq;
        if directory.users.get(name).is_some_and(is_newer) {
            return;
        }
        let Some(user) = read(entry) else {
            error!(
                user = name,
                "the store has a record of this user in an unknown form; it is ignored"
            );
            return;
        };
        directory.users.insert(name.to_owned(), user);
    }
}

fn read(entry: &SharedEntry) -> Option<DirectoryUser> {
    let record: UserRecord = serde_json::from_str(&entry.text).ok()?;
    let (_, user) = user(record, entry.revision.made).ok()?;
    Some(DirectoryUser {
        revision: UserRevision::of(entry.revision),
        seq: entry.seq,
        ..user
    })
}

impl Replica for UserReplica {
    fn apply(&self, change: &SharedChange, seq: u64) {
        match change {
            SharedChange::User(name, Some(entry)) => {
                Self::apply_entry(&mut self.directory.write(), name, entry);
            }
            SharedChange::User(name, None) => drop(self.directory.write().users.remove(&**name)),
            SharedChange::UserEnded { user, end } => {
                // A user created again after this deletion is another user: keep it.
                let mut directory = self.directory.write();
                let is_gone = |known: &DirectoryUser| known.revision.created < end.logins;
                if end.logins > 0 && directory.users.get(&**user).is_some_and(is_gone) {
                    directory.users.remove(&**user);
                }
            }
            SharedChange::Directory { users, .. } => {
                let mut directory = self.directory.write();
                let listed: HashMap<&str, &SharedEntry> =
                    users.iter().map(|(name, entry)| (&**name, entry)).collect();
                directory
                    .users
                    .retain(|name, user| user.seq > seq || listed.contains_key(name.as_str()));
                for (name, entry) in listed {
                    Self::apply_entry(&mut directory, name, entry);
                }
            }
            SharedChange::TokenPut(_)
            | SharedChange::TokenRevoked(_)
            | SharedChange::Key(..)
            | SharedChange::Lease(_) => {}
        }
    }

    fn invalidate(&self, _: u64) {
        // The link reads the whole directory again right after this.
    }

    fn snapshot(&self, give: &mut dyn FnMut(StateSnapshotItem)) {
        let directory = self.directory.read();
        for (name, user) in &directory.users {
            let entry = SharedEntry {
                revision: user.revision.stored(),
                seq: user.seq,
                // A record of text and numbers always has a JSON form.
                text: serde_json::to_string(&user.record(name)).unwrap_or_default(),
            };
            give(StateSnapshotItem::User(name.as_str().into(), entry));
        }
    }
}
