//! The grants by digest: one look-up per request. The sweep knows only the first bytes of a
//! digest, and finds grants by those.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use dashmap::mapref::entry::Entry;
use dashmap::mapref::one::Ref;
use dashmap::{DashMap, SharedValue};
use tokio::time::Instant;

use super::expiry_index::ExpiryEntry;
use super::flags::GrantFlags;
use super::token_family::{Second, Tag, TokenFamily};
use super::{Grant, TokenDigest};
use crate::clock::{Deadline, PackedDeadline};

/// Number of shards: so many that, at ten million tokens, one of them grows within one or two
/// milliseconds (`benches/tokens/`) while the others are in use.
const SHARDS: usize = 2048;

/// A shard shrinks when less than one in so many of its slots is in use.
const SHRINK_RATIO: usize = 8;

/// A shard with fewer slots never shrinks.
const MIN_SHRINK: usize = 64;

/// A grant as it is stored; 56 bytes with its digest.
#[derive(Debug)]
pub(super) struct StoredGrant {
    pub(super) family: Arc<TokenFamily>,
    pub(super) due: Second,
    pub(super) ends: PackedDeadline,
    pub(super) flags: GrantFlags,
}

impl StoredGrant {
    pub(super) fn is_live(&self, start: Instant) -> bool {
        !self.family.is_over() && !self.ends.unpack(start).has_passed()
    }

    pub(super) fn entry(&self, digest: &TokenDigest) -> ExpiryEntry {
        ExpiryEntry {
            family: self.family.id,
            due: self.due,
            tag: digest.tag(),
        }
    }

    pub(super) fn grant(&self, ends: Deadline) -> Grant {
        Grant {
            user: Arc::clone(&self.family.name),
            role: self.flags.role(),
            ends,
        }
    }
}

fn matches_entry(
    digest: &TokenDigest,
    stored: &StoredGrant,
    entry: ExpiryEntry,
    family: &Arc<TokenFamily>,
) -> bool {
    digest.tag() == entry.tag && stored.due == entry.due && Arc::ptr_eq(&stored.family, family)
}

#[derive(Debug)]
pub(super) struct GrantTable {
    grants: DashMap<TokenDigest, StoredGrant, BuildTagHasher>,
}

impl GrantTable {
    pub(super) fn new() -> Self {
        Self {
            grants: DashMap::with_hasher_and_shard_amount(BuildTagHasher::default(), SHARDS),
        }
    }

    pub(super) fn find(&self, digest: &TokenDigest) -> Option<Ref<'_, TokenDigest, StoredGrant>> {
        self.grants.get(digest)
    }

    pub(super) fn for_each(&self, mut visit: impl FnMut(&TokenDigest, &StoredGrant)) {
        for stored in &self.grants {
            visit(stored.key(), &stored);
        }
    }

    pub(super) fn family_of(&self, digest: &TokenDigest) -> Option<Arc<TokenFamily>> {
        self.find(digest).map(|stored| Arc::clone(&stored.family))
    }

    /// Inserts a token and returns the grant it replaces. A new token is inserted only if `admit`
    /// allows it.
    pub(super) fn insert<E>(
        &self,
        digest: TokenDigest,
        stored: StoredGrant,
        admit: impl FnOnce() -> Result<(), E>,
    ) -> Result<Option<StoredGrant>, E> {
        match self.grants.entry(digest) {
            Entry::Occupied(mut known) => Ok(Some(known.insert(stored))),
            Entry::Vacant(slot) => {
                admit()?;
                slot.insert(stored);
                Ok(None)
            }
        }
    }

    /// Whether two tokens belong to one shard.
    pub(super) fn are_in_one_shard(&self, one: &TokenDigest, other: &TokenDigest) -> bool {
        self.shard_of(one) == self.shard_of(other)
    }

    fn shard_of(&self, digest: &TokenDigest) -> usize {
        self.grants.determine_shard(hash_of(digest.tag()) as usize)
    }

    /// Inserts tokens of one shard, that of `first`. Calls `added` for each token that was not
    /// there already.
    pub(super) fn insert_run<T>(
        &self,
        first: &TokenDigest,
        tokens: impl ExactSizeIterator<Item = (TokenDigest, StoredGrant, T)>,
        mut added: impl FnMut(&TokenDigest, Second, T),
    ) {
        let mut shard = self.grants.shards()[self.shard_of(first)].write();
        let rehash = |(digest, _): &(TokenDigest, SharedValue<StoredGrant>)| hash_of(digest.tag());
        shard.reserve(tokens.len(), rehash);
        for (digest, stored, rest) in tokens {
            let hash = hash_of(digest.tag());
            if shard.get(hash, |(there, _)| *there == digest).is_none() {
                added(&digest, stored.due, rest);
                shard.insert(hash, (digest, SharedValue::new(stored)), rehash);
            }
        }
    }

    pub(super) fn take(
        &self,
        digest: &TokenDigest,
        is_wanted: impl Fn(&StoredGrant) -> bool,
    ) -> Option<StoredGrant> {
        self.take_where(digest.tag(), |key, stored| {
            key == digest && is_wanted(stored)
        })
    }

    /// Removes a token of the family that the entry points to.
    pub(super) fn take_by_entry(
        &self,
        entry: ExpiryEntry,
        family: &Arc<TokenFamily>,
        is_wanted: impl Fn(&StoredGrant) -> bool,
    ) -> Option<StoredGrant> {
        self.take_where(entry.tag, |digest, stored| {
            matches_entry(digest, stored, entry, family) && is_wanted(stored)
        })
    }

    /// Changes a token of the family that the entry points to.
    pub(super) fn alter_by_entry<T>(
        &self,
        entry: ExpiryEntry,
        family: &Arc<TokenFamily>,
        alter: impl FnOnce(&mut StoredGrant) -> T,
    ) -> Option<T> {
        let hash = hash_of(entry.tag);
        let mut shard = self.grants.shards()[self.grants.determine_shard(hash as usize)].write();
        let found = shard.get_mut(hash, |(digest, stored)| {
            matches_entry(digest, stored.get(), entry, family)
        })?;
        Some(alter(found.1.get_mut()))
    }

    /// Marks a token of the family that the entry points to as leaving, unless it was used since
    /// it was examined last; with `is_last`, even then.
    pub(super) fn mark_leaving(
        &self,
        entry: ExpiryEntry,
        family: &Arc<TokenFamily>,
        is_last: bool,
    ) -> Option<TokenDigest> {
        let hash = hash_of(entry.tag);
        let shard = self.grants.shards()[self.grants.determine_shard(hash as usize)].read();
        let (digest, stored) = shard.get(hash, |(digest, stored)| {
            let stored = stored.get();
            matches_entry(digest, stored, entry, family) && !stored.flags.is_leaving()
        })?;
        let flags = &stored.get().flags;
        let stays = flags.take_used() && !is_last;
        (!stays && flags.leave()).then_some(*digest)
    }

    /// The family of the token that an entry points to, in this shard of the user index.
    pub(super) fn family_by_entry(
        &self,
        entry: ExpiryEntry,
        shard_index: u16,
    ) -> Option<Arc<TokenFamily>> {
        let hash = hash_of(entry.tag);
        let shard = self.grants.shards()[self.grants.determine_shard(hash as usize)].read();
        let found = shard.get(hash, |(digest, stored)| {
            let stored = stored.get();
            stored.entry(digest) == entry && stored.family.shard == shard_index
        })?;
        Some(Arc::clone(&found.1.get().family))
    }

    pub(super) fn has_entry(&self, entry: ExpiryEntry, family: &Arc<TokenFamily>) -> bool {
        let hash = hash_of(entry.tag);
        let shard = self.grants.shards()[self.grants.determine_shard(hash as usize)].read();
        let found = shard.get(hash, |(digest, stored)| {
            matches_entry(digest, stored.get(), entry, family)
        });
        found.is_some()
    }

    fn take_where(
        &self,
        tag: Tag,
        is_wanted: impl Fn(&TokenDigest, &StoredGrant) -> bool,
    ) -> Option<StoredGrant> {
        let hash = hash_of(tag);
        let mut shard = self.grants.shards()[self.grants.determine_shard(hash as usize)].write();
        let is_wanted = |(digest, stored): &(TokenDigest, SharedValue<StoredGrant>)| {
            is_wanted(digest, stored.get())
        };
        let (_, stored) = shard.remove_entry(hash, is_wanted)?;
        if shard.capacity() > MIN_SHRINK && shard.len() < shard.capacity() / SHRINK_RATIO {
            let capacity = shard.len() * 2;
            shard.shrink_to(capacity, |(digest, _)| hash_of(digest.tag()));
        }
        drop(shard);
        Some(stored.into_inner())
    }

    /// Lets the wall clock half of every deadline pass, as if the clock had been set forward.
    #[cfg(test)]
    pub(super) fn jump(&self, start: Instant) {
        for mut stored in self.grants.iter_mut() {
            stored.ends = stored.ends.unpack(start).after_a_jump().pack(start);
        }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.grants.capacity()
    }
}

type BuildTagHasher = BuildHasherDefault<TagHasher>;

/// Spreads the tag over the bits of the hash. Digests are random, and a client cannot choose which
/// are stored, so no stronger hash is needed.
fn hash_of(tag: Tag) -> u64 {
    let tag = u64::from(tag);
    let mixed = tag.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Top bits: compared within a shard. Middle: chooses the shard; the tag's first bits, so that
    // a load in order of the digests fills one shard after the other. Low bits: the slot in the
    // shard.
    (mixed & (0x7f << 57)) | (tag << 25) | ((mixed >> 32) & 0x1ff_ffff)
}

/// Hashes a digest by its own first bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TagHasher(u64);

impl Hasher for TagHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Digests are hashed by `write_u64`; other keys give a correct hash, only slower.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, first_bytes: u64) {
        self.0 = hash_of((first_bytes >> 32) as Tag);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
