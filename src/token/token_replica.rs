//! This gate's copy of a shared store's tokens. A token that it knows costs the store
//! nothing; one that it does not know is looked up once, however many ask at a time.
//!
//! The surprise: an answer of the store may be older than a change that has been told
//! of meanwhile. Whatever is told of a token spoils the look-up under way, which is then
//! made again; the end of a user does so through the epoch taken before the look-up.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use parking_lot::{Mutex, MutexGuard};
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

/// Look-ups of one token that are spoiled in a row before the client is told to come back.
const TRIES: usize = 5;
/// Tokens remembered as unknown; more are simply looked up again.
const MOST_UNKNOWN: usize = 100_000;

#[derive(Debug)]
pub(super) struct TokenReplica {
    pub(super) shared: Arc<SharedStore>,
    pub(super) memory: Arc<TokenMemory>,
    pub(super) asks: DashMap<TokenDigest, Arc<PendingLookup>>,
    /// Tokens that the store does not know, until when that is believed.
    pub(super) unknown: DashMap<TokenDigest, Instant>,
    pub(super) unknown_count: AtomicUsize,
    ends: Mutex<RevocationLog>,
    /// The last change seen in each round but the present one: what was known then is
    /// known to that extent.
    rounds: Mutex<Vec<u64>>,
    /// How many rounds are over.
    pub(super) round: AtomicUsize,
    /// Tokens that were looked up again in a later round than the first.
    confirmed: DashMap<TokenDigest, usize>,
    tasks: TaskSet,
    metrics: Arc<Metrics>,
}

/// A look-up under way.
#[derive(Debug)]
pub(super) struct PendingLookup {
    pub(super) is_spoiled: AtomicBool,
    answer: watch::Receiver<Option<LookupOutcome>>,
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
        let front = Arc::new(Self {
            shared: Arc::clone(shared),
            memory,
            asks: DashMap::default(),
            unknown: DashMap::default(),
            unknown_count: AtomicUsize::new(0),
            ends: Mutex::default(),
            rounds: Mutex::default(),
            round: AtomicUsize::new(0),
            confirmed: DashMap::default(),
            tasks,
            metrics,
        });
        let follower: Weak<Self> = Arc::downgrade(&front);
        shared.follow(follower);
        front
    }

    pub(super) async fn insert(
        &self,
        digest: TokenDigest,
        wanted: GrantRequest<'_>,
        ends: Deadline,
    ) -> Result<TokenPlaced, InsertRefused> {
        // Before the store is asked: an end that it tells of meanwhile keeps the token
        // out of this copy, and the next request looks it up.
        let here = self.memory.holders.epoch();
        let placed = self.insert_there(digest, wanted).await?;
        if let Some(ended) = &placed.ended {
            self.memory.remove(ended);
        }
        self.no_longer_unknown(&digest);
        // A copy that is full, or an end in between: not kept here, and still good.
        let wanted = GrantRequest {
            epoch: here,
            ..wanted
        };
        self.confirm(&digest, self.round.load(Ordering::Acquire));
        let _ = self.memory.place_copy(digest, wanted, ends);
        Ok(placed)
    }

    /// Whether what is known of a token here counts without a look-up.
    pub(super) fn is_sure(&self, digest: &TokenDigest) -> bool {
        let round = self.round.load(Ordering::Acquire);
        (round == 0 || self.round_of(digest) == round) && self.shared.is_believed()
    }

    pub(super) fn round_of(&self, digest: &TokenDigest) -> usize {
        self.confirmed.get(digest).map_or(0, |round| *round)
    }

    fn confirm(&self, digest: &TokenDigest, round: usize) {
        if round > 0 {
            self.confirmed.insert(*digest, round);
        }
    }

    /// The grant of a token that this copy does not answer for.
    pub(super) async fn look_up(
        self: &Arc<Self>,
        digest: TokenDigest,
    ) -> Result<Option<Grant>, StoreUnavailable> {
        if self.is_unknown(&digest) {
            return Ok(None);
        }
        let mut answer = match self.asks.entry(digest) {
            Entry::Occupied(ask) => ask.get().answer.clone(),
            Entry::Vacant(place) => {
                let (told, answer) = watch::channel(None);
                let ask = Arc::new(PendingLookup {
                    is_spoiled: AtomicBool::new(false),
                    answer: answer.clone(),
                });
                place.insert(Arc::clone(&ask));
                let front = Arc::clone(self);
                // A task of its own: the client may leave, others wait for the same answer.
                self.tasks.spawn("token look-up", async move {
                    let answer = front.ask(&digest, &ask).await;
                    front.asks.remove(&digest);
                    told.send_replace(Some(answer));
                });
                answer
            }
        };
        let told = answer.wait_for(Option::is_some).await;
        match told.ok().and_then(|told| told.clone()) {
            Some(LookupOutcome::Known(grant)) => Ok(Some(grant)),
            Some(LookupOutcome::Unknown) => Ok(None),
            Some(LookupOutcome::Failed(why)) => Err(why),
            None => Err(StoreUnavailable::Closed),
        }
    }

    async fn ask(&self, digest: &TokenDigest, ask: &PendingLookup) -> LookupOutcome {
        for _ in 0..TRIES {
            ask.is_spoiled.store(false, Ordering::Release);
            let round = self.round.load(Ordering::Acquire);
            let here = self.memory.holders.epoch();
            let found = match self.shared.find(&(*digest).into()).await {
                Ok(found) => found,
                Err(why) => return self.without_store(digest, why),
            };
            // Whatever is told of this token waits until what was found is in its place.
            let held = self.asks.get_mut(digest);
            if ask.is_spoiled.load(Ordering::Acquire) {
                continue;
            }
            let Some(found) = found else {
                self.metrics.store_lookups.add(StoreLookupResult::NotFound);
                self.remember_unknown(digest);
                drop(held);
                self.memory.remove(digest);
                return LookupOutcome::Unknown;
            };
            let placed = self.insert_learned(digest, &found, here);
            if placed.is_some() {
                self.confirm(digest, round);
            }
            drop(held);
            if let Some(grant) = placed {
                self.metrics.store_lookups.add(StoreLookupResult::Found);
                return LookupOutcome::Known(grant);
            }
        }
        self.without_store(digest, StoreUnavailable::Busy)
    }

    /// None: the user's tokens have been ended while the store answered.
    fn insert_learned(
        &self,
        digest: &TokenDigest,
        found: &SharedGrant,
        here: super::DeletionEpoch,
    ) -> Option<Grant> {
        let ends = Deadline::after(found.left);
        let wanted = GrantRequest {
            user: &found.user,
            role: found.kind.role,
            lifetime: found.left,
            origin: found.kind.origin,
            epoch: here,
            revision: None,
        };
        let grant = Grant {
            user: Arc::clone(&found.user),
            role: found.kind.role,
            ends,
        };
        if self.ends().is_ended(digest, found) {
            // The server fell behind what this gate has seen, and will be told.
            return None;
        }
        match self.memory.place_copy(*digest, wanted, ends) {
            Err(InsertRefused::Ended) => None,
            _ => Some(grant),
        }
    }

    /// The store is away: a grant that was known stays good for `stale_for`.
    fn without_store(&self, digest: &TokenDigest, why: StoreUnavailable) -> LookupOutcome {
        self.metrics.store_lookups.add(StoreLookupResult::Failed);
        match self.memory.find(digest) {
            TokenState::Live(grant) if self.shared.is_believed() => LookupOutcome::Known(grant),
            _ => LookupOutcome::Failed(why),
        }
    }

    fn is_unknown(&self, digest: &TokenDigest) -> bool {
        // What the store said is worth as much as the rest of the copy.
        let until = self.unknown.get(digest).map(|until| *until);
        until.is_some_and(|until| until > Instant::now()) && self.shared.is_up()
    }

    fn remember_unknown(&self, digest: &TokenDigest) {
        if self.unknown_count.load(Ordering::Relaxed) >= MOST_UNKNOWN {
            return;
        }
        let until = Instant::now() + self.shared.settings().negative_ttl;
        if self.unknown.insert(*digest, until).is_none() {
            self.unknown_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn no_longer_unknown(&self, digest: &TokenDigest) {
        if self.unknown.remove(digest).is_some() {
            self.unknown_count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Forgets what was unknown long enough.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut gone = 0;
        self.unknown.retain(|_, until| {
            let stays = *until > now;
            gone += usize::from(!stays);
            stays
        });
        self.unknown_count.fetch_sub(gone, Ordering::Relaxed);
        self.confirmed
            .retain(|digest, _| matches!(self.memory.find(digest), TokenState::Live(_)));
    }

    pub(super) async fn revoke(&self, digest: &TokenDigest) -> Result<bool, StoreUnavailable> {
        // Dead here at once: the Webapp itself has refused it.
        let was_live = self.memory.remove(digest);
        let told = self.shared.revoke(&(*digest).into()).await;
        told.map(|was_known| was_live || was_known)
    }

    /// Ends a user's tokens everywhere; here before anybody is told.
    pub(super) async fn end(
        &self,
        user: &str,
        ending: RevokeCause,
    ) -> Result<usize, StoreUnavailable> {
        let logins_too = ending == RevokeCause::Deletion;
        let kept = match ending {
            RevokeCause::AllBut(kept) => Some(kept.into()),
            RevokeCause::Logout | RevokeCause::Deletion => None,
        };
        let apply = |end| {
            self.end_here(user, end);
        };
        self.shared.end_tokens(user, logins_too, kept, apply).await
    }

    /// A logout ends look-ups under way as well, so both kinds are a deletion here.
    pub(super) fn end_here(&self, user: &str, end: RevokedUpTo) -> usize {
        self.ends().remember(user, end);
        self.memory.end_user(user)
    }

    pub(super) fn ends(&self) -> MutexGuard<'_, RevocationLog> {
        // Two maps, each change of which is one step.
        self.ends.lock()
    }

    pub(super) fn rounds(&self) -> MutexGuard<'_, Vec<u64>> {
        self.rounds.lock()
    }

    pub(super) fn spoil(&self, digest: &TokenDigest) {
        if let Some(ask) = self.asks.get(digest) {
            ask.is_spoiled.store(true, Ordering::Release);
        }
    }
}
