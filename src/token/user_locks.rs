//! Keeps the changes in memory in the order of the changes on disk, user by user. A login and
//! a logout of the same user never overlap: the first is complete, in memory and on disk,
//! before the second begins. Logins do not wait for each other.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Users are hashed to locks; there are enough that two users seldom share one.
const LOCKS: usize = 1024;

#[derive(Debug)]
pub(super) struct UserLocks {
    locks: Vec<Arc<RwLock<()>>>,
    hasher: RandomState,
}

/// Held while a login runs.
pub(super) type SharedLock = OwnedRwLockReadGuard<()>;

/// Held while tokens are revoked.
pub(super) type ExclusiveLock = OwnedRwLockWriteGuard<()>;

impl UserLocks {
    pub(super) fn new() -> Self {
        Self {
            locks: (0..LOCKS).map(|_| Arc::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    pub(super) async fn shared(&self, user: &str) -> SharedLock {
        self.lock_of(user).read_owned().await
    }

    pub(super) async fn exclusive(&self, user: &str) -> ExclusiveLock {
        self.lock_of(user).write_owned().await
    }

    fn lock_of(&self, user: &str) -> Arc<RwLock<()>> {
        let hash = self.hasher.hash_one(user);
        let index = usize::try_from(hash % LOCKS as u64).unwrap_or(0);
        Arc::clone(&self.locks[index])
    }
}
