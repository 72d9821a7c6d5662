//! This gateway's replica of a shared store's tokens. A token in the replica costs no call to the
//! store; any other is looked up once, however many requests ask for it at a time.
//!
//! An answer of the store may be older than a change that was applied while the look-up ran. So a
//! change of a token marks its running look-up as stale, and it is repeated; the end of a user
//! does so through the epoch taken before the look-up.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::caps::TokenPlaced;
use super::memory::{TokenMemory, TokenState};
use super::revocation_log::RevocationLog;
use super::{Grant, GrantRequest, InsertRefused, RevokeCause, TokenDigest};
use crate::clock::Deadline;
use crate::lifecycle::TaskSet;
use crate::metrics::{Metrics, StoreLookupResult};
use crate::store::StoreUnavailable;
use crate::store::shared::{RevokedUpTo, SharedGrant, SharedStore};

/// Stale look-ups of one token in a row before the client gets a 503.
const MAX_ATTEMPTS: usize = 5;
/// Tokens remembered as unknown; any more are looked up each time.
const MAX_UNKNOWN: usize = 100_000;

#[derive(Debug)]
pub(super) struct TokenReplica {
    pub(super) shared: Arc<SharedStore>,
    pub(super) memory: Arc<TokenMemory>,
    pub(super) lookups: DashMap<TokenDigest, Arc<PcauseLookup>>,
    /// Tokens that the store does not know, and until when that answer is used.
    pub(super) unknown: DashMap<TokenDigest, Instant>,
    pub(super) unknown_count: AtomicUsize,
    pub(super) revocations: Mutex<RevocationLog>,
    /// For each past resync round, the number of the last change that was applied by then: tokens
    /// confirmed in that round are known as of that change.
    pub(super) rounds: Mutex<Vec<u64>>,
    /// Number of the current resync round.
    pub(super) round: AtomicUsize,
    /// Tokens that were looked up in a later round than the first, with that round.
    confirmed: DashMap<TokenDigest, usize>,
    tasks: TaskSet,
    metrics: Arc<Metrics>,
}

/// A look-up that is running.
#[derive(Debug)]
pub(super) struct PcauseLookup {
    pub(super) is_stale: AtomicBool,
    outcome: watch::Receiver<Option<LookupOutcome>>,
}

#[derive(Clone, Debug)]
enum LookupOutcome {
    Known(Grant),
    Unknown,
    Failed(StoreUnavailable),
}

impl TokenReplica {
    pub(super) fn new(
        shared: &Arc<SharedStore>,
        memory: Arc<TokenMemory>,
        tasks: TaskSet,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let replica = Arc::new(Self {
            shared: Arc::clone(shared),
            memory,
            lookups: DashMap::default(),
            unknown: DashMap::default(),
            unknown_count: AtomicUsize::new(0),
            revocations: Mutex::default(),
            rounds: Mutex::default(),
            round: AtomicUsize::new(0),
            confirmed: DashMap::default(),
            tasks,
            metrics,
        });
        let weak: Weak<Self> = Arc::downgrade(&replica);
        shared.add_replica(weak);
        replica
    }

    pub(super) async fn insert(
        &self,
        digest: TokenDigest,
        request: GrantRequest<'_>,
        ends: Deadline,
    ) -> Result<TokenPlaced, InsertRefused> {
        // Taken before the call: if the user's tokens end meanwhile, the token does not enter the
        // replica, and the next request looks it up.
        let local = self.memory.users.epoch();
        let placed = self.insert_in_store(digest, request).await?;
        if let Some(ended) = &placed.ended {
            self.memory.remove(ended);
        }
        self.forget_unknown(&digest);
        // If the replica is full, or the user's tokens ended meanwhile, the token is valid but not
        // in the replica.
        let request = GrantRequest {
            epoch: local,
            ..request
        };
        self.confirm(&digest, self.round.load(Ordering::Acquire));
        let _ = self.memory.insert_copy(digest, request, ends);
        Ok(placed)
    }

    /// Whether the replica's entry of a token is valid without a look-up.
    pub(super) fn is_confirmed(&self, digest: &TokenDigest) -> bool {
        let round = self.round.load(Ordering::Acquire);
        (round == 0 || self.round_of(digest) == round) && self.shared.is_trusted()
    }

    pub(super) fn round_of(&self, digest: &TokenDigest) -> usize {
        self.confirmed.get(digest).map_or(0, |round| *round)
    }

    fn confirm(&self, digest: &TokenDigest, round: usize) {
        if round > 0 {
            self.confirmed.insert(*digest, round);
        }
    }

    /// The grant of a token that is not in the replica, or not confirmed.
    pub(super) async fn look_up(
        self: &Arc<Self>,
        digest: TokenDigest,
    ) -> Result<Option<Grant>, StoreUnavailable> {
        if self.is_unknown(&digest) {
            return Ok(None);
        }
        let mut outcome = match self.lookups.entry(digest) {
            Entry::Occupied(lookup) => lookup.get().outcome.clone(),
            Entry::Vacant(slot) => {
                let (sender, outcome) = watch::channel(None);
                let lookup = Arc::new(PcauseLookup {
                    is_stale: AtomicBool::new(false),
                    outcome: outcome.clone(),
                });
                slot.insert(Arc::clone(&lookup));
                let replica = Arc::clone(self);
                // In a task of its own: the client may leave while other requests wait for the
                // result.
                self.tasks.spawn("token look-up", async move {
                    let outcome = replica.run_lookup(&digest, &lookup).await;
                    replica.lookups.remove(&digest);
                    sender.send_replace(Some(outcome));
                });
                outcome
            }
        };
        let outcome = outcome.wait_for(Option::is_some).await;
        match outcome.ok().and_then(|outcome| outcome.clone()) {
            Some(LookupOutcome::Known(grant)) => Ok(Some(grant)),
            Some(LookupOutcome::Unknown) => Ok(None),
            Some(LookupOutcome::Failed(error)) => Err(error),
            None => Err(StoreUnavailable::Closed),
        }
    }

    async fn run_lookup(&self, digest: &TokenDigest, lookup: &PcauseLookup) -> LookupOutcome {
        for _ in 0..MAX_ATTEMPTS {
            lookup.is_stale.store(false, Ordering::Release);
            let round = self.round.load(Ordering::Acquire);
            let local = self.memory.users.epoch();
            let found = match self.shared.find(&(*digest).into()).await {
                Ok(found) => found,
                Err(error) => return self.answer_from_memory(digest, error),
            };
            // Holding the entry keeps `apply` for this token waiting until the result is stored.
            let entry = self.lookups.get_mut(digest);
            if lookup.is_stale.load(Ordering::Acquire) {
                continue;
            }
            let Some(found) = found else {
                self.metrics.store_lookups.add(StoreLookupResult::NotFound);
                self.remember_unknown(digest);
                drop(entry);
                self.memory.remove(digest);
                return LookupOutcome::Unknown;
            };
            let placed = self.cache_grant(digest, &found, local);
            if placed.is_some() {
                self.confirm(digest, round);
            }
            drop(entry);
            if let Some(grant) = placed {
                self.metrics.store_lookups.add(StoreLookupResult::Found);
                return LookupOutcome::Known(grant);
            }
        }
        self.answer_from_memory(digest, StoreUnavailable::Busy)
    }

    /// Stores the grant that a look-up found; None: the user's tokens were ended while it ran.
    fn cache_grant(
        &self,
        digest: &TokenDigest,
        found: &SharedGrant,
        local: super::DeletionEpoch,
    ) -> Option<Grant> {
        let ends = Deadline::after(found.left);
        let request = GrantRequest {
            user: &found.user,
            role: found.kind.role,
            lifetime: found.left,
            origin: found.kind.origin,
            epoch: local,
            revision: None,
        };
        let grant = Grant {
            user: Arc::clone(&found.user),
            role: found.kind.role,
            ends,
        };
        if self.revocations.lock().is_revoked(digest, found) {
            // The server has lost a revocation that this gateway saw; a resync restores it.
            return None;
        }
        match self.memory.insert_copy(*digest, request, ends) {
            Err(InsertRefused::Ended) => None,
            _ => Some(grant),
        }
    }

    /// The result while the store is unreachable: a known grant stays valid for `stale_for`.
    fn answer_from_memory(&self, digest: &TokenDigest, error: StoreUnavailable) -> LookupOutcome {
        self.metrics.store_lookups.add(StoreLookupResult::Failed);
        match self.memory.find(digest) {
            TokenState::Live(grant) if self.shared.is_trusted() => LookupOutcome::Known(grant),
            _ => LookupOutcome::Failed(error),
        }
    }

    fn is_unknown(&self, digest: &TokenDigest) -> bool {
        let until = self.unknown.get(digest).map(|until| *until);
        until.is_some_and(|until| until > Instant::now()) && self.shared.is_up()
    }

    fn remember_unknown(&self, digest: &TokenDigest) {
        if self.unknown_count.load(Ordering::Relaxed) >= MAX_UNKNOWN {
            return;
        }
        let until = Instant::now() + self.shared.settings().negative_ttl;
        if self.unknown.insert(*digest, until).is_none() {
            self.unknown_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn forget_unknown(&self, digest: &TokenDigest) {
        if self.unknown.remove(digest).is_some() {
            self.unknown_count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Drops expired answers "unknown", and confirmations of tokens that are gone.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut dropped = 0;
        self.unknown.retain(|_, until| {
            let stays = *until > now;
            dropped += usize::from(!stays);
            stays
        });
        self.unknown_count.fetch_sub(dropped, Ordering::Relaxed);
        self.confirmed
            .retain(|digest, _| matches!(self.memory.find(digest), TokenState::Live(_)));
    }

    pub(super) async fn revoke(&self, digest: &TokenDigest) -> Result<bool, StoreUnavailable> {
        // Removed at once: the upstream itself has refused the token.
        let was_live = self.memory.remove(digest);
        let revoked = self.shared.revoke(&(*digest).into()).await;
        revoked.map(|was_known| was_live || was_known)
    }

    /// Ends a user's tokens in the store and in memory, with one change number.
    pub(super) async fn end(
        &self,
        user: &str,
        cause: RevokeCause,
    ) -> Result<usize, StoreUnavailable> {
        let logins_too = cause == RevokeCause::Deletion;
        let keep = match cause {
            RevokeCause::AllBut(digest) => Some(digest.into()),
            RevokeCause::Logout | RevokeCause::Deletion => None,
        };
        let apply = |end| {
            self.end_in_memory(user, end);
        };
        self.shared.end_tokens(user, logins_too, keep, apply).await
    }

    /// Ends a user's tokens in memory. Also for a logout this counts as a deletion, so that
    /// running look-ups are refused.
    pub(super) fn end_in_memory(&self, user: &str, end: RevokedUpTo) -> usize {
        self.revocations.lock().add_user(user, end);
        self.memory.end_user(user)
    }

    pub(super) fn invalidate_lookup(&self, digest: &TokenDigest) {
        if let Some(lookup) = self.lookups.get(digest) {
            lookup.is_stale.store(true, Ordering::Release);
        }
    }
}
