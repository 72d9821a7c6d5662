//! The tokens in memory: the user index and the grant table. Lock order: a shard of the user
//! index, then a shard of the grant table; `find` takes only the latter, and no lock is held
//! across an await. Every change of a token takes place under the lock of its user's shard.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::expiry_index::ExpiryEntry;
use super::flags::GrantFlags;
use super::grant_table::{GrantTable, StoredGrant};
use super::token_family::{Second, TokenFamily};
use super::user_index::{UserIndex, UserShard};
use super::{Grant, InsertRefused, TokenDigest};
use crate::clock::{self, Deadline};
use crate::config::{self, AtTokenCap};
use crate::metrics::{Metrics, TokenEvent};

/// A clock difference of at least this is a jump, not drift or rounding.
pub(super) const JUMP_MILLIS: i64 = 2000;

#[derive(Debug)]
pub(super) struct TokenMemory {
    pub(super) table: GrantTable,
    pub(super) users: UserIndex,
    total: AtomicUsize,
    metrics: Arc<Metrics>,
    /// Dead tokens removed since `take_dead_count`.
    dead_count: AtomicU64,
    max_tokens_per_user: AtomicUsize,
    max_tokens: AtomicUsize,
    pub(super) ends_oldest: AtomicBool,
    pub(super) start: Instant,
    backlog: Mutex<SweepBacklog>,
    /// Wall clock minus monotonic clock, in milliseconds, when the expiry entries were computed.
    pub(super) offset: AtomicI64,
}

/// The sweep's work list and position.
#[derive(Debug, Default)]
pub(super) struct SweepBacklog {
    /// Ended families whose tokens are still in memory.
    pub(super) over: VecDeque<Arc<TokenFamily>>,
    /// Entries to examine again because the wall clock has jumped.
    pub(super) recheck: Option<DoubtfulEntries>,
    /// Deletions still remembered, oldest first: when, which user, its number.
    pub(super) deleted: VecDeque<(Instant, Arc<str>, u64)>,
    /// Index of the shard where the next slice begins.
    pub(super) shard: u16,
}

/// Position in the pass after a clock jump: entries of this shard after `seen`, and those of all
/// later shards, are still to be examined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DoubtfulEntries {
    pub(super) shard: u16,
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
            users: UserIndex::new(),
            total: AtomicUsize::new(0),
            metrics,
            dead_count: AtomicU64::new(0),
            max_tokens_per_user: AtomicUsize::new(0),
            max_tokens: AtomicUsize::new(0),
            ends_oldest: AtomicBool::new(false),
            start: Instant::now(),
            backlog: Mutex::default(),
            offset: AtomicI64::new(0),
        };
        let offset = memory.clock_offset();
        memory.offset.store(offset, Ordering::Relaxed);
        memory.set_caps(settings);
        memory
    }

    pub(super) fn set_caps(&self, settings: &config::UsersConfig) {
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
        if stored.family.is_over() || ends.has_passed() {
            return TokenState::Dead;
        }
        stored.flags.mark_used();
        TokenState::Live(stored.grant(ends))
    }

    /// Visits every live token.
    pub(super) fn for_each_live(&self, mut visit: impl FnMut(&TokenDigest, Grant)) {
        self.table.for_each(|digest, stored| {
            let ends = stored.ends.unpack(self.start);
            if !stored.family.is_over() && !ends.has_passed() {
                visit(digest, stored.grant(ends));
            }
        });
    }

    pub(super) fn caps(&self) -> (usize, usize) {
        let per_user = self.max_tokens_per_user.load(Ordering::Relaxed);
        (per_user, self.max_tokens.load(Ordering::Relaxed))
    }

    /// Removes a token, unless it is live.
    pub(super) fn remove_dead(&self, digest: &TokenDigest) {
        if let Some(dead) = self.remove_if(digest, |stored| !stored.is_live(self.start)) {
            self.count_dead(&dead.family, 1);
        }
    }

    /// Removes a token; returns whether it was live.
    pub(super) fn remove(&self, digest: &TokenDigest) -> bool {
        let stored = self.remove_if(digest, |_| true);
        stored.is_some_and(|stored| stored.is_live(self.start))
    }

    pub(super) fn remove_if(
        &self,
        digest: &TokenDigest,
        is_wanted: impl Fn(&StoredGrant) -> bool,
    ) -> Option<StoredGrant> {
        loop {
            let family = self.table.family_of(digest)?;
            let mut shard = self.users.shard_of_family(&family);
            let is_mine = |stored: &StoredGrant| Arc::ptr_eq(&stored.family, &family);
            let taken = self
                .table
                .take(digest, |stored| is_mine(stored) && is_wanted(stored));
            if let Some(stored) = taken {
                self.count_removed();
                self.release_entry(&mut shard, digest, &stored);
                return Some(stored);
            }
            if self
                .table
                .find(digest)
                .is_none_or(|stored| is_mine(&stored))
            {
                return None;
            }
            // Another user has got the token meanwhile: try again.
        }
    }

    pub(super) fn revoke_user(&self, user: &str) -> usize {
        self.queue_for_sweep(self.users.log_out(user))
    }

    /// Ends a user's tokens but one, which stays live throughout; returns how many ended.
    pub(super) fn revoke_others(&self, user: &str, keep: &TokenDigest) -> usize {
        let mut shard = self.users.shard_of_user(user);
        let Some(family) = shard.take_family(user) else {
            return 0;
        };
        let moved = self.move_to_next_family(&mut shard, keep, &family);
        let over = shard.end_family(family);
        if let Some(old) = &moved {
            self.release_entry(&mut shard, keep, old);
        }
        self.users.retire(&mut shard, user);
        drop(shard);
        self.queue_for_sweep(Some(over)) - usize::from(moved.is_some())
    }

    /// Moves a token into a new family, that of the user's next logins. Returns its grant in the
    /// old family, which the caller ends; None: it is not a live token of that family.
    fn move_to_next_family(
        &self,
        shard: &mut UserShard,
        digest: &TokenDigest,
        family: &Arc<TokenFamily>,
    ) -> Option<StoredGrant> {
        let (due, ends, role) = {
            let stored = self.table.find(digest)?;
            if !Arc::ptr_eq(&stored.family, family) || !stored.is_live(self.start) {
                return None;
            }
            (stored.due, stored.ends, stored.flags.role())
        };
        let next = shard.family_for(&family.name);
        let stored = StoredGrant {
            family: Arc::clone(&next),
            due,
            ends,
            flags: GrantFlags::fresh(role),
        };
        // Still there: the caller holds the lock of the user's shard.
        let old = self.table.insert(*digest, stored, || Err(())).ok()??;
        shard.count_in(&next);
        shard.expiry.add(&next, due, digest.tag());
        Some(old)
    }

    pub(super) fn end_user(&self, user: &str) -> usize {
        let (family, deletion) = self.users.delete(user);
        let trace = (Instant::now(), user.into(), deletion);
        self.backlog().deleted.push_back(trace);
        self.queue_for_sweep(family)
    }

    /// Queues an ended family for the sweep; returns how many tokens it had.
    fn queue_for_sweep(&self, over: Option<(Arc<TokenFamily>, usize)>) -> usize {
        let Some((family, count)) = over else {
            return 0;
        };
        self.backlog().over.push_back(family);
        count
    }

    /// Examines the tokens that an entry points to: removes the dead ones, and gives live ones an
    /// entry at their true expiry. Returns how many were removed.
    pub(super) fn review(
        &self,
        shard: &mut UserShard,
        family: &Arc<TokenFamily>,
        entry: ExpiryEntry,
    ) -> usize {
        let mut removed = 0;
        let is_dead = |stored: &StoredGrant| !stored.is_live(self.start);
        while self.table.take_by_entry(entry, family, is_dead).is_some() {
            removed += 1;
            self.count_removed();
            self.users.count_out(shard, family);
        }
        self.count_dead(family, removed);
        while let Some(due) = self.table.alter_by_entry(entry, family, |stored| {
            stored.due = self.next_due(stored);
            stored.due
        }) {
            if due == entry.due {
                return removed;
            }
            shard.expiry.add(family, due, entry.tag);
        }
        shard.expiry.remove(entry);
        removed
    }

    pub(super) fn backlog(&self) -> MutexGuard<'_, SweepBacklog> {
        self.backlog.lock()
    }

    pub(super) fn now(&self) -> Second {
        Second::try_from(self.start.elapsed().as_secs()).unwrap_or(Second::MAX - 1)
    }

    /// Milliseconds since this store was created, on the monotonic clock.
    pub(super) fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn clock_offset(&self) -> i64 {
        let signed = |millis| i64::try_from(millis).unwrap_or(i64::MAX);
        signed(clock::unix_millis()).saturating_sub(signed(self.millis()))
    }

    /// Whether entries may be wrong by more than rounding, after a jump of the wall clock.
    pub(super) fn has_clock_jumped(&self) -> bool {
        let assumed = self.offset.load(Ordering::Relaxed);
        self.backlog().recheck.is_some() || (self.clock_offset() - assumed).abs() >= JUMP_MILLIS
    }

    /// The first second at which the deadline has certainly passed.
    pub(super) fn due_second(&self, ends: &Deadline) -> Second {
        let end = self.start.elapsed().saturating_add(ends.left()).as_secs();
        Second::try_from(end.saturating_add(1)).unwrap_or(Second::MAX - 1)
    }

    fn next_due(&self, stored: &StoredGrant) -> Second {
        self.due_second(&stored.ends.unpack(self.start))
            .max(self.now() + 1)
    }

    /// A token was removed from the table, or its grant replaced: removes its entry too, unless
    /// another token shares it.
    pub(super) fn release_entry(
        &self,
        shard: &mut UserShard,
        digest: &TokenDigest,
        old: &StoredGrant,
    ) {
        let entry = old.entry(digest);
        if !self.table.has_entry(entry, &old.family) {
            shard.expiry.remove(entry);
        }
        self.users.count_out(shard, &old.family);
    }

    fn count_removed(&self) {
        self.total.fetch_sub(1, Ordering::Relaxed);
        self.metrics.tokens.dec();
    }

    /// Counts dead tokens. Revoked ones were counted in the metrics when they were revoked.
    fn count_dead(&self, family: &TokenFamily, count: usize) {
        let count = count as u64;
        self.dead_count.fetch_add(count, Ordering::Relaxed);
        if !family.is_over() {
            let events = &self.metrics.token_events;
            events.add_many(TokenEvent::Expired, count);
        }
    }

    /// Returns the number of dead tokens removed since the last call.
    pub(super) fn take_dead_count(&self) -> u64 {
        self.dead_count.swap(0, Ordering::Relaxed)
    }

    pub(super) fn count_restored(&self, count: usize) {
        self.total.fetch_add(count, Ordering::Relaxed);
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.tokens.add(count);
    }

    /// Counts one token more; `replaces` another one: regardless of the cap.
    pub(super) fn count_one(&self, replaces: bool) -> Result<(), InsertRefused> {
        let max = match replaces {
            true => usize::MAX,
            false => self.max_tokens.load(Ordering::Relaxed),
        };
        let more = |total| (total < max).then_some(total + 1);
        let counted = self
            .total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.map_err(|_| InsertRefused::Full(None))?;
        self.metrics.tokens.inc();
        Ok(())
    }

    /// Numbers of users and of expiry entries.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        self.users.counts()
    }
}
