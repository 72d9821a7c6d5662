//! Inserting a token: room is made for it first, by removing expired ones or, at the user's cap,
//! by ending a token that is not in use.

use std::sync::Arc;

use super::caps::{TokenPlaced, near};
use super::flags::GrantFlags;
use super::grant_table::StoredGrant;
use super::memory::TokenMemory;
use super::token_family::{Second, TokenFamily};
use super::user_index::UserShard;
use super::{GrantRequest, InsertRefused, TokenDigest};
use crate::clock::Deadline;
use crate::config::AtTokenCap;

/// How many seconds late an entry may be due, as long as no clock has jumped.
const MAX_DELAY: Second = 5;

/// A token to insert, and what to do at the user's cap.
#[derive(Clone, Copy)]
struct TokenPlacement {
    digest: TokenDigest,
    ends: Deadline,
    at_cap: AtTokenCap,
}

impl TokenMemory {
    /// Inserts a token. One that ends to make room for it stays live until `displace`.
    pub(super) fn insert(
        &self,
        digest: TokenDigest,
        request: GrantRequest<'_>,
        ends: Deadline,
    ) -> Result<TokenPlaced, InsertRefused> {
        let at_cap = self.at_cap();
        self.insert_with(
            TokenPlacement {
                digest,
                ends,
                at_cap,
            },
            request,
        )
    }

    /// Inserts a token that the shared store has accepted already: ends no other token.
    pub(super) fn insert_copy(
        &self,
        digest: TokenDigest,
        request: GrantRequest<'_>,
        ends: Deadline,
    ) -> Result<(), InsertRefused> {
        let at_cap = AtTokenCap::Refuse;
        let token = TokenPlacement {
            digest,
            ends,
            at_cap,
        };
        self.insert_with(token, request).map(drop)
    }

    fn insert_with(
        &self,
        token: TokenPlacement,
        request: GrantRequest<'_>,
    ) -> Result<TokenPlaced, InsertRefused> {
        let mut shard = self.users.shard_of_user(request.user);
        let placed = self.insert_in(&mut shard, token, request);
        drop(shard);
        if let Err(InsertRefused::Full(_)) = placed {
            return Err(InsertRefused::Full(self.until_next()));
        }
        let (placed, replaced) = placed?;
        if let Some(old) = replaced {
            // Of another family, perhaps another user's: locks one shard at a time.
            self.release_entry(
                &mut self.users.shard_of_family(&old.family),
                &token.digest,
                &old,
            );
        }
        Ok(placed)
    }

    /// Also returns the replaced grant, if it was of another family.
    fn insert_in(
        &self,
        shard: &mut UserShard,
        token: TokenPlacement,
        request: GrantRequest<'_>,
    ) -> Result<(TokenPlaced, Option<StoredGrant>), InsertRefused> {
        let TokenPlacement {
            digest,
            ends,
            at_cap,
        } = token;
        if self.users.has_ended(shard, request.user, request.epoch) {
            return Err(InsertRefused::Ended);
        }
        let family = shard.family_for(request.user);
        let ended = self.make_room(shard, &family, &digest, at_cap)?;
        let due = self.due_second(&ends);
        let stored = StoredGrant {
            family: Arc::clone(&family),
            due,
            ends: ends.pack(self.start),
            flags: GrantFlags::fresh(request.role),
        };
        let replaced = self
            .table
            .insert(digest, stored, || self.count_one(ended.is_some()))?;
        shard.count_in(&family);
        shard.expiry.add(&family, due, digest.tag());
        let other = match replaced {
            Some(old) if Arc::ptr_eq(&old.family, &family) => {
                self.release_entry(shard, &digest, &old);
                None
            }
            other => other,
        };
        let of_user = family.count() - usize::from(ended.is_some());
        if of_user == near(self.caps().0) && ended.is_none() {
            self.clear_used_flags(shard, &family);
        }
        let placed = TokenPlaced {
            ended,
            of_user,
            of_all: self.len(),
        };
        Ok((placed, other))
    }

    /// Checks whether the user may have one more token; returns the token that ends for it.
    /// Expired tokens do not count: only at the cap are they examined, and only those that can be
    /// expired.
    fn make_room(
        &self,
        shard: &mut UserShard,
        family: &Arc<TokenFamily>,
        digest: &TokenDigest,
        at_cap: AtTokenCap,
    ) -> Result<Option<TokenDigest>, InsertRefused> {
        let max = self.caps().0;
        let is_counted = |stored: &StoredGrant| {
            Arc::ptr_eq(&stored.family, family) && stored.is_live(self.start)
        };
        let known = || self.table.find(digest);
        if family.count() < max || known().is_some_and(|stored| is_counted(&stored)) {
            return Ok(None);
        }
        let until = match self.has_clock_jumped() {
            true => Second::MAX,
            false => self.now() + MAX_DELAY,
        };
        let mut entries = shard.expiry.of(family, until, usize::MAX).into_iter();
        while family.count() >= max {
            // Removing one is enough; the sweep removes the others.
            let Some(entry) = entries.next() else {
                let oldest = match at_cap {
                    AtTokenCap::EndOldest => self.choose_oldest(shard, family),
                    AtTokenCap::Refuse => None,
                };
                let full = || InsertRefused::UserFull(self.until_next_of(shard, family));
                return oldest.map(Some).ok_or_else(full);
            };
            self.review(shard, family, entry);
        }
        Ok(None)
    }
}
