//! Removes dead tokens in short slices; the work is proportional to the number that died.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::expiry_index::ExpiryEntry;
use super::memory::{DoubtfulEntries, JUMP_MILLIS, TokenMemory};
use super::token_family::{Second, TokenFamily};
use super::user_index::{SHARDS, UserShard};
use super::{TokenBackend, TokenStore};
use crate::lifecycle::ShutdownSignal;

const INTERVAL: Duration = Duration::from_secs(1);

/// Tokens examined between two yields: some hundred microseconds.
const SLICE: usize = 256;

/// How long a deletion is remembered, to refuse logins that began before it.
pub(super) const MAX_LOGIN_TIME: Duration = Duration::from_secs(3600);

/// Tokens examined under one lock; logins of users in the same shard wait meanwhile.
const MAX_PER_LOCK: usize = 32;

/// The result of one slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweptSlice {
    /// Tokens examined, and empty families dropped; 0: there is nothing left to do for now.
    pub seen: usize,
    pub removed: usize,
}

impl SweptSlice {
    fn is_full(&self, budget: usize) -> bool {
        self.seen >= budget
    }

    /// How many tokens to examine next.
    fn next(&self, budget: usize) -> usize {
        (budget - self.seen).min(MAX_PER_LOCK)
    }

    fn add(&mut self, seen: usize, removed: usize) {
        self.seen += seen;
        self.removed += removed;
    }
}

impl TokenStore {
    /// One slice: examines up to `budget` tokens that are dead or may be.
    pub fn sweep(&self, budget: usize) -> SweptSlice {
        self.notice_jump(self.memory.clock_offset());
        self.memory.forget_deletions();
        let mut swept = SweptSlice::default();
        self.memory.sweep_over(budget, &mut swept);
        self.memory.sweep_recheck(budget, &mut swept);
        self.memory.sweep_due(budget, &mut swept);
        swept
    }

    /// A wall clock set forward, or a host resumed from sleep, expires tokens earlier than their
    /// entries say. One set back needs nothing: deadlines also count on the monotonic clock.
    pub(super) fn notice_jump(&self, offset: i64) {
        let assumed = self.memory.offset.load(Ordering::Relaxed);
        if (offset - assumed).abs() < JUMP_MILLIS {
            return;
        }
        self.memory.offset.store(offset, Ordering::Relaxed);
        if offset > assumed {
            self.memory.backlog().recheck = Some(DoubtfulEntries::default());
        }
    }
}

impl DoubtfulEntries {
    fn next(self, seen: Option<&ExpiryEntry>) -> Option<Self> {
        let (shard, seen) = (self.shard + u16::from(seen.is_none()), seen.copied());
        (shard < SHARDS).then_some(Self { shard, seen })
    }
}

impl TokenMemory {
    /// Removes the tokens of families that were ended.
    fn sweep_over(&self, budget: usize, swept: &mut SweptSlice) {
        while !swept.is_full(budget) {
            let Some(family) = self.backlog().over.front().cloned() else {
                return;
            };
            let mut shard = self.users.shard_of_family(&family);
            let entries = shard.expiry.of(&family, Second::MAX, swept.next(budget));
            self.review_all(&mut shard, &family, &entries, swept);
            drop(shard);
            if entries.is_empty() {
                swept.add(1, 0);
                let mut backlog = self.backlog();
                if backlog
                    .over
                    .front()
                    .is_some_and(|first| Arc::ptr_eq(first, &family))
                {
                    backlog.over.pop_front();
                }
            }
        }
    }

    /// Examines every entry that is older than a clock jump.
    fn sweep_recheck(&self, budget: usize, swept: &mut SweptSlice) {
        while !swept.is_full(budget) {
            let Some(from) = self.backlog().recheck else {
                return;
            };
            let mut shard = self.users.shard(from.shard);
            let entries = shard.expiry.after(from.seen, swept.next(budget));
            for entry in &entries {
                if let Some(family) = self.table.family_by_entry(*entry, from.shard) {
                    self.review_all(&mut shard, &family, &[*entry], swept);
                }
            }
            drop(shard);
            let next = from.next(entries.last());
            let mut backlog = self.backlog();
            if backlog.recheck == Some(from) {
                backlog.recheck = next;
            }
        }
    }

    /// Removes what has expired, shard by shard, starting where the last slice ended.
    fn sweep_due(&self, budget: usize, swept: &mut SweptSlice) {
        let first = self.backlog().shard;
        for step in 0..SHARDS {
            let index = (first + step) % SHARDS;
            while !swept.is_full(budget) && self.sweep_family(index, budget, swept) {}
            if swept.is_full(budget) {
                self.backlog().shard = index;
                return;
            }
        }
    }

    /// Examines due tokens of one family; false: nothing in this shard is due.
    fn sweep_family(&self, index: u16, budget: usize, swept: &mut SweptSlice) -> bool {
        let now = self.now();
        let mut shard = self.users.shard(index);
        let Some(family) = shard.expiry.due_family(now) else {
            return false;
        };
        let entries = shard.expiry.of(&family, now, swept.next(budget));
        self.review_all(&mut shard, &family, &entries, swept);
        if entries.is_empty() {
            swept.add(1, 0);
        }
        if family.count() > 0 {
            shard.expiry.reschedule(&family);
        }
        true
    }

    fn review_all(
        &self,
        shard: &mut UserShard,
        family: &Arc<TokenFamily>,
        entries: &[ExpiryEntry],
        swept: &mut SweptSlice,
    ) {
        for entry in entries {
            let removed = self.review(shard, family, *entry);
            swept.add(1, removed);
        }
    }

    fn forget_deletions(&self) {
        while let Some((user, deletion)) = self.oldest_deletion() {
            self.users.forget_deletion(&user, deletion);
        }
    }

    fn oldest_deletion(&self) -> Option<(Arc<str>, u64)> {
        let mut backlog = self.backlog();
        let (when, _, _) = backlog.deleted.front()?;
        if when.elapsed() < MAX_LOGIN_TIME {
            return None;
        }
        let (_, user, deletion) = backlog.deleted.pop_front()?;
        Some((user, deletion))
    }
}

/// Sweeps every second until drain.
pub async fn sweep_loop(store: Arc<TokenStore>, stop: ShutdownSignal) {
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.draining() => return,
            _ = tick.tick() => {}
        }
        let mut removed = 0;
        loop {
            let swept = store.sweep(SLICE);
            removed += swept.removed;
            if swept.seen == 0 || stop.is_draining() {
                break;
            }
            // Other tasks run between two slices.
            tokio::task::yield_now().await;
        }
        if removed > 0 {
            debug!(removed, "swept tokens");
        }
        store.report_dead();
        if let TokenBackend::Shared(replica) = &store.backend {
            replica.sweep();
        }
    }
}
