//! Caps on tokens. The operator is warned before a cap is reached; at a user's cap the oldest
//! token that was not used lately ends for a new one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::warn;

use super::memory::TokenMemory;
use super::token_family::{Second, TokenFamily};
use super::user_index::{SHARDS, UserShard};
use super::{InsertRefused, TokenDigest};
use crate::clock::LogThrottle;
use crate::config::AtTokenCap;
use crate::metrics::{Metrics, TokenCap, TokenEvent};

/// Tokens examined to find an unused one; the user's other logins wait meanwhile.
const MAX_EXAMINED: usize = 1024;
/// How often one user is named in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(3600);
/// Users remembered as named.
const MAX_NAMED_USERS: usize = 1024;
/// Characters of a name in the log.
const MAX_NAME_CHARS: usize = 64;

/// The result of inserting a token.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TokenPlaced {
    /// The token that ends to make room.
    pub(super) ended: Option<TokenDigest>,
    /// Live tokens of its user, and of all users.
    pub(super) of_user: usize,
    pub(super) of_all: usize,
}

/// Warns the operator of caps that are nearly reached.
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

    /// Counts and logs an insert; `of_user` and `of_all` are the caps.
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
                    self.log_user(user, now.of_user, of_user);
                }
                if now.of_all >= near(of_all) {
                    self.metrics.token_cap_warnings.add(TokenCap::All);
                    self.log_total(now.of_all, of_all);
                }
            }
            Err(InsertRefused::UserFull(_)) => {
                self.metrics.token_cap_warnings.add(TokenCap::User);
                self.log_user(user, of_user, of_user);
            }
            Err(InsertRefused::Full(_)) => {
                self.metrics.token_cap_warnings.add(TokenCap::All);
                self.log_total(of_all, of_all);
            }
            Err(InsertRefused::Ended | InsertRefused::Unavailable(_)) => {}
        }
    }

    fn log_user(&self, user: &str, tokens: usize, cap: usize) {
        if !self.may_name(user) {
            return;
        }
        let user: String = user.chars().take(MAX_NAME_CHARS).collect();
        warn!(
            ?user,
            tokens,
            cap,
            "user holds 80 % or more of the tokens it may have; it should keep its token instead \
             of logging in again, or raise max_tokens_per_user (at_token_cap says what its logins do at the cap)"
        );
    }

    fn log_total(&self, tokens: usize, cap: usize) {
        if self.all.may_log(LOG_INTERVAL) {
            warn!(
                tokens,
                cap,
                "all users together hold 80 % or more of max_tokens; at the cap logins are refused"
            );
        }
    }

    fn may_name(&self, user: &str) -> bool {
        let mut users = self.users.lock();
        let is_old = |logged: &Instant| logged.elapsed() >= LOG_INTERVAL;
        if users.get(user).is_some_and(|logged| !is_old(logged)) {
            return false;
        }
        if users.len() >= MAX_NAMED_USERS {
            users.retain(|_, logged| !is_old(logged));
        }
        if users.len() < MAX_NAMED_USERS {
            users.insert(user.into(), Instant::now());
            return true;
        }
        // More users than can be remembered: the others share one log line per interval.
        self.all.may_log(LOG_INTERVAL)
    }
}

/// 80 % of a cap, rounded up.
pub(super) fn near(cap: usize) -> usize {
    cap - cap / 5
}

impl TokenMemory {
    /// Marks the user's oldest unused token as leaving; it stays live until `displace`. Clock
    /// algorithm: a used token loses its mark and is passed over once per rotation.
    pub(super) fn choose_oldest(
        &self,
        shard: &mut UserShard,
        family: &Arc<TokenFamily>,
    ) -> Option<TokenDigest> {
        let mut first = None;
        for _ in 0..MAX_EXAMINED {
            let entry = shard.next_in_rotation(family)?;
            if let Some(digest) = self.table.mark_leaving(entry, family, false) {
                return Some(digest);
            }
            first.get_or_insert(entry);
        }
        self.table.mark_leaving(first?, family, true)
    }

    /// Clears the used marks of the user's tokens when the cap is near: marks set from here on
    /// show which tokens are in use.
    pub(super) fn clear_used_flags(&self, shard: &UserShard, family: &Arc<TokenFamily>) {
        for entry in shard.expiry.of(family, Second::MAX, MAX_EXAMINED) {
            let _ = self
                .table
                .alter_by_entry(entry, family, |stored| stored.flags.take_used());
        }
    }

    /// Ends a token that is leaving; returns whether it was still there.
    pub(super) fn displace(&self, digest: &TokenDigest) -> bool {
        self.remove_if(digest, |stored| stored.flags.is_leaving())
            .is_some()
    }

    /// The new token was not stored: the one that was to end for it stays.
    pub(super) fn keep(&self, digest: &TokenDigest) {
        if let Some(stored) = self.table.find(digest) {
            stored.flags.stay();
        }
    }

    /// Whether the token was used since the last call.
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

    /// How long until the first of a user's tokens has certainly expired.
    pub(super) fn until_next_of(
        &self,
        shard: &UserShard,
        family: &TokenFamily,
    ) -> Option<Duration> {
        let next = shard.expiry.next_entry(family, None)?;
        Some(self.until(next.due))
    }

    /// How long until the first of all tokens has certainly expired.
    pub(super) fn until_next(&self) -> Option<Duration> {
        let shards = (0..SHARDS).filter_map(|index| self.users.shard(index).expiry.soonest());
        shards.min().map(|second| self.until(second))
    }

    fn until(&self, second: Second) -> Duration {
        let due = Duration::from_secs(u64::from(second));
        let left = due.saturating_sub(self.start.elapsed());
        left.max(Duration::from_secs(1))
    }
}
