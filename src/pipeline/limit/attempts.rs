//! Attempts to get in: logins, and questions about unknown tokens. They are limited by who
//! makes them before what they name, and a refused one costs its sender all the same.
//! Otherwise a stranger who names a user could shut that user out. A success costs nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::bucket_charge::{BucketCharge, BucketKind, LimitSubject, of_all};
use super::buckets::BucketSet;
use super::proven::ProvenPeers;
use super::{Limiter, TooMany, TooManyInFlight, network, site};
use crate::config::{Limits, Quota};
use crate::store::shared::SharedStore;

/// What all strangers together may try for one name, in shares of one peer's.
const STRANGERS: u32 = 10;
/// What all /64 of one IPv6 /48 may try together, in shares of one /64's.
const SITE: u32 = 16;
/// Logins of one peer under way at once: an eighth of those that may wait for the password
/// check with its two slots (`identity::Hasher`). Another peer's waits behind so many.
const UNDER_WAY_PER_PEER: usize = 16;
/// Of all peers but the proven ones: three quarters.
const UNDER_WAY_OF_STRANGERS: usize = 96;
/// The name under which a peer stands whose unknown tokens were good.
const TOKENS: &str = "";

/// How long a login waits for a place among those of its peer.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// One address, or one IPv6 /64.
type PeerKey = (u8, u64);

/// The buckets of all attempts.
#[derive(Debug)]
pub(super) struct AttemptLimits {
    by_site: Arc<BucketSet>,
    by_peer: Arc<BucketSet>,
    by_name: Arc<BucketSet>,
    of_strangers: Arc<BucketSet>,
    of_proven: Arc<BucketSet>,
    tokens: Arc<BucketSet>,
    tokens_by_peer: Arc<BucketSet>,
    tokens_of_proven: Arc<BucketSet>,
    proven: Arc<ProvenPeers>,
    under_way: Arc<LoginsUnderWay>,
}

/// A login attempt that was let through.
#[must_use = "say so when the login succeeds, or it counts like a failed one"]
#[derive(Debug)]
pub struct LoginTry {
    attempt: AttemptDraws,
    _place: LoginPlace,
}

/// A question about an unknown token that may be put.
#[must_use = "say so when the token is good, or it counts like a bad one"]
#[derive(Debug)]
pub struct TokenTry(AttemptDraws);

#[derive(Debug)]
struct AttemptDraws {
    draws: Vec<BucketCharge>,
    proven: Arc<ProvenPeers>,
    name: String,
    peer: PeerKey,
}

/// Why a login may not go on.
#[derive(Clone, Debug)]
pub enum LoginHeld {
    TooMany(TooMany),
    /// Too many logins of this peer, or of all strangers, are under way.
    Overloaded,
}

impl AttemptLimits {
    pub(super) fn new(
        store: Option<&Arc<SharedStore>>,
        limits: &Limits,
        old: Option<&Self>,
    ) -> Self {
        let kept = |old: Option<&Arc<BucketSet>>, name: &str, quota: Quota| {
            super::kept(store, old, name, quota, limits.max_keys)
        };
        let (by_peer, by_name) = (limits.logins_by_peer, limits.logins_by_name);
        let tokens_by_peer = limits.unknown_tokens_by_peer;
        let old_of = |pick: fn(&Self) -> &Arc<BucketSet>| old.map(pick);
        Self {
            by_site: kept(
                old_of(|old| &old.by_site),
                "logins_by_site",
                times(by_peer, SITE),
            ),
            by_peer: kept(old_of(|old| &old.by_peer), "logins_by_peer", by_peer),
            by_name: kept(old_of(|old| &old.by_name), "logins_by_name", by_name),
            of_strangers: kept(
                old_of(|old| &old.of_strangers),
                "logins_of_strangers",
                times(by_name, STRANGERS),
            ),
            of_proven: kept(
                old_of(|old| &old.of_proven),
                "logins_of_proven_peers",
                by_name,
            ),
            tokens: kept(
                old_of(|old| &old.tokens),
                "unknown_tokens",
                limits.unknown_tokens,
            ),
            tokens_by_peer: kept(
                old_of(|old| &old.tokens_by_peer),
                "unknown_tokens_by_peer",
                tokens_by_peer,
            ),
            tokens_of_proven: kept(
                old_of(|old| &old.tokens_of_proven),
                "unknown_tokens_of_proven_peers",
                tokens_by_peer,
            ),
            proven: old.map_or_else(
                || Arc::new(ProvenPeers::new(limits.max_keys)),
                |old| Arc::clone(&old.proven),
            ),
            under_way: old
                .map(|old| Arc::clone(&old.under_way))
                .unwrap_or_default(),
        }
    }

    pub(super) fn buckets(&self) -> [&Arc<BucketSet>; 8] {
        [
            &self.by_site,
            &self.by_peer,
            &self.by_name,
            &self.of_strangers,
            &self.of_proven,
            &self.tokens,
            &self.tokens_by_peer,
            &self.tokens_of_proven,
        ]
    }

    #[cfg(test)]
    pub(super) fn is_proven(&self, peer: IpAddr, name: &str) -> bool {
        self.proven.has(name, network(peer))
    }

    pub(super) fn knows_user(&self, name: &str) -> bool {
        self.proven.has_name(name)
    }

    pub(super) fn sweep(&self) {
        self.proven.sweep();
    }

    /// The sender's own first: what is refused further on has cost the sender by then.
    fn of_login(&self, peer: IpAddr, name: &str) -> (Vec<BucketCharge>, bool) {
        let from = network(peer);
        let draw = |buckets: &Arc<BucketSet>, key, by| BucketCharge::new(buckets, key, by).kept();
        if self.proven.has(name, from) {
            let key = self.of_proven.key((from, name));
            return (
                vec![draw(&self.of_proven, key, BucketKind::PeerAndName)],
                true,
            );
        }
        let mut draws = Vec::with_capacity(4);
        if let Some(site) = site(peer) {
            draws.push(draw(
                &self.by_site,
                self.by_site.key(site),
                BucketKind::Site,
            ));
        }
        draws.push(draw(
            &self.by_peer,
            self.by_peer.key(from),
            BucketKind::Peer,
        ));
        let key = self.by_name.key((from, name));
        draws.push(draw(&self.by_name, key, BucketKind::PeerAndName));
        let key = self.of_strangers.key(name);
        draws.push(draw(&self.of_strangers, key, BucketKind::Name));
        (draws, false)
    }

    fn of_token(&self, peer: IpAddr) -> Vec<BucketCharge> {
        let from = network(peer);
        if self.proven.has(TOKENS, from) {
            let key = self.tokens_of_proven.key(from);
            return vec![BucketCharge::new(&self.tokens_of_proven, key, BucketKind::Peer).kept()];
        }
        let key = self.tokens_by_peer.key(from);
        vec![
            BucketCharge::new(&self.tokens_by_peer, key, BucketKind::Peer).kept(),
            of_all(&self.tokens, BucketKind::Nothing).kept(),
        ]
    }
}

impl Limiter {
    /// Lets a login attempt through to the password check. Counted at once, or a burst of
    /// guesses would pass before the first has failed; given back by
    /// `LoginTry::succeeded`, or a fleet behind one address, or on one user, would lock
    /// itself out by logging in.
    pub async fn admit_login(&self, peer: IpAddr, name: &str) -> Result<LoginTry, LoginHeld> {
        let limits = &self.attempts;
        let (mut draws, is_proven) = limits.of_login(peer, name);
        let whose = LimitSubject::Login(peer, name);
        if let Err(empty) = self.draw_all(&mut draws, whose).await {
            return Err(LoginHeld::TooMany(self.refuse(&draws, empty)));
        }
        let place = LoginsUnderWay::enter(&limits.under_way, network(peer), is_proven);
        let Ok(place) = place.await else {
            // Nothing was tried: that costs nothing.
            draws.iter_mut().for_each(BucketCharge::give_back);
            return Err(LoginHeld::Overloaded);
        };
        Ok(LoginTry {
            attempt: AttemptDraws {
                draws,
                proven: Arc::clone(&limits.proven),
                name: name.to_owned(),
                peer: network(peer),
            },
            _place: place,
        })
    }

    /// Whether this user has logged in through this gate within a week.
    pub fn knows_user(&self, name: &str) -> bool {
        self.attempts.knows_user(name)
    }

    /// Lets one question about an unknown token through to the Webapp.
    pub async fn admit_unknown_token(&self, peer: IpAddr) -> Result<TokenTry, TooMany> {
        let limits = &self.attempts;
        let mut draws = limits.of_token(peer);
        match self
            .draw_all(&mut draws, LimitSubject::Login(peer, TOKENS))
            .await
        {
            Err(empty) => Err(self.refuse(&draws, empty)),
            Ok(_) => Ok(TokenTry(AttemptDraws {
                draws,
                proven: Arc::clone(&limits.proven),
                name: TOKENS.to_owned(),
                peer: network(peer),
            })),
        }
    }
}

impl LoginTry {
    /// The password was right: the attempt does not count.
    pub fn succeeded(self) {
        self.attempt.succeeded();
    }
}

impl TokenTry {
    /// The token was good: the question does not count.
    pub fn succeeded(self) {
        self.0.succeeded();
    }
}

impl AttemptDraws {
    fn succeeded(mut self) {
        self.draws.iter_mut().for_each(BucketCharge::give_back);
        self.proven.remember(self.name.as_str(), self.peer);
    }
}

/// Logins that wait for their verdict. A password check takes a core and milliseconds on
/// purpose, and few run at once: the queue for them is shared out by peer.
#[derive(Debug)]
struct LoginsUnderWay {
    peers: Mutex<HashMap<PeerKey, PeerPlaces>>,
    strangers: Arc<Semaphore>,
}

#[derive(Debug)]
struct PeerPlaces {
    places: Arc<Semaphore>,
    /// Logins that have a place or wait for one.
    users: usize,
}

/// A login's place, until dropped.
#[derive(Debug)]
struct LoginPlace {
    _permits: Vec<OwnedSemaphorePermit>,
    _entry: PeerEntry,
}

/// Keeps a peer on record as long as it has logins.
#[derive(Debug)]
struct PeerEntry {
    all: Arc<LoginsUnderWay>,
    peer: PeerKey,
}

impl Default for LoginsUnderWay {
    fn default() -> Self {
        Self {
            peers: Mutex::default(),
            strangers: Arc::new(Semaphore::new(UNDER_WAY_OF_STRANGERS)),
        }
    }
}

impl LoginsUnderWay {
    /// Waits its turn among the logins of its own peer, then among those of strangers.
    async fn enter(
        all: &Arc<Self>,
        peer: PeerKey,
        is_proven: bool,
    ) -> Result<LoginPlace, TooManyInFlight> {
        let (entry, places) = Self::register(all, peer);
        let wait = async {
            let mut permits = vec![places.acquire_owned().await.map_err(|_| TooManyInFlight)?];
            if !is_proven {
                let strangers = Arc::clone(&all.strangers).acquire_owned().await;
                permits.push(strangers.map_err(|_| TooManyInFlight)?);
            }
            Ok(permits)
        };
        Ok(LoginPlace {
            _permits: timeout(LONGEST_WAIT, wait)
                .await
                .map_err(|_| TooManyInFlight)??,
            _entry: entry,
        })
    }

    fn register(all: &Arc<Self>, peer: PeerKey) -> (PeerEntry, Arc<Semaphore>) {
        let mut peers = all.peers();
        let known = peers.entry(peer).or_insert_with(|| PeerPlaces {
            places: Arc::new(Semaphore::new(UNDER_WAY_PER_PEER)),
            users: 0,
        });
        known.users += 1;
        let entry = PeerEntry {
            all: Arc::clone(all),
            peer,
        };
        (entry, Arc::clone(&known.places))
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<PeerKey, PeerPlaces>> {
        // Each change under this lock is whole.
        self.peers.lock()
    }
}

impl Drop for PeerEntry {
    fn drop(&mut self) {
        let mut peers = self.all.peers();
        let Some(known) = peers.get_mut(&self.peer) else {
            return;
        };
        known.users -= 1;
        if known.users == 0 {
            peers.remove(&self.peer);
        }
    }
}

fn times(quota: Quota, factor: u32) -> Quota {
    Quota {
        requests: quota.requests.saturating_mul(factor),
        burst: quota.burst.saturating_mul(factor),
        ..quota
    }
}
