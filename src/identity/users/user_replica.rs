//! The directory of a store that several gates share: each has all of it in memory, and
//! takes in what the others change. What this gate changes, the store has first.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{RwLock, RwLockWriteGuard};
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

/// Gates that start at once all want to make the first admin; one does.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Takes changes into the directory.
#[derive(Debug)]
pub(super) struct UserReplica {
    directory: Arc<RwLock<DirectoryState>>,
}

impl UserDirectory {
    /// An empty directory that follows `shared`. Settle its first admin once the store
    /// is there.
    pub fn sharing(hasher: Hasher, shared: &Arc<SharedStore>) -> Self {
        let directory = Arc::new(RwLock::new(DirectoryState::default()));
        let replica = Arc::new(UserReplica {
            directory: Arc::clone(&directory),
        });
        let follower: Weak<UserReplica> = Arc::downgrade(&replica);
        shared.add_replica(follower);
        Self {
            hasher,
            nobody: PasswordHash::of_nobody(),
            directory,
            store: StoreBackend::Shared(Arc::clone(shared)),
            replica: Some(replica),
            changes: Arc::new(Mutex::new(())),
        }
    }

    /// Makes the first admin, unless another gate has.
    pub async fn ensure_first_admin(
        &self,
        settings: &config::UsersConfig,
    ) -> Result<FirstAdminStatus, Error> {
        let mut left = TRIES;
        loop {
            match self.settle_first_admin(settings).await {
                Err(Error::Unavailable(StoreUnavailable::Busy)) if left > 0 => {
                    left -= 1;
                    tokio::time::sleep(PAUSE).await;
                }
                settled => return settled,
            }
        }
    }
}

impl UserDirectory {
    /// What the store must still say of the user when it takes a token in; None: no
    /// other gate has a say.
    pub fn stored_revision(&self, verified: &VerifiedPassword) -> Option<shared::EntryRevision> {
        self.replica.as_ref().map(|_| verified.revision.stored())
    }
}

impl VerifiedPassword {
    /// The same user, with the password that has just taken the old one's place.
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
    fn write(&self) -> RwLockWriteGuard<'_, DirectoryState> {
        self.directory.write()
    }

    fn apply_entry(directory: &mut DirectoryState, name: &str, entry: &SharedEntry) {
        let is_older = |known: &DirectoryUser| known.seq >= entry.seq;
        if directory.users.get(name).is_some_and(is_older) {
            return;
        }
        let Some(user) = read(entry) else {
            error!(user = name, "the store's record of a user cannot be used");
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
                Self::apply_entry(&mut self.write(), name, entry);
            }
            SharedChange::User(name, None) => drop(self.write().users.remove(&**name)),
            SharedChange::UserEnded { user, end } => {
                // A user deleted before it was made again is somebody else.
                let mut directory = self.write();
                let is_gone = |known: &DirectoryUser| known.revision.created < end.logins;
                if end.logins > 0 && directory.users.get(&**user).is_some_and(is_gone) {
                    directory.users.remove(&**user);
                }
            }
            SharedChange::Directory { users, .. } => {
                let mut directory = self.write();
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
        // The whole directory is told right after.
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
