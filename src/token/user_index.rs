//! The users that have tokens, or were deleted recently.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::DeletionEpoch;
use super::expiry_index::{self, ExpiryEntry, ExpiryIndex};
use super::token_family::TokenFamily;
use parking_lot::{Mutex, MutexGuard};

/// Number of shards: enough that logins on all cores seldom contend, and that a shard's map of ten
/// million users in all grows within a millisecond.
pub(super) const SHARDS: u16 = 512;

/// Users with tokens, and users deleted recently. Other users have no entry, so logins with
/// invented names cost no memory.
#[derive(Debug)]
pub(super) struct UserIndex {
    shards: Vec<Mutex<UserShard>>,
    hasher: RandomState,
    deletions: AtomicU64,
    /// The latest deletion whose entry was dropped. A login that began before it is refused.
    forgotten: AtomicU64,
}

/// The users whose names hash to one shard.
#[derive(Debug)]
pub(super) struct UserShard {
    index: u16,
    users: HashMap<Arc<str>, TokenUser>,
    pub(super) expiry: ExpiryIndex,
    /// Clock algorithm: for each family at its cap, the token that was examined last for eviction.
    clock_hands: HashMap<u32, ExpiryEntry>,
    latest_family_id: u32,
}

#[derive(Debug)]
struct TokenUser {
    /// None: the user has no tokens.
    family: Option<Arc<TokenFamily>>,
    /// Number of the last deletion of this user; 0: none.
    ended: u64,
}

impl UserShard {
    fn new(index: u16) -> Mutex<Self> {
        Mutex::new(Self {
            index,
            users: HashMap::new(),
            expiry: ExpiryIndex::default(),
            clock_hands: HashMap::new(),
            latest_family_id: 0,
        })
    }

    /// Number of the last deletion of this user; 0: none.
    fn ended(&self, user: &str) -> u64 {
        self.users.get(user).map_or(0, |user| user.ended)
    }

    /// The family that a new token of this user joins. A new family is not in the index yet.
    pub(super) fn family_for(&mut self, user: &str) -> Arc<TokenFamily> {
        let known = self.users.get_key_value(user);
        if let Some(family) = known.and_then(|(_, user)| user.family.as_ref()) {
            return Arc::clone(family);
        }
        let name = known.map_or_else(|| user.into(), |(name, _)| Arc::clone(name));
        self.new_family(name)
    }

    fn new_family(&mut self, name: Arc<str>) -> Arc<TokenFamily> {
        let id = self.next_family_id();
        Arc::new(TokenFamily::new(name, id, self.index))
    }

    /// Counts a token that joined the family.
    pub(super) fn count_in(&mut self, family: &Arc<TokenFamily>) {
        if family.count_in() {
            self.add_family(family);
        }
    }

    /// The family's next token in order of expiry; after the last one, the first again.
    pub(super) fn next_in_rotation(&mut self, family: &TokenFamily) -> Option<ExpiryEntry> {
        let next = self
            .expiry
            .next_entry(family, self.clock_hands.get(&family.id).copied())?;
        self.clock_hands.insert(family.id, next);
        Some(next)
    }

    fn add_family(&mut self, family: &Arc<TokenFamily>) {
        let user = self.users.entry(Arc::clone(&family.name));
        let user = user.or_insert(TokenUser {
            family: None,
            ended: 0,
        });
        user.family = Some(Arc::clone(family));
    }

    /// An id that no entry has: ids wrap around after 2^32 families.
    fn next_family_id(&mut self) -> u32 {
        loop {
            self.latest_family_id = self.latest_family_id.wrapping_add(1);
            if !self.expiry.has_family(self.latest_family_id) {
                return self.latest_family_id;
            }
        }
    }

    /// Takes the family from its user. Its tokens live until `end_family`.
    pub(super) fn take_family(&mut self, user: &str) -> Option<Arc<TokenFamily>> {
        self.users.get_mut(user)?.family.take()
    }

    /// Ends a family that was taken: all its tokens are dead from here on. Returns it and its
    /// number of tokens.
    pub(super) fn end_family(&mut self, family: Arc<TokenFamily>) -> (Arc<TokenFamily>, usize) {
        family.end();
        self.expiry.forget_family(&family);
        self.clock_hands.remove(&family.id);
        let count = family.count();
        (family, count)
    }

    fn end_family_of(&mut self, user: &str) -> Option<(Arc<TokenFamily>, usize)> {
        let family = self.take_family(user)?;
        Some(self.end_family(family))
    }

    fn shrink(&mut self) {
        if self.users.capacity() > 64 && self.users.len() < self.users.capacity() / 8 {
            self.users.shrink_to(self.users.len() * 2);
        }
    }

    /// Fills the empty shard with what a restore has loaded: the families created for it and their
    /// entries. Families without entries are dropped.
    pub(super) fn insert_families(
        &mut self,
        families: Vec<Arc<TokenFamily>>,
        entries: &[Vec<ExpiryEntry>],
    ) {
        debug_assert!(self.expiry.is_empty(), "a restore comes first");
        let entries = expiry_index::sort_entries(entries, self.latest_family_id);
        let mut by_id = vec![None; self.latest_family_id as usize + 1];
        for family in families {
            let id = family.id as usize;
            by_id[id] = Some(family);
        }
        let groups = entries.chunk_by(|one, next| one.family == next.family);
        let filled = groups.filter_map(|group| {
            let family = by_id[group[0].family as usize].take()?;
            family.set_count(group.len() as u32);
            family.set_soonest(group[0].due);
            Some(family)
        });
        let filled: Vec<Arc<TokenFamily>> = filled.collect();
        self.users.reserve(filled.len());
        // Touches all names first, so that the processor fetches many of them at a time.
        black_box(
            filled
                .iter()
                .map(|family| Arc::strong_count(&family.name))
                .max(),
        );
        for family in &filled {
            self.add_family(family);
        }
        self.expiry = ExpiryIndex::from_sorted(entries, filled.into_iter());
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

    pub(super) fn shard_of_user(&self, user: &str) -> MutexGuard<'_, UserShard> {
        let index = self.hasher.hash_one(user) % u64::from(SHARDS);
        self.shard(index as u16)
    }

    pub(super) fn shard_of_family(&self, family: &TokenFamily) -> MutexGuard<'_, UserShard> {
        self.shard(family.shard)
    }

    pub(super) fn shard(&self, index: u16) -> MutexGuard<'_, UserShard> {
        self.shards[usize::from(index)].lock()
    }

    /// One counter for the deletions of all users: so a user needs no entry to have an epoch, and
    /// dropping the entry of an old deletion refuses no login that began after it.
    pub(super) fn epoch(&self) -> DeletionEpoch {
        DeletionEpoch {
            local: self.deletions.load(Ordering::Acquire),
            shared: 0,
        }
    }

    /// Whether the user was deleted after `epoch`.
    pub(super) fn has_ended(&self, shard: &UserShard, user: &str, epoch: DeletionEpoch) -> bool {
        epoch.local
            < shard
                .ended(user)
                .max(self.forgotten.load(Ordering::Acquire))
    }

    /// A new family for a user's restored tokens; it enters the index once they are loaded.
    pub(super) fn family_to_fill(&self, user: &Arc<str>) -> Arc<TokenFamily> {
        self.shard_of_user(user).new_family(Arc::clone(user))
    }

    /// Ends all tokens of a user; returns their family and its number of tokens.
    pub(super) fn log_out(&self, user: &str) -> Option<(Arc<TokenFamily>, usize)> {
        let mut shard = self.shard_of_user(user);
        let family = shard.end_family_of(user);
        self.retire(&mut shard, user);
        family
    }

    /// The same, and refuses logins that began before now. Also returns the deletion's number.
    pub(super) fn delete(&self, user: &str) -> (Option<(Arc<TokenFamily>, usize)>, u64) {
        let mut shard = self.shard_of_user(user);
        let family = shard.end_family_of(user);
        let deletion = self.deletions.fetch_add(1, Ordering::AcqRel) + 1;
        match shard.users.get_mut(user) {
            Some(known) => known.ended = deletion,
            None => {
                let ended = TokenUser {
                    family: None,
                    ended: deletion,
                };
                shard.users.insert(user.into(), ended);
            }
        }
        (family, deletion)
    }

    /// Drops the entry of a deletion that is older than any login that can still be running.
    pub(super) fn forget_deletion(&self, user: &str, deletion: u64) {
        self.forgotten.fetch_max(deletion, Ordering::AcqRel);
        self.retire(&mut self.shard_of_user(user), user);
    }

    /// Counts a token that left the family.
    pub(super) fn count_out(&self, shard: &mut UserShard, family: &Arc<TokenFamily>) {
        if !family.count_out() || family.is_over() {
            return;
        }
        shard.expiry.forget_family(family);
        shard.clock_hands.remove(&family.id);
        if let Some(user) = shard.users.get_mut(&family.name) {
            user.family = None;
        }
        self.retire(shard, &family.name);
    }

    /// Removes a user that has no tokens and no recent deletion.
    pub(super) fn retire(&self, shard: &mut UserShard, user: &str) {
        let forgotten = self.forgotten.load(Ordering::Acquire);
        let known = shard.users.get(user);
        if known.is_some_and(|user| user.family.is_none() && user.ended <= forgotten) {
            shard.users.remove(user);
            shard.shrink();
        }
    }

    /// Numbers of users and of expiry entries.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        let shards = (0..SHARDS).map(|index| self.shard(index));
        shards.fold((0, 0), |(users, entries), shard| {
            (users + shard.users.len(), entries + shard.expiry.len())
        })
    }
}
