//! The maps. Locks are taken in one order: a shard of the holders, then a shard of the
//! grants. A look-up takes only the latter; none is held across an await. What changes
//! for a token changes under the lock of its user's shard.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::expiry_index::{ExpiryEntry, Second};
use super::flags::GrantFlags;
use super::grant_table::{GrantTable, StoredGrant};
use super::user_index::{TokenFamily, UserIndex, UserShard};
use super::{Grant, InsertRefused, TokenDigest};
use crate::clock::{self, Deadline};
use crate::config::{self, AtTokenCap};
use crate::metrics::{Metrics, TokenEvent};

/// A difference between the clocks that is a jump, and not drift or rounding.
pub(super) const JUMP_MILLIS: i64 = 2000;

#[derive(Debug)]
pub(super) struct TokenMemory {
    pub(super) table: GrantTable,
    pub(super) holders: UserIndex,
    total: AtomicUsize,
    metrics: Arc<Metrics>,
    /// Dead tokens forgotten since somebody asked.
    died: AtomicU64,
    max_tokens_per_user: AtomicUsize,
    max_tokens: AtomicUsize,
    pub(super) ends_oldest: AtomicBool,
    pub(super) start: Instant,
    backlog: Mutex<SweepBacklog>,
    /// Wall clock minus monotonic clock, in milliseconds, as the hints assume it.
    pub(super) offset: AtomicI64,
}

/// What the sweep has been given to do, and how far it has come.
#[derive(Debug, Default)]
pub(super) struct SweepBacklog {
    /// Lots that were ended, with tokens to forget.
    pub(super) over: VecDeque<Arc<TokenFamily>>,
    /// Every hint up to this one may be wrong since the wall clock jumped.
    pub(super) doubtful: Option<DoubtfulEntries>,
    /// Traces of deletions, oldest first: when, whose, and its number.
    pub(super) deleted: VecDeque<(Instant, Arc<str>, u64)>,
    /// The shard of the holders where the next slice begins.
    pub(super) place: u16,
}

/// The hints not looked at since a jump: those of this shard after the one seen last,
/// and those of the shards that follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DoubtfulEntries {
    pub(super) place: u16,
    pub(super) seen: Option<ExpiryEntry>,
}

#[derive(Debug)]
pub(super) enum TokenState {
    Live(Grant),
    Dead,
    Nothing,
}

impl TokenMemory {
    pub(super) fn new(settings: &config::UsersConfig, metrics: Arc<Metrics>) -> Self {
        let memory = Self {
            table: GrantTable::new(),
            holders: UserIndex::new(),
            total: AtomicUsize::new(0),
            metrics,
            died: AtomicU64::new(0),
            max_tokens_per_user: AtomicUsize::new(0),
            max_tokens: AtomicUsize::new(0),
            ends_oldest: AtomicBool::new(false),
            start: Instant::now(),
            backlog: Mutex::default(),
            offset: AtomicI64::new(0),
        };
        let offset = memory.clock_offset();
        memory.offset.store(offset, Ordering::Relaxed);
        memory.cap(settings);
        memory
    }

    pub(super) fn cap(&self, settings: &config::UsersConfig) {
        let per_user = settings.max_tokens_per_user;
        self.max_tokens_per_user.store(per_user, Ordering::Relaxed);
        self.max_tokens
            .store(settings.max_tokens, Ordering::Relaxed);
        let ends_oldest = settings.at_token_cap == AtTokenCap::EndOldest;
        self.ends_oldest.store(ends_oldest, Ordering::Relaxed);
    }

    pub(super) fn len(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    pub(super) fn find(&self, digest: &TokenDigest) -> TokenState {
        let Some(stored) = self.table.find(digest) else {
            return TokenState::Nothing;
        };
        let ends = stored.ends.unpack(self.start);
        if stored.lot.is_over() || ends.has_passed() {
            return TokenState::Dead;
        }
        stored.flags.mark_used();
        TokenState::Live(stored.grant(ends))
    }

    /// Every live token.
    pub(super) fn each(&self, mut give: impl FnMut(&TokenDigest, Grant)) {
        self.table.each(|digest, stored| {
            let ends = stored.ends.unpack(self.start);
            if !stored.lot.is_over() && !ends.has_passed() {
                give(digest, stored.grant(ends));
            }
        });
    }

    pub(super) fn caps(&self) -> (usize, usize) {
        let per_user = self.max_tokens_per_user.load(Ordering::Relaxed);
        (per_user, self.max_tokens.load(Ordering::Relaxed))
    }

    /// Forgets a token, unless it is live.
    pub(super) fn forget_dead(&self, digest: &TokenDigest) {
        if let Some(dead) = self.take_if(digest, |stored| !stored.is_live(self.start)) {
            self.count_dead(&dead.lot, 1);
        }
    }

    /// Forgets a token; whether it was live.
    pub(super) fn remove(&self, digest: &TokenDigest) -> bool {
        let stored = self.take_if(digest, |_| true);
        stored.is_some_and(|stored| stored.is_live(self.start))
    }

    pub(super) fn take_if(
        &self,
        digest: &TokenDigest,
        is_wanted: impl Fn(&StoredGrant) -> bool,
    ) -> Option<StoredGrant> {
        loop {
            let lot = self.table.lot_of(digest)?;
            let mut shard = self.holders.of_lot(&lot);
            let is_mine = |stored: &StoredGrant| Arc::ptr_eq(&stored.lot, &lot);
            let taken = self
                .table
                .take(digest, |stored| is_mine(stored) && is_wanted(stored));
            if let Some(stored) = taken {
                self.count_off();
                self.settle(&mut shard, digest, &stored);
                return Some(stored);
            }
            if self
                .table
                .find(digest)
                .is_none_or(|stored| is_mine(&stored))
            {
                return None;
            }
            // Meanwhile it has become somebody else's.
        }
    }

    pub(super) fn revoke_user(&self, user: &str) -> usize {
        self.hand_over(self.holders.log_out(user))
    }

    /// Ends a user's tokens but one, which never ceases to be live; how many.
    pub(super) fn revoke_others(&self, user: &str, kept: &TokenDigest) -> usize {
        let mut shard = self.holders.of_user(user);
        let Some(lot) = shard.take_lot(user) else {
            return 0;
        };
        let moved = self.move_to_next_lot(&mut shard, kept, &lot);
        let over = shard.end_lot(lot);
        if let Some(old) = &moved {
            self.settle(&mut shard, kept, old);
        }
        self.holders.retire(&mut shard, user);
        drop(shard);
        self.hand_over(Some(over)) - usize::from(moved.is_some())
    }

    /// Puts a token into the lot that its user's next login begins. Gives what it was before,
    /// in a lot that the caller ends; None: it is not a live token of that lot.
    fn move_to_next_lot(
        &self,
        shard: &mut UserShard,
        digest: &TokenDigest,
        lot: &Arc<TokenFamily>,
    ) -> Option<StoredGrant> {
        let (due, ends, role) = {
            let stored = self.table.find(digest)?;
            if !Arc::ptr_eq(&stored.lot, lot) || !stored.is_live(self.start) {
                return None;
            }
            (stored.due, stored.ends, stored.flags.role())
        };
        let next = shard.lot_for(&lot.name);
        let stored = StoredGrant {
            lot: Arc::clone(&next),
            due,
            ends,
            flags: GrantFlags::fresh(role),
        };
        // What changes for a token changes under its user's lock: it is still there.
        let old = self.table.place(*digest, stored, || Err(())).ok()??;
        shard.count_in(&next);
        shard.due.add(&next, due, digest.tag());
        Some(old)
    }

    pub(super) fn end_user(&self, user: &str) -> usize {
        let (lot, deletion) = self.holders.delete(user);
        let trace = (Instant::now(), user.into(), deletion);
        self.backlog().deleted.push_back(trace);
        self.hand_over(lot)
    }

    /// Gives a lot that is over to the sweep; how many tokens it had.
    fn hand_over(&self, over: Option<(Arc<TokenFamily>, usize)>) -> usize {
        let Some((lot, count)) = over else { return 0 };
        self.backlog().over.push_back(lot);
        count
    }

    /// Looks at the tokens of a hint: forgets the dead, hints anew at the others. How
    /// many are gone.
    pub(super) fn review(
        &self,
        shard: &mut UserShard,
        lot: &Arc<TokenFamily>,
        hint: ExpiryEntry,
    ) -> usize {
        let mut gone = 0;
        let is_dead = |stored: &StoredGrant| !stored.is_live(self.start);
        while self.table.take_hinted(hint, lot, is_dead).is_some() {
            gone += 1;
            self.count_off();
            self.holders.count_out(shard, lot);
        }
        self.count_dead(lot, gone);
        while let Some(due) = self.table.alter_hinted(hint, lot, |stored| {
            stored.due = self.due_again(stored);
            stored.due
        }) {
            if due == hint.due {
                return gone;
            }
            shard.due.add(lot, due, hint.tag);
        }
        shard.due.remove(hint);
        gone
    }

    pub(super) fn backlog(&self) -> MutexGuard<'_, SweepBacklog> {
        // Only pushes, pops and single values are set under this lock.
        self.backlog.lock()
    }

    pub(super) fn now(&self) -> Second {
        Second::try_from(self.start.elapsed().as_secs()).unwrap_or(Second::MAX - 1)
    }

    /// Milliseconds since the start, on the monotonic clock.
    pub(super) fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn clock_offset(&self) -> i64 {
        let signed = |millis| i64::try_from(millis).unwrap_or(i64::MAX);
        signed(clock::unix_millis()).saturating_sub(signed(self.millis()))
    }

    /// Whether hints may be wrong by more than a little.
    pub(super) fn is_in_doubt(&self) -> bool {
        let assumed = self.offset.load(Ordering::Relaxed);
        self.backlog().doubtful.is_some() || (self.clock_offset() - assumed).abs() >= JUMP_MILLIS
    }

    /// The first second at which the deadline has surely passed.
    pub(super) fn due_second(&self, ends: &Deadline) -> Second {
        let end = self.start.elapsed().saturating_add(ends.left()).as_secs();
        Second::try_from(end.saturating_add(1)).unwrap_or(Second::MAX - 1)
    }

    fn due_again(&self, stored: &StoredGrant) -> Second {
        self.due_second(&stored.ends.unpack(self.start))
            .max(self.now() + 1)
    }

    /// A token is gone from the table, or has another grant there: its hint goes too,
    /// unless another token needs it.
    pub(super) fn settle(&self, shard: &mut UserShard, digest: &TokenDigest, gone: &StoredGrant) {
        let hint = gone.hint(digest);
        if !self.table.has_hinted(hint, &gone.lot) {
            shard.due.remove(hint);
        }
        self.holders.count_out(shard, &gone.lot);
    }

    fn count_off(&self) {
        self.total.fetch_sub(1, Ordering::Relaxed);
        self.metrics.tokens.dec();
    }

    /// The revoked were counted when their user ended them.
    fn count_dead(&self, lot: &TokenFamily, count: usize) {
        let count = count as u64;
        self.died.fetch_add(count, Ordering::Relaxed);
        if !lot.is_over() {
            let events = &self.metrics.token_events;
            events.add_many(TokenEvent::Expired, count);
        }
    }

    /// How many dead tokens were forgotten since this was asked last.
    pub(super) fn died(&self) -> u64 {
        self.died.swap(0, Ordering::Relaxed)
    }

    pub(super) fn count_restored(&self, count: usize) {
        self.total.fetch_add(count, Ordering::Relaxed);
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.tokens.add(count);
    }

    /// One more; `in_place` of another, whatever the cap.
    pub(super) fn count_one(&self, in_place: bool) -> Result<(), InsertRefused> {
        let most = match in_place {
            true => usize::MAX,
            false => self.max_tokens.load(Ordering::Relaxed),
        };
        let more = |total| (total < most).then_some(total + 1);
        let counted = self
            .total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.map_err(|_| InsertRefused::Full(None))?;
        self.metrics.tokens.inc();
        Ok(())
    }

    /// Users on record, and hints.
    #[cfg(test)]
    pub(super) fn traces(&self) -> (usize, usize) {
        self.holders.traces()
    }
}
