//! The grants by digest. One look-up for a request; and for the sweep, which knows
//! only the first bytes of a digest, a look-up by those.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use dashmap::mapref::entry::Entry;
use dashmap::mapref::one::Ref;
use dashmap::{DashMap, SharedValue};
use tokio::time::Instant;

use super::expiry_index::{ExpiryEntry, Second};
use super::flags::GrantFlags;
use super::user_index::TokenFamily;
use super::{Grant, TokenDigest};
use crate::clock::{Deadline, PackedDeadline};

/// So many that, at ten million tokens, one of them grows within one or two milliseconds
/// (`benches/tokens/`), while the others answer.
const SHARDS: usize = 2048;

/// A shard with less than this part of its room in use gives room back.
const SPARSE: usize = 8;

/// Nor is it worth the while for less room than this.
const SMALL: usize = 64;

/// The first bytes of a digest. Enough to find a token by, not to tell it from all.
pub(super) type Tag = u32;

/// A grant as it is kept: with its digest, 56 bytes.
#[derive(Debug)]
pub(super) struct StoredGrant {
    pub(super) lot: Arc<TokenFamily>,
    pub(super) due: Second,
    pub(super) ends: PackedDeadline,
    pub(super) flags: GrantFlags,
}

impl StoredGrant {
    pub(super) fn is_live(&self, start: Instant) -> bool {
        !self.lot.is_over() && !self.ends.unpack(start).has_passed()
    }

    pub(super) fn hint(&self, digest: &TokenDigest) -> ExpiryEntry {
        ExpiryEntry {
            lot: self.lot.id,
            due: self.due,
            tag: digest.tag(),
        }
    }

    pub(super) fn grant(&self, ends: Deadline) -> Grant {
        Grant {
            user: Arc::clone(&self.lot.name),
            role: self.flags.role(),
            ends,
        }
    }
}

fn bears(
    digest: &TokenDigest,
    stored: &StoredGrant,
    (hint, lot): (ExpiryEntry, &Arc<TokenFamily>),
) -> bool {
    digest.tag() == hint.tag && stored.due == hint.due && Arc::ptr_eq(&stored.lot, lot)
}

#[derive(Debug)]
pub(super) struct GrantTable {
    each: DashMap<TokenDigest, StoredGrant, ByTag>,
}

impl GrantTable {
    pub(super) fn new() -> Self {
        Self {
            each: DashMap::with_hasher_and_shard_amount(ByTag::default(), SHARDS),
        }
    }

    pub(super) fn find(&self, digest: &TokenDigest) -> Option<Ref<'_, TokenDigest, StoredGrant>> {
        self.each.get(digest)
    }

    pub(super) fn each(&self, mut give: impl FnMut(&TokenDigest, &StoredGrant)) {
        for stored in &self.each {
            give(stored.key(), &stored);
        }
    }

    pub(super) fn lot_of(&self, digest: &TokenDigest) -> Option<Arc<TokenFamily>> {
        self.find(digest).map(|stored| Arc::clone(&stored.lot))
    }

    /// Puts a token in; gives the one it replaces. A new one must be admitted.
    pub(super) fn place<E>(
        &self,
        digest: TokenDigest,
        stored: StoredGrant,
        admit: impl FnOnce() -> Result<(), E>,
    ) -> Result<Option<StoredGrant>, E> {
        match self.each.entry(digest) {
            Entry::Occupied(mut known) => Ok(Some(known.insert(stored))),
            Entry::Vacant(place) => {
                admit()?;
                place.insert(stored);
                Ok(None)
            }
        }
    }

    /// Whether two tokens lie in one shard.
    pub(super) fn are_together(&self, one: &TokenDigest, other: &TokenDigest) -> bool {
        self.shard_of(one) == self.shard_of(other)
    }

    fn shard_of(&self, digest: &TokenDigest) -> usize {
        self.each.determine_shard(hash_of(digest.tag()) as usize)
    }

    /// Puts tokens in that lie in one shard with the first; tells of those that were not
    /// there already.
    pub(super) fn add_together<T>(
        &self,
        first: &TokenDigest,
        tokens: impl ExactSizeIterator<Item = (TokenDigest, StoredGrant, T)>,
        mut tell: impl FnMut(&TokenDigest, Second, T),
    ) {
        let mut shard = self.each.shards()[self.shard_of(first)].write();
        let again = |(digest, _): &(TokenDigest, SharedValue<StoredGrant>)| hash_of(digest.tag());
        shard.reserve(tokens.len(), again);
        for (digest, stored, rest) in tokens {
            let hash = hash_of(digest.tag());
            if shard.get(hash, |(there, _)| *there == digest).is_none() {
                tell(&digest, stored.due, rest);
                shard.insert(hash, (digest, SharedValue::new(stored)), again);
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

    /// Takes one of the lot's tokens out that a hint stands for.
    pub(super) fn take_hinted(
        &self,
        hint: ExpiryEntry,
        lot: &Arc<TokenFamily>,
        is_wanted: impl Fn(&StoredGrant) -> bool,
    ) -> Option<StoredGrant> {
        self.take_where(hint.tag, |digest, stored| {
            bears(digest, stored, (hint, lot)) && is_wanted(stored)
        })
    }

    /// Changes one of the lot's tokens that a hint stands for.
    pub(super) fn alter_hinted<T>(
        &self,
        hint: ExpiryEntry,
        lot: &Arc<TokenFamily>,
        alter: impl FnOnce(&mut StoredGrant) -> T,
    ) -> Option<T> {
        let hash = hash_of(hint.tag);
        let mut shard = self.each.shards()[self.each.determine_shard(hash as usize)].write();
        let found = shard.get_mut(hash, |(digest, stored)| {
            bears(digest, stored.get(), (hint, lot))
        })?;
        Some(alter(found.1.get_mut()))
    }

    /// Makes one of the lot's tokens leave that a hint stands for, unless it was used since
    /// it was looked at last; or, with `is_last`, all the same.
    pub(super) fn leave_hinted(
        &self,
        hint: ExpiryEntry,
        lot: &Arc<TokenFamily>,
        is_last: bool,
    ) -> Option<TokenDigest> {
        let hash = hash_of(hint.tag);
        let shard = self.each.shards()[self.each.determine_shard(hash as usize)].read();
        let (digest, stored) = shard.get(hash, |(digest, stored)| {
            let stored = stored.get();
            bears(digest, stored, (hint, lot)) && !stored.flags.is_leaving()
        })?;
        let flags = &stored.get().flags;
        let stays = flags.take_used() && !is_last;
        (!stays && flags.leave()).then_some(*digest)
    }

    /// The lot of a hint of which nothing else is known.
    pub(super) fn lot_hinted(&self, hint: ExpiryEntry, place: u16) -> Option<Arc<TokenFamily>> {
        let hash = hash_of(hint.tag);
        let shard = self.each.shards()[self.each.determine_shard(hash as usize)].read();
        let found = shard.get(hash, |(digest, stored)| {
            let stored = stored.get();
            stored.hint(digest) == hint && stored.lot.shard == place
        })?;
        Some(Arc::clone(&found.1.get().lot))
    }

    pub(super) fn has_hinted(&self, hint: ExpiryEntry, lot: &Arc<TokenFamily>) -> bool {
        let hash = hash_of(hint.tag);
        let shard = self.each.shards()[self.each.determine_shard(hash as usize)].read();
        let found = shard.get(hash, |(digest, stored)| {
            bears(digest, stored.get(), (hint, lot))
        });
        found.is_some()
    }

    fn take_where(
        &self,
        tag: Tag,
        is_wanted: impl Fn(&TokenDigest, &StoredGrant) -> bool,
    ) -> Option<StoredGrant> {
        let hash = hash_of(tag);
        let mut shard = self.each.shards()[self.each.determine_shard(hash as usize)].write();
        let is_wanted = |(digest, stored): &(TokenDigest, SharedValue<StoredGrant>)| {
            is_wanted(digest, stored.get())
        };
        let (_, stored) = shard.remove_entry(hash, is_wanted)?;
        if shard.capacity() > SMALL && shard.len() < shard.capacity() / SPARSE {
            let room = shard.len() * 2;
            shard.shrink_to(room, |(digest, _)| hash_of(digest.tag()));
        }
        drop(shard);
        Some(stored.into_inner())
    }

    /// The wall clock half of every deadline passes, as if somebody had set the clock.
    #[cfg(test)]
    pub(super) fn jump(&self, start: Instant) {
        for mut stored in self.each.iter_mut() {
            stored.ends = stored.ends.unpack(start).after_a_jump().pack(start);
        }
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.each.capacity()
    }
}

type ByTag = BuildHasherDefault<TagHasher>;

/// Digests are random already, and nobody can choose the tokens that are stored: no
/// more is needed than to give each bit of the hash its share of the tag.
fn hash_of(tag: Tag) -> u64 {
    let tag = u64::from(tag);
    let mixed = tag.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // From the top: what is compared in a shard, which shard, where in it. The tag's
    // first bits choose the shard, so that what is loaded in order of the digests fills
    // one after the other.
    (mixed & (0x7f << 57)) | (tag << 25) | ((mixed >> 32) & 0x1ff_ffff)
}

/// Takes a digest's own bytes for its hash.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TagHasher(u64);

impl Hasher for TagHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Only digests are hashed here, by `write_u64`; still right for others.
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
