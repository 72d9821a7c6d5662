//! Caps on tokens: who is near one is told of before it is met, and at a user's own cap
//! the oldest token that was not used lately ends for the new one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::warn;

use super::expiry_index::Second;
use super::memory::TokenMemory;
use super::user_index::{SHARDS, TokenFamily, UserShard};
use super::{InsertRefused, TokenDigest};
use crate::clock::LogThrottle;
use crate::config::AtTokenCap;
use crate::metrics::{Metrics, TokenCap, TokenEvent};

/// Tokens looked at for one that was not used lately. The user's logins wait so long.
const MOST_LOOKED_AT: usize = 1024;
/// How often one user is named in the log.
const TOLD_EVERY: Duration = Duration::from_secs(3600);
/// Users remembered as named.
const MOST_TOLD: usize = 1024;
/// Letters of a name in the log.
const LONGEST_NAME: usize = 64;

/// What a new token has found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TokenPlaced {
    /// The token that ends for it.
    pub(super) ended: Option<TokenDigest>,
    /// Tokens of its user, and of all.
    pub(super) of_user: usize,
    pub(super) of_all: usize,
}

/// Tells the operator of caps that are near.
#[derive(Debug)]
pub(super) struct CapWatch {
    users: Mutex<HashMap<Arc<str>, Instant>>,
    all: LogThrottle,
    metrics: Arc<Metrics>,
}

impl CapWatch {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            users: Mutex::default(),
            all: LogThrottle::default(),
            metrics,
        }
    }

    /// `of_user` and `of_all` are the caps.
    pub(super) fn note(
        &self,
        user: &str,
        placed: &Result<TokenPlaced, InsertRefused>,
        of_user: usize,
        of_all: usize,
    ) {
        match placed {
            Ok(now) => {
                if now.ended.is_some() {
                    self.metrics.token_events.add(TokenEvent::Displaced);
                }
                if now.of_user >= near(of_user) {
                    self.metrics.token_cap_warnings.add(TokenCap::User);
                    self.tell_user(user, now.of_user, of_user);
                }
                if now.of_all >= near(of_all) {
                    self.metrics.token_cap_warnings.add(TokenCap::All);
                    self.tell_all(now.of_all, of_all);
                }
            }
            Err(InsertRefused::UserFull(_)) => {
                self.metrics.token_cap_warnings.add(TokenCap::User);
                self.tell_user(user, of_user, of_user);
            }
            Err(InsertRefused::Full(_)) => {
                self.metrics.token_cap_warnings.add(TokenCap::All);
                self.tell_all(of_all, of_all);
            }
            Err(InsertRefused::Ended | InsertRefused::Unavailable(_)) => {}
        }
    }

    fn tell_user(&self, user: &str, tokens: usize, cap: usize) {
        if !self.may_name(user) {
            return;
        }
        let user: String = user.chars().take(LONGEST_NAME).collect();
        warn!(
            ?user,
            tokens,
            cap,
            "user holds 80 % or more of the tokens it may have; it should keep its token instead \
             of logging in again, or raise max_tokens_per_user (at_token_cap says what its logins do at the cap)"
        );
    }

    fn tell_all(&self, tokens: usize, cap: usize) {
        if self.all.may_log(TOLD_EVERY) {
            warn!(
                tokens,
                cap,
                "all users together hold 80 % or more of max_tokens; at the cap logins are refused"
            );
        }
    }

    fn may_name(&self, user: &str) -> bool {
        let mut users = self.users.lock();
        let is_old = |told: &Instant| told.elapsed() >= TOLD_EVERY;
        if users.get(user).is_some_and(|told| !is_old(told)) {
            return false;
        }
        if users.len() >= MOST_TOLD {
            users.retain(|_, told| !is_old(told));
        }
        if users.len() < MOST_TOLD {
            users.insert(user.into(), Instant::now());
            return true;
        }
        // More users than can be remembered: the rest share what the gate as a whole may say.
        self.all.may_log(TOLD_EVERY)
    }
}

/// Four fifths of a cap, rounded up.
pub(super) fn near(cap: usize) -> usize {
    cap - cap / 5
}

impl TokenMemory {
    /// Makes the user's oldest token leave that was not used since it was looked at last. It
    /// lives until `displace`. Round and round as a clock's hand: a token in use is passed
    /// over once in each round, and those after it come before it comes again.
    pub(super) fn choose_oldest(
        &self,
        shard: &mut UserShard,
        lot: &Arc<TokenFamily>,
    ) -> Option<TokenDigest> {
        let mut first = None;
        for _ in 0..MOST_LOOKED_AT {
            let hint = shard.next_in_turn(lot)?;
            if let Some(digest) = self.table.leave_hinted(hint, lot, false) {
                return Some(digest);
            }
            first.get_or_insert(hint);
        }
        self.table.leave_hinted(first?, lot, true)
    }

    /// From here on it shows which of the user's tokens are in use: the cap is near.
    pub(super) fn forget_uses(&self, shard: &UserShard, lot: &Arc<TokenFamily>) {
        for hint in shard.due.of(lot, Second::MAX, MOST_LOOKED_AT) {
            let _ = self
                .table
                .alter_hinted(hint, lot, |stored| stored.flags.take_used());
        }
    }

    /// Ends a token that leaves; whether it did.
    pub(super) fn displace(&self, digest: &TokenDigest) -> bool {
        self.take_if(digest, |stored| stored.flags.is_leaving())
            .is_some()
    }

    /// The newer token did not come: this one stays.
    pub(super) fn keep(&self, digest: &TokenDigest) {
        if let Some(stored) = self.table.find(digest) {
            stored.flags.stay();
        }
    }

    /// Whether a token was used here since this was asked last.
    pub(super) fn take_used(&self, digest: &TokenDigest) -> bool {
        let stored = self.table.find(digest);
        stored.is_some_and(|stored| stored.flags.take_used())
    }

    pub(super) fn at_cap(&self) -> AtTokenCap {
        match self.ends_oldest.load(Ordering::Relaxed) {
            true => AtTokenCap::EndOldest,
            false => AtTokenCap::Refuse,
        }
    }

    /// How long until the first of a user's tokens has surely ended.
    pub(super) fn until_next_of(&self, shard: &UserShard, lot: &TokenFamily) -> Option<Duration> {
        let next = shard.due.next_of(lot, None)?;
        Some(self.until(next.due))
    }

    /// The same of all tokens.
    pub(super) fn until_next(&self) -> Option<Duration> {
        let shards = (0..SHARDS).filter_map(|place| self.holders.shard(place).due.soonest());
        shards.min().map(|second| self.until(second))
    }

    fn until(&self, second: Second) -> Duration {
        let due = Duration::from_secs(u64::from(second));
        let left = due.saturating_sub(self.start.elapsed());
        left.max(Duration::from_secs(1))
    }
}
