//! The maps. Locks are taken in one order: a holder, a shard of the grants, the due
//! hints; and the shard of the holders before a holder. None is held across an await.

use std::collections::{VecDeque, btree_set, hash_set};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use prometheus::IntGauge;
use tokio::time::Instant;

use super::due::{Due, Hint, Second};
use super::holders::{Held, Holder, Holders, Tokens};
use super::{ByDigest, Grant, InsertRefused, TokenDigest, Wanted};
use crate::clock::{self, Deadline};
use crate::config;
use crate::webapp::Role;

/// So many that, at ten million tokens, one of them grows within a millisecond.
const SHARDS: usize = 1024;

#[derive(Debug)]
pub(super) struct Memory {
    grants: DashMap<TokenDigest, Stored, ByDigest>,
    holders: Holders,
    due: Due,
    total: AtomicUsize,
    gauge: IntGauge,
    max_tokens_per_user: AtomicUsize,
    max_tokens: AtomicUsize,
    pub(super) start: Instant,
    pub(super) backlog: Mutex<Backlog>,
    /// Wall clock minus monotonic clock, in milliseconds, as the hints assume it.
    pub(super) offset: AtomicI64,
}

/// What the sweep has been given to do besides what is due.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Tokens whose user ended them all.
    pub(super) revoked: VecDeque<hash_set::IntoIter<TokenDigest>>,
    /// Hints whose time may be wrong since the wall clock jumped.
    pub(super) doubtful: VecDeque<btree_set::IntoIter<Hint>>,
    /// Traces of deletions, oldest first.
    pub(super) deleted: VecDeque<(Instant, Arc<Holder>)>,
}

#[derive(Debug)]
struct Stored {
    holder: Arc<Holder>,
    ends: Deadline,
    generation: u32,
    due: Second,
    role: Option<Role>,
}

#[derive(Debug)]
pub(super) enum Found {
    Live(Grant),
    Dead,
    Nothing,
}

/// What forgetting a dead token came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    Expired,
    /// Counted when its user ended it.
    Revoked,
    /// Live after all, or not there.
    Not,
}

impl Stored {
    fn is_current(&self) -> bool {
        self.generation == self.holder.generation()
    }

    fn is_live(&self) -> bool {
        self.is_current() && !self.ends.has_passed()
    }
}

impl Memory {
    pub(super) fn new(settings: &config::Users, gauge: IntGauge) -> Self {
        let memory = Self {
            grants: DashMap::with_hasher_and_shard_amount(ByDigest::default(), SHARDS),
            holders: Holders::default(),
            due: Due::new(),
            total: AtomicUsize::new(0),
            gauge,
            max_tokens_per_user: AtomicUsize::new(0),
            max_tokens: AtomicUsize::new(0),
            start: Instant::now(),
            backlog: Mutex::default(),
            offset: AtomicI64::new(0),
        };
        memory
            .offset
            .store(memory.clock_offset(), Ordering::Relaxed);
        memory.cap(settings);
        memory
    }

    pub(super) fn cap(&self, settings: &config::Users) {
        let per_user = settings.max_tokens_per_user;
        self.max_tokens_per_user.store(per_user, Ordering::Relaxed);
        self.max_tokens
            .store(settings.max_tokens, Ordering::Relaxed);
    }

    pub(super) fn len(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    pub(super) fn holders(&self) -> &Holders {
        &self.holders
    }

    pub(super) fn place(
        &self,
        digest: TokenDigest,
        wanted: Wanted<'_>,
        ends: Deadline,
    ) -> Result<(), InsertRefused> {
        let (holder, placed) = self.holders.with(wanted.user, |holder, held| {
            self.place_with(holder, held, digest, (wanted, ends))
        });
        match &placed {
            Ok(Some(old)) if !Arc::ptr_eq(&old.holder, &holder) => {
                self.let_go(&old.holder, &digest)
            }
            Ok(_) => {}
            Err(_) => self.holders.retire(&holder),
        }
        placed.map(drop)
    }

    fn place_with(
        &self,
        holder: &Arc<Holder>,
        held: &mut Held,
        digest: TokenDigest,
        (wanted, ends): (Wanted<'_>, Deadline),
    ) -> Result<Option<Stored>, InsertRefused> {
        if self.holders.has_ended(held, wanted.epoch) {
            return Err(InsertRefused::Ended);
        }
        let most = self.max_tokens_per_user.load(Ordering::Relaxed);
        if held.tokens.len() >= most && !held.tokens.contains(&digest) {
            // The expired do not count; looking for them here costs less than one
            // password hash, and only a user at the cap pays.
            held.tokens.retain(|digest| self.is_live(digest));
            if held.tokens.len() >= most {
                return Err(InsertRefused::UserFull);
            }
        }
        let stored = Stored {
            holder: Arc::clone(holder),
            ends,
            generation: holder.generation(),
            due: self.due_second(&ends),
            role: wanted.role,
        };
        let hint = (stored.due, digest);
        let replaced = match self.grants.entry(digest) {
            Entry::Occupied(mut known) => {
                self.due.remove((known.get().due, digest));
                self.due.add(hint);
                Some(known.insert(stored))
            }
            Entry::Vacant(place) => {
                self.count_one()?;
                self.due.add(hint);
                place.insert(stored);
                None
            }
        };
        held.tokens.insert(digest);
        Ok(replaced)
    }

    pub(super) fn find(&self, digest: &TokenDigest) -> Found {
        let Some(stored) = self.grants.get(digest) else {
            return Found::Nothing;
        };
        if !stored.is_live() {
            return Found::Dead;
        }
        Found::Live(Grant {
            user: Arc::clone(&stored.holder.name),
            role: stored.role,
            ends: stored.ends,
        })
    }

    fn is_live(&self, digest: &TokenDigest) -> bool {
        self.grants
            .get(digest)
            .is_some_and(|stored| stored.is_live())
    }

    /// Forgets a token, unless it is live.
    pub(super) fn forget_dead(&self, digest: &TokenDigest) -> Gone {
        match self.take_if(digest, |stored| !stored.is_live()) {
            Some(stored) if stored.is_current() => Gone::Expired,
            Some(_) => Gone::Revoked,
            None => Gone::Not,
        }
    }

    /// Forgets a token; whether it was live.
    pub(super) fn remove(&self, digest: &TokenDigest) -> bool {
        let stored = self.take_if(digest, |_| true);
        stored.is_some_and(|stored| stored.is_live())
    }

    pub(super) fn revoke_user(&self, user: &str) -> usize {
        let Some(holder) = self.holders.find(user) else {
            return 0;
        };
        let tokens = holder.next_generation(&mut holder.held());
        self.holders.retire(&holder);
        self.hand_over(tokens)
    }

    pub(super) fn end_user(&self, user: &str) -> usize {
        let (holder, tokens) = self.holders.with(user, |holder, held| {
            self.holders.end(held);
            holder.next_generation(held)
        });
        let deleted = (Instant::now(), holder);
        self.backlog().deleted.push_back(deleted);
        self.hand_over(tokens)
    }

    /// Gives dead tokens to the sweep; how many.
    fn hand_over(&self, tokens: Tokens) -> usize {
        let count = tokens.len();
        if count > 0 {
            self.backlog().revoked.push_back(tokens.into_iter());
        }
        count
    }

    /// Looks at a hint that has come up: forgets the token, or hints anew.
    pub(super) fn review(&self, (second, digest): Hint) -> Gone {
        let gone = self.forget_dead(&digest);
        if gone == Gone::Not
            && let Some(mut stored) = self.grants.get_mut(&digest)
            && stored.due == second
        {
            stored.due = self.due_second(&stored.ends).max(self.now() + 1);
            self.due.add((stored.due, digest));
        }
        gone
    }

    pub(super) fn due(&self) -> &Due {
        &self.due
    }

    pub(super) fn backlog(&self) -> MutexGuard<'_, Backlog> {
        // Only pushes and pops happen under this lock.
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Second {
        Second::try_from(self.start.elapsed().as_secs()).unwrap_or(Second::MAX - 1)
    }

    pub(super) fn clock_offset(&self) -> i64 {
        let wall = i64::try_from(clock::unix_millis()).unwrap_or(i64::MAX);
        let monotonic = i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX);
        wall.saturating_sub(monotonic)
    }

    /// The first second at which the deadline has surely passed.
    fn due_second(&self, ends: &Deadline) -> Second {
        let end = self.start.elapsed().saturating_add(ends.left()).as_secs();
        Second::try_from(end.saturating_add(1)).unwrap_or(Second::MAX)
    }

    fn take_if(&self, digest: &TokenDigest, is_wanted: impl Fn(&Stored) -> bool) -> Option<Stored> {
        let (_, stored) = self.grants.remove_if(digest, |_, stored| {
            let taken = is_wanted(stored);
            if taken {
                // In here, or a token of the same digest put back meanwhile loses its hint.
                self.due.remove((stored.due, *digest));
            }
            taken
        })?;
        self.total.fetch_sub(1, Ordering::Relaxed);
        self.gauge.dec();
        self.let_go(&stored.holder, digest);
        Some(stored)
    }

    fn count_one(&self) -> Result<(), InsertRefused> {
        let most = self.max_tokens.load(Ordering::Relaxed);
        let more = |total| (total < most).then_some(total + 1);
        let counted = self
            .total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.map_err(|_| InsertRefused::Full)?;
        self.gauge.inc();
        Ok(())
    }

    /// A holder no longer has this token, unless it was put back meanwhile.
    fn let_go(&self, holder: &Arc<Holder>, digest: &TokenDigest) {
        let mut held = holder.held();
        let is_back = |stored: &Stored| Arc::ptr_eq(&stored.holder, holder) && stored.is_current();
        if !self
            .grants
            .get(digest)
            .is_some_and(|stored| is_back(&stored))
        {
            held.tokens.remove(digest);
        }
        let is_empty = held.tokens.is_empty();
        drop(held);
        if is_empty {
            self.holders.retire(holder);
        }
    }

    /// The wall clock half of every deadline passes, as if somebody had set the clock.
    #[cfg(test)]
    pub(super) fn jump(&self) {
        for mut stored in self.grants.iter_mut() {
            stored.ends = stored.ends.after_a_jump();
        }
    }

    #[cfg(test)]
    pub(super) fn traces(&self) -> (usize, usize) {
        (self.holders.len(), self.due.len())
    }
}
