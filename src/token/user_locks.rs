//! Keeps what memory does in the order of what the disk does, user by user. A login
//! and a logout of the same user never overlap: whichever has begun is over, in both
//! places, before the other begins. Logins do not wait for each other.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Users share a lane by chance; enough that they seldom wait for each other.
const LANES: usize = 1024;

#[derive(Debug)]
pub(super) struct UserLocks {
    each: Vec<Arc<RwLock<()>>>,
    hasher: RandomState,
}

/// Held as long as a login is on its way.
pub(super) type SharedLock = OwnedRwLockReadGuard<()>;

/// Held as long as tokens are being ended.
pub(super) type ExclusiveLock = OwnedRwLockWriteGuard<()>;

impl UserLocks {
    pub(super) fn new() -> Self {
        Self {
            each: (0..LANES).map(|_| Arc::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    pub(super) async fn beside(&self, user: &str) -> SharedLock {
        self.lane(user).read_owned().await
    }

    pub(super) async fn alone(&self, user: &str) -> ExclusiveLock {
        self.lane(user).write_owned().await
    }

    fn lane(&self, user: &str) -> Arc<RwLock<()>> {
        let hash = self.hasher.hash_one(user);
        let place = usize::try_from(hash % LANES as u64).unwrap_or(0);
        Arc::clone(&self.each[place])
    }
}
