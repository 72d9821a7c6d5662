//! Forgets the dead, in short slices, in proportion to what died.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::TokenStore;
use super::expiry_index::{ExpiryEntry, Second};
use super::memory::{DoubtfulEntries, JUMP_MILLIS, TokenMemory};
use super::user_index::{SHARDS, TokenFamily, UserShard};
use crate::lifecycle::ShutdownSignal;

const EVERY: Duration = Duration::from_secs(1);

/// Tokens looked at between two yields: some hundred microseconds.
const SLICE: usize = 256;

/// How long a deletion is remembered against logins that began before it.
pub(super) const LONGEST_LOGIN: Duration = Duration::from_secs(3600);

/// Tokens looked at under one lock: a login of the same users waits so long.
const HELD: usize = 32;

/// What one slice came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweptSlice {
    /// Tokens looked at, and lots found empty; 0: nothing is left to do for now.
    pub seen: usize,
    pub removed: usize,
}

impl SweptSlice {
    fn is_full(&self, budget: usize) -> bool {
        self.seen >= budget
    }

    /// How many to look at next.
    fn next(&self, budget: usize) -> usize {
        (budget - self.seen).min(HELD)
    }

    fn add(&mut self, seen: usize, removed: usize) {
        self.seen += seen;
        self.removed += removed;
    }
}

impl TokenStore {
    /// One slice: looks at up to `budget` tokens that died, or may have.
    pub fn sweep(&self, budget: usize) -> SweptSlice {
        self.notice_jump(self.memory.clock_offset());
        self.memory.forget_deletions();
        let mut swept = SweptSlice::default();
        self.memory.sweep_over(budget, &mut swept);
        self.memory.sweep_doubtful(budget, &mut swept);
        self.memory.sweep_due(budget, &mut swept);
        swept
    }

    /// A wall clock set forward (or a host woken up) ends tokens that no hint names
    /// yet. One set back needs nothing: the monotonic clock goes on.
    pub(super) fn notice_jump(&self, offset: i64) {
        let assumed = self.memory.offset.load(Ordering::Relaxed);
        if (offset - assumed).abs() < JUMP_MILLIS {
            return;
        }
        self.memory.offset.store(offset, Ordering::Relaxed);
        if offset > assumed {
            self.memory.backlog().doubtful = Some(DoubtfulEntries::default());
        }
    }
}

impl DoubtfulEntries {
    fn next(self, seen: Option<&ExpiryEntry>) -> Option<Self> {
        let (place, seen) = (self.place + u16::from(seen.is_none()), seen.copied());
        (place < SHARDS).then_some(Self { place, seen })
    }
}

impl TokenMemory {
    /// Forgets the tokens of lots that were ended.
    fn sweep_over(&self, budget: usize, swept: &mut SweptSlice) {
        while !swept.is_full(budget) {
            let front = self.backlog().over.front().cloned();
            let Some(lot) = front else { return };
            let mut shard = self.holders.of_lot(&lot);
            let hints = shard.due.of(&lot, Second::MAX, swept.next(budget));
            self.review_all(&mut shard, &lot, &hints, swept);
            drop(shard);
            if hints.is_empty() {
                swept.add(1, 0);
                let mut backlog = self.backlog();
                if backlog
                    .over
                    .front()
                    .is_some_and(|front| Arc::ptr_eq(front, &lot))
                {
                    backlog.over.pop_front();
                }
            }
        }
    }

    /// Looks again at every hint from before a jump.
    fn sweep_doubtful(&self, budget: usize, swept: &mut SweptSlice) {
        while !swept.is_full(budget) {
            let Some(from) = self.backlog().doubtful else {
                return;
            };
            let mut shard = self.holders.shard(from.place);
            let hints = shard.due.after(from.seen, swept.next(budget));
            for hint in &hints {
                if let Some(lot) = self.table.lot_hinted(*hint, from.place) {
                    self.review_all(&mut shard, &lot, &[*hint], swept);
                }
            }
            drop(shard);
            let next = from.next(hints.last());
            let mut backlog = self.backlog();
            if backlog.doubtful == Some(from) {
                backlog.doubtful = next;
            }
        }
    }

    /// Forgets what is due. Goes round the shards, and on from where the last slice ended.
    fn sweep_due(&self, budget: usize, swept: &mut SweptSlice) {
        let first = self.backlog().place;
        for step in 0..SHARDS {
            let place = (first + step) % SHARDS;
            while !swept.is_full(budget) && self.sweep_lot(place, budget, swept) {}
            if swept.is_full(budget) {
                self.backlog().place = place;
                return;
            }
        }
    }

    /// Some of one lot; false: nothing in this shard is due.
    fn sweep_lot(&self, place: u16, budget: usize, swept: &mut SweptSlice) -> bool {
        let now = self.now();
        let mut shard = self.holders.shard(place);
        let Some(lot) = shard.due.lot(now) else {
            return false;
        };
        let hints = shard.due.of(&lot, now, swept.next(budget));
        self.review_all(&mut shard, &lot, &hints, swept);
        if hints.is_empty() {
            swept.add(1, 0);
        }
        if lot.count() > 0 {
            shard.due.settle(&lot);
        }
        true
    }

    fn review_all(
        &self,
        shard: &mut UserShard,
        lot: &Arc<TokenFamily>,
        hints: &[ExpiryEntry],
        swept: &mut SweptSlice,
    ) {
        for hint in hints {
            let removed = self.review(shard, lot, *hint);
            swept.add(1, removed);
        }
    }

    fn forget_deletions(&self) {
        while let Some((user, deletion)) = self.oldest_deletion() {
            self.holders.forget_deletion(&user, deletion);
        }
    }

    fn oldest_deletion(&self) -> Option<(Arc<str>, u64)> {
        let mut backlog = self.backlog();
        let (when, _, _) = backlog.deleted.front()?;
        if when.elapsed() < LONGEST_LOGIN {
            return None;
        }
        let (_, user, deletion) = backlog.deleted.pop_front()?;
        Some((user, deletion))
    }
}

/// Sweeps every second until drain.
pub async fn sweep_loop(store: Arc<TokenStore>, stop: ShutdownSignal) {
    let mut tick = interval(EVERY);
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
            // Others run between two slices.
            tokio::task::yield_now().await;
        }
        if removed > 0 {
            debug!(removed, "swept tokens");
        }
        store.tell_of_dead();
        if let Some(front) = &store.front {
            front.sweep();
        }
    }
}
