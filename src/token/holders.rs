//! The users, as far as tokens go: what they hold, and what has ended it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;

use super::{ByDigest, Epoch, TokenDigest};

pub(super) type Tokens = HashSet<TokenDigest, ByDigest>;

/// Users with tokens, or deleted not long ago. The rest leave no trace here, so
/// made-up names cost nothing.
#[derive(Debug, Default)]
pub(super) struct Holders {
    each: DashMap<Arc<str>, Arc<Holder>>,
    deletions: AtomicU64,
    /// The latest deletion whose trace was given up. A login older than it is refused.
    forgotten: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Holder {
    pub(super) name: Arc<str>,
    /// A grant of an earlier generation is dead.
    generation: AtomicU32,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
pub(super) struct Held {
    /// Of this generation only.
    pub(super) tokens: Tokens,
    /// The deletion that ended this user last; 0: none.
    ended: u64,
    /// No longer in the map: whoever still has it must look again.
    is_retired: bool,
}

impl Holder {
    fn new(name: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            name,
            generation: AtomicU32::new(0),
            held: Mutex::default(),
        })
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Every token held is dead from here on; gives them away.
    pub(super) fn next_generation(&self, held: &mut Held) -> Tokens {
        self.generation.fetch_add(1, Ordering::AcqRel);
        std::mem::take(&mut held.tokens)
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing between two changes of `Held` can panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holders {
    pub(super) fn find(&self, user: &str) -> Option<Arc<Holder>> {
        self.each.get(user).map(|holder| Arc::clone(&holder))
    }

    /// Does `work` with what the user holds; makes the user's record if there is none.
    pub(super) fn with<T>(
        &self,
        user: &str,
        work: impl FnOnce(&Arc<Holder>, &mut Held) -> T,
    ) -> (Arc<Holder>, T) {
        loop {
            let holder = self.find_or_make(user);
            let mut held = holder.held();
            if !held.is_retired {
                let outcome = work(&holder, &mut held);
                drop(held);
                return (holder, outcome);
            }
        }
    }

    fn find_or_make(&self, user: &str) -> Arc<Holder> {
        self.find(user).unwrap_or_else(|| {
            let name: Arc<str> = user.into();
            let place = self.each.entry(Arc::clone(&name));
            Arc::clone(&place.or_insert_with(|| Holder::new(name)))
        })
    }

    /// Counts the deletions of all users: a user needs no record to have an epoch,
    /// and forgetting an old deletion refuses no login that began after it.
    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.deletions.load(Ordering::Acquire))
    }

    /// Whether a deletion has come between `epoch` and now.
    pub(super) fn has_ended(&self, held: &Held, epoch: Epoch) -> bool {
        epoch.0 < held.ended.max(self.forgotten.load(Ordering::Acquire))
    }

    /// Marks the user deleted: every epoch taken until now is over.
    pub(super) fn end(&self, held: &mut Held) {
        let deletion = self.deletions.fetch_add(1, Ordering::AcqRel) + 1;
        held.ended = held.ended.max(deletion);
    }

    /// A deletion's trace has served: no login takes as long as it was kept.
    pub(super) fn forget_deletion(&self, holder: &Arc<Holder>) {
        let ended = holder.held().ended;
        self.forgotten.fetch_max(ended, Ordering::AcqRel);
        self.retire(holder);
    }

    /// Drops the record of a user without tokens and without a recent deletion.
    pub(super) fn retire(&self, holder: &Arc<Holder>) {
        self.each.remove_if(&holder.name, |_, current| {
            if !Arc::ptr_eq(current, holder) {
                return false;
            }
            let mut held = current.held();
            let forgotten = self.forgotten.load(Ordering::Acquire);
            held.is_retired = held.tokens.is_empty() && held.ended <= forgotten;
            held.is_retired
        });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.each.len()
    }
}
