//! Which token ends when: a hint for the sweep, never the verdict.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::TokenDigest;

/// Enough that logins on every core seldom meet, and that one set stays shallow.
const SHARDS: usize = 64;

/// Seconds since the store was made, on the monotonic clock.
pub(super) type Second = u32;

pub(super) type Hint = (Second, TokenDigest);

/// Digests by the second they are due. Ordered sets, so that adding, removing and
/// taking the next one are all cheap, and none ever stops to rehash millions.
#[derive(Debug)]
pub(super) struct Due {
    shards: Vec<Mutex<BTreeSet<Hint>>>,
}

impl Due {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    pub(super) fn add(&self, hint: Hint) {
        self.shard(&hint.1).insert(hint);
    }

    pub(super) fn remove(&self, hint: Hint) {
        self.shard(&hint.1).remove(&hint);
    }

    /// Up to `most` that are due at `now`, taken out.
    pub(super) fn take(&self, now: Second, most: usize) -> Vec<Hint> {
        let mut taken = Vec::new();
        for shard in &self.shards {
            let mut shard = held(shard);
            while taken.len() < most {
                let Some(hint) = shard.pop_first() else { break };
                if hint.0 > now {
                    shard.insert(hint);
                    break;
                }
                taken.push(hint);
            }
        }
        taken
    }

    /// All of them, in constant time each, to be looked at anew.
    pub(super) fn take_all(&self) -> Vec<BTreeSet<Hint>> {
        let sets = self
            .shards
            .iter()
            .map(|shard| std::mem::take(&mut *held(shard)));
        sets.filter(|set| !set.is_empty()).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| held(shard).len()).sum()
    }

    fn shard(&self, digest: &TokenDigest) -> MutexGuard<'_, BTreeSet<Hint>> {
        // The last byte: the first ones place the digest in the map.
        held(&self.shards[usize::from(digest.0[31]) % SHARDS])
    }
}

fn held(shard: &Mutex<BTreeSet<Hint>>) -> MutexGuard<'_, BTreeSet<Hint>> {
    // Each change is one call of the set: a panic elsewhere leaves it whole.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
