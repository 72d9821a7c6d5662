//! The users, as far as tokens go: what they hold, and what has ended it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::DeletionEpoch;
use super::expiry_index::{self, ExpiryEntry, ExpiryIndex, Second};
use parking_lot::{Mutex, MutexGuard};

/// Enough that logins on every core seldom meet, and that the map of ten million
/// users' names grows within a millisecond, a shard at a time.
pub(super) const SHARDS: u16 = 512;

/// Users with tokens, or deleted not long ago. The rest leave no trace here, so
/// made-up names cost nothing.
#[derive(Debug)]
pub(super) struct UserIndex {
    shards: Vec<Mutex<UserShard>>,
    hasher: RandomState,
    deletions: AtomicU64,
    /// The latest deletion whose trace was given up. A login older than it is refused.
    forgotten: AtomicU64,
}

/// The users whose names fall together.
#[derive(Debug)]
pub(super) struct UserShard {
    place: u16,
    users: HashMap<Arc<str>, TokenUser>,
    pub(super) due: ExpiryIndex,
    /// Of lots that have reached their cap: the token looked at last for one that may end.
    hands: HashMap<u32, ExpiryEntry>,
    latest_lot: u32,
}

#[derive(Debug)]
struct TokenUser {
    /// None: nothing is held.
    lot: Option<Arc<TokenFamily>>,
    /// The deletion that ended this user last; 0: none.
    ended: u64,
}

/// Tokens of one user that end together: all there are, until a logout or deletion
/// ends them in one step. The next login begins another lot.
#[derive(Debug)]
pub(super) struct TokenFamily {
    pub(super) name: Arc<str>,
    pub(super) id: u32,
    pub(super) shard: u16,
    is_over: AtomicBool,
    // These two change only under the lock of the shard.
    count: AtomicU32,
    soonest: AtomicU32,
}

impl TokenFamily {
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed) as usize
    }

    /// When to look at this lot; `Second::MAX`: not at all.
    pub(super) fn soonest(&self) -> Second {
        self.soonest.load(Ordering::Relaxed)
    }

    pub(super) fn set_soonest(&self, second: Second) {
        self.soonest.store(second, Ordering::Relaxed);
    }
}

impl UserShard {
    fn new(place: u16) -> Mutex<Self> {
        Mutex::new(Self {
            place,
            users: HashMap::new(),
            due: ExpiryIndex::default(),
            hands: HashMap::new(),
            latest_lot: 0,
        })
    }

    /// The deletion that ended this user last.
    fn ended(&self, user: &str) -> u64 {
        self.users.get(user).map_or(0, |user| user.ended)
    }

    /// The lot a new token of this user belongs to. A new lot is not kept yet.
    pub(super) fn lot_for(&mut self, user: &str) -> Arc<TokenFamily> {
        let known = self.users.get_key_value(user);
        if let Some(lot) = known.and_then(|(_, user)| user.lot.as_ref()) {
            return Arc::clone(lot);
        }
        let name = known.map_or_else(|| user.into(), |(name, _)| Arc::clone(name));
        self.new_lot(name)
    }

    fn new_lot(&mut self, name: Arc<str>) -> Arc<TokenFamily> {
        Arc::new(TokenFamily {
            name,
            id: self.next_lot(),
            shard: self.place,
            is_over: AtomicBool::new(false),
            count: AtomicU32::new(0),
            soonest: AtomicU32::new(Second::MAX),
        })
    }

    /// The lot has one token more.
    pub(super) fn count_in(&mut self, lot: &Arc<TokenFamily>) {
        if lot.count.fetch_add(1, Ordering::Relaxed) == 0 {
            self.keep(lot);
        }
    }

    /// The lot's next token in the order of their ends, round and round.
    pub(super) fn next_in_turn(&mut self, lot: &TokenFamily) -> Option<ExpiryEntry> {
        let next = self.due.next_of(lot, self.hands.get(&lot.id).copied())?;
        self.hands.insert(lot.id, next);
        Some(next)
    }

    fn keep(&mut self, lot: &Arc<TokenFamily>) {
        let user = self.users.entry(Arc::clone(&lot.name));
        let user = user.or_insert(TokenUser {
            lot: None,
            ended: 0,
        });
        user.lot = Some(Arc::clone(lot));
    }

    /// An id that no hint bears: after four thousand million lots, old ones come again.
    fn next_lot(&mut self) -> u32 {
        loop {
            self.latest_lot = self.latest_lot.wrapping_add(1);
            if !self.due.has_lot(self.latest_lot) {
                return self.latest_lot;
            }
        }
    }

    /// The user's lot, which is its no longer. Its tokens live until `end_lot`.
    pub(super) fn take_lot(&mut self, user: &str) -> Option<Arc<TokenFamily>> {
        self.users.get_mut(user)?.lot.take()
    }

    /// Every token of a lot that was taken is dead from here on; gives it back, and how many.
    pub(super) fn end_lot(&mut self, lot: Arc<TokenFamily>) -> (Arc<TokenFamily>, usize) {
        lot.is_over.store(true, Ordering::Release);
        self.due.forget_lot(&lot);
        self.hands.remove(&lot.id);
        let count = lot.count();
        (lot, count)
    }

    fn end_lot_of(&mut self, user: &str) -> Option<(Arc<TokenFamily>, usize)> {
        let lot = self.take_lot(user)?;
        Some(self.end_lot(lot))
    }

    fn give_room_back(&mut self) {
        if self.users.capacity() > 64 && self.users.len() < self.users.capacity() / 8 {
            self.users.shrink_to(self.users.len() * 2);
        }
    }

    /// Takes in what a restore has brought, where nothing was: the lots made for it, and
    /// the hints of theirs. Lots that hold nothing are not kept.
    pub(super) fn insert_families(
        &mut self,
        lots: Vec<Arc<TokenFamily>>,
        hints: &[Vec<ExpiryEntry>],
    ) {
        debug_assert!(self.due.is_empty(), "a restore comes first");
        let hints = expiry_index::in_order(hints, self.latest_lot);
        let mut by_id = vec![None; self.latest_lot as usize + 1];
        for lot in lots {
            let id = lot.id as usize;
            by_id[id] = Some(lot);
        }
        let of_one = hints.chunk_by(|one, next| one.lot == next.lot);
        let kept = of_one.filter_map(|of_one| {
            let lot = by_id[of_one[0].lot as usize].take()?;
            lot.count.store(of_one.len() as u32, Ordering::Relaxed);
            lot.set_soonest(of_one[0].due);
            Some(lot)
        });
        let kept: Vec<Arc<TokenFamily>> = kept.collect();
        self.users.reserve(kept.len());
        // So that the processor fetches many names at a time: each is somewhere else.
        black_box(kept.iter().map(|lot| Arc::strong_count(&lot.name)).max());
        for lot in &kept {
            self.keep(lot);
        }
        self.due = ExpiryIndex::of_all(hints, kept.into_iter());
    }
}

impl UserIndex {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(UserShard::new).collect(),
            hasher: RandomState::new(),
            deletions: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
        }
    }

    pub(super) fn of_user(&self, user: &str) -> MutexGuard<'_, UserShard> {
        let place = self.hasher.hash_one(user) % u64::from(SHARDS);
        self.shard(place as u16)
    }

    pub(super) fn of_lot(&self, lot: &TokenFamily) -> MutexGuard<'_, UserShard> {
        self.shard(lot.shard)
    }

    pub(super) fn shard(&self, place: u16) -> MutexGuard<'_, UserShard> {
        let shard = &self.shards[usize::from(place)];
        // Nothing between two changes of a shard can panic.
        shard.lock()
    }

    /// Counts the deletions of all users: a user needs no record to have an epoch,
    /// and forgetting an old deletion refuses no login that began after it.
    pub(super) fn epoch(&self) -> DeletionEpoch {
        DeletionEpoch {
            here: self.deletions.load(Ordering::Acquire),
            shared: 0,
        }
    }

    /// Whether a deletion of the user has come between `epoch` and now.
    pub(super) fn has_ended(&self, shard: &UserShard, user: &str, epoch: DeletionEpoch) -> bool {
        epoch.here
            < shard
                .ended(user)
                .max(self.forgotten.load(Ordering::Acquire))
    }

    /// The lot that a user's restored tokens belong to; kept once they are there.
    pub(super) fn lot_to_fill(&self, user: &Arc<str>) -> Arc<TokenFamily> {
        self.of_user(user).new_lot(Arc::clone(user))
    }

    /// Ends all tokens of a user; gives their lot.
    pub(super) fn log_out(&self, user: &str) -> Option<(Arc<TokenFamily>, usize)> {
        let mut shard = self.of_user(user);
        let lot = shard.end_lot_of(user);
        self.retire(&mut shard, user);
        lot
    }

    /// The same, and every epoch taken until now is over; gives the deletion's number.
    pub(super) fn delete(&self, user: &str) -> (Option<(Arc<TokenFamily>, usize)>, u64) {
        let mut shard = self.of_user(user);
        let lot = shard.end_lot_of(user);
        let deletion = self.deletions.fetch_add(1, Ordering::AcqRel) + 1;
        match shard.users.get_mut(user) {
            Some(known) => known.ended = deletion,
            None => {
                let ended = TokenUser {
                    lot: None,
                    ended: deletion,
                };
                shard.users.insert(user.into(), ended);
            }
        }
        (lot, deletion)
    }

    /// A deletion's trace has served: no login takes as long as it was kept.
    pub(super) fn forget_deletion(&self, user: &str, deletion: u64) {
        self.forgotten.fetch_max(deletion, Ordering::AcqRel);
        self.retire(&mut self.of_user(user), user);
    }

    /// One token of the lot is gone.
    pub(super) fn count_out(&self, shard: &mut UserShard, lot: &Arc<TokenFamily>) {
        let was = lot.count.fetch_sub(1, Ordering::Relaxed);
        if was > 1 || lot.is_over() {
            return;
        }
        shard.due.forget_lot(lot);
        shard.hands.remove(&lot.id);
        if let Some(user) = shard.users.get_mut(&lot.name) {
            user.lot = None;
        }
        self.retire(shard, &lot.name);
    }

    /// Drops the record of a user without tokens and without a recent deletion.
    pub(super) fn retire(&self, shard: &mut UserShard, user: &str) {
        let forgotten = self.forgotten.load(Ordering::Acquire);
        let known = shard.users.get(user);
        if known.is_some_and(|user| user.lot.is_none() && user.ended <= forgotten) {
            shard.users.remove(user);
            shard.give_room_back();
        }
    }

    /// Users on record, and hints.
    #[cfg(test)]
    pub(super) fn traces(&self) -> (usize, usize) {
        let shards = (0..SHARDS).map(|place| self.shard(place));
        shards.fold((0, 0), |(users, hints), shard| {
            (users + shard.users.len(), hints + shard.due.len())
        })
    }
}
