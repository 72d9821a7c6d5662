//! Taking a token in: room is made for it first, from what has ended or, at its user's cap,
//! from what the user does not use.

use std::sync::Arc;

use super::caps::{TokenPlaced, near};
use super::expiry_index::Second;
use super::flags::GrantFlags;
use super::grant_table::StoredGrant;
use super::memory::TokenMemory;
use super::user_index::{TokenFamily, UserShard};
use super::{GrantRequest, InsertRefused, TokenDigest};
use crate::clock::Deadline;
use crate::config::AtTokenCap;

/// By so many seconds a hint may be late, as long as no clock has jumped.
const LATE: Second = 5;

/// A token to take in, its end, and what may be done for it.
#[derive(Clone, Copy)]
struct TokenPlacement {
    digest: TokenDigest,
    ends: Deadline,
    at_cap: AtTokenCap,
}

impl TokenMemory {
    /// Takes a token in. One that has to end for it lives on until `displace`.
    pub(super) fn place(
        &self,
        digest: TokenDigest,
        wanted: GrantRequest<'_>,
        ends: Deadline,
    ) -> Result<TokenPlaced, InsertRefused> {
        let at_cap = self.at_cap();
        self.place_with(
            TokenPlacement {
                digest,
                ends,
                at_cap,
            },
            wanted,
        )
    }

    /// Takes in what counts elsewhere: it ends nothing here.
    pub(super) fn place_copy(
        &self,
        digest: TokenDigest,
        wanted: GrantRequest<'_>,
        ends: Deadline,
    ) -> Result<(), InsertRefused> {
        let at_cap = AtTokenCap::Refuse;
        let token = TokenPlacement {
            digest,
            ends,
            at_cap,
        };
        self.place_with(token, wanted).map(drop)
    }

    fn place_with(
        &self,
        token: TokenPlacement,
        wanted: GrantRequest<'_>,
    ) -> Result<TokenPlaced, InsertRefused> {
        let mut shard = self.holders.of_user(wanted.user);
        let placed = self.place_in(&mut shard, token, wanted);
        drop(shard);
        if let Err(InsertRefused::Full(_)) = placed {
            return Err(InsertRefused::Full(self.until_next()));
        }
        let (placed, replaced) = placed?;
        if let Some(old) = replaced {
            // Of another lot, and perhaps another user's: only one shard at a time.
            self.settle(&mut self.holders.of_lot(&old.lot), &token.digest, &old);
        }
        Ok(placed)
    }

    /// Gives besides the grant that is replaced, if it was of another lot.
    fn place_in(
        &self,
        shard: &mut UserShard,
        token: TokenPlacement,
        wanted: GrantRequest<'_>,
    ) -> Result<(TokenPlaced, Option<StoredGrant>), InsertRefused> {
        let TokenPlacement {
            digest,
            ends,
            at_cap,
        } = token;
        if self.holders.has_ended(shard, wanted.user, wanted.epoch) {
            return Err(InsertRefused::Ended);
        }
        let lot = shard.lot_for(wanted.user);
        let ended = self.make_room(shard, &lot, &digest, at_cap)?;
        let due = self.due_second(&ends);
        let stored = StoredGrant {
            lot: Arc::clone(&lot),
            due,
            ends: ends.pack(self.start),
            flags: GrantFlags::fresh(wanted.role),
        };
        let replaced = self
            .table
            .place(digest, stored, || self.count_one(ended.is_some()))?;
        shard.count_in(&lot);
        shard.due.add(&lot, due, digest.tag());
        let other = match replaced {
            Some(old) if Arc::ptr_eq(&old.lot, &lot) => {
                self.settle(shard, &digest, &old);
                None
            }
            other => other,
        };
        let of_user = lot.count() - usize::from(ended.is_some());
        if of_user == near(self.caps().0) && ended.is_none() {
            self.forget_uses(shard, &lot);
        }
        let placed = TokenPlaced {
            ended,
            of_user,
            of_all: self.len(),
        };
        Ok((placed, other))
    }

    /// Whether the user may have one more, and which of its tokens ends for that. The expired
    /// do not count: only a user at the cap pays for looking, and only at those that may have.
    fn make_room(
        &self,
        shard: &mut UserShard,
        lot: &Arc<TokenFamily>,
        digest: &TokenDigest,
        at_cap: AtTokenCap,
    ) -> Result<Option<TokenDigest>, InsertRefused> {
        let most = self.caps().0;
        let is_counted =
            |stored: &StoredGrant| Arc::ptr_eq(&stored.lot, lot) && stored.is_live(self.start);
        let known = || self.table.find(digest);
        if lot.count() < most || known().is_some_and(|stored| is_counted(&stored)) {
            return Ok(None);
        }
        let until = match self.is_in_doubt() {
            true => Second::MAX,
            false => self.now() + LATE,
        };
        let mut hints = shard.due.of(lot, until, usize::MAX).into_iter();
        while lot.count() >= most {
            // One that is gone is room enough; the others are left to the sweep.
            let Some(hint) = hints.next() else {
                let oldest = match at_cap {
                    AtTokenCap::EndOldest => self.choose_oldest(shard, lot),
                    AtTokenCap::Refuse => None,
                };
                let full = || InsertRefused::UserFull(self.until_next_of(shard, lot));
                return oldest.map(Some).ok_or_else(full);
            };
            self.review(shard, lot, hint);
        }
        Ok(None)
    }
}
