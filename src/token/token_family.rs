//! The tokens of one user that end together, and what the indexes say of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Seconds since the store was made, on the monotonic clock.
pub(super) type Second = u32;

/// The first bytes of a token's digest: enough to look a token up, not to identify it.
pub(super) type Tag = u32;

/// All live tokens of one user. A logout or deletion ends the whole family in one step; the
/// user's next login begins a new one.
#[derive(Debug)]
pub(super) struct TokenFamily {
    pub(super) name: Arc<str>,
    pub(super) id: u32,
    /// Index of the user's shard.
    pub(super) shard: u16,
    is_over: AtomicBool,
    // These two change only under the lock of the shard.
    count: AtomicU32,
    soonest: AtomicU32,
}

impl TokenFamily {
    pub(super) fn new(name: Arc<str>, id: u32, shard: u16) -> Self {
        Self {
            name,
            id,
            shard,
            is_over: AtomicBool::new(false),
            count: AtomicU32::new(0),
            soonest: AtomicU32::new(Second::MAX),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Every token of the family is dead from here on.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed) as usize
    }

    pub(super) fn set_count(&self, count: u32) {
        self.count.store(count, Ordering::Relaxed);
    }

    /// Counts one token more; true: it is the first.
    pub(super) fn count_in(&self) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Counts one token less; true: it was the last.
    pub(super) fn count_out(&self) -> bool {
        self.count.fetch_sub(1, Ordering::Relaxed) <= 1
    }

    /// When the sweep must check this family next; `Second::MAX`: never.
    pub(super) fn soonest(&self) -> Second {
        self.soonest.load(Ordering::Relaxed)
    }

    pub(super) fn set_soonest(&self, second: Second) {
        self.soonest.store(second, Ordering::Relaxed);
    }
}
