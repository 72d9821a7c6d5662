//! Limits of authentication attempts: logins, and introspections of unknown tokens. The limits of the
//! sender apply before those of the user name, and a refused attempt is charged to its sender all the
//! same; otherwise anyone could lock a user out by sending the user's name. A success costs nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::bucket_charge::{BucketCharge, BucketKind, LimitSubject, shared_by_all};
use super::buckets::BucketSet;
use super::proven::ProvenPeers;
use super::{Limiter, TooMany, TooManyInFlight, network, site};
use crate::config::{Limits, Quota};
use crate::store::shared::SharedStore;

/// Attempts on one name by all unproven peers together, as a multiple of one peer's.
const UNPROVEN_FACTOR: u32 = 10;
/// Attempts of all /64 of one IPv6 /48 together, as a multiple of one /64's.
const SITE_FACTOR: u32 = 16;
/// Concurrent logins of one peer: an eighth of those that may wait for the two slots of the password
/// check (`identity::Hasher`). A login of another peer waits behind at most that many.
const LOGINS_PER_PEER: usize = 16;
/// Concurrent logins of all unproven peers: three quarters.
const LOGINS_OF_UNPROVEN: usize = 96;
/// The name under which peers are recorded whose unknown tokens were accepted.
const TOKENS_NAME: &str = "";

/// How long a login waits for a slot.
const SLOT_TIMEOUT: Duration = Duration::from_secs(5);

/// One address, or one IPv6 /64.
type PeerKey = (u8, u64);

/// The buckets and slots of all attempts.
#[derive(Debug)]
pub(super) struct AttemptLimits {
    by_site: Arc<BucketSet>,
    by_peer: Arc<BucketSet>,
    by_name: Arc<BucketSet>,
    by_name_of_unproven: Arc<BucketSet>,
    of_proven: Arc<BucketSet>,
    tokens: Arc<BucketSet>,
    tokens_by_peer: Arc<BucketSet>,
    tokens_of_proven: Arc<BucketSet>,
    proven: Arc<ProvenPeers>,
    login_slots: Arc<LoginSlots>,
}

/// A login attempt that may proceed to the password check.
#[must_use = "call `succeeded` when the login succeeds, otherwise it counts as failed"]
#[derive(Debug)]
pub struct LoginAttempt {
    charges: AttemptCharges,
    _slot: LoginSlot,
}

/// An introspection of an unknown token that may proceed.
#[must_use = "call `succeeded` when the token is accepted, otherwise it counts as failed"]
#[derive(Debug)]
pub struct IntrospectionAttempt(AttemptCharges);

#[derive(Debug)]
struct AttemptCharges {
    charges: Vec<BucketCharge>,
    proven: Arc<ProvenPeers>,
    name: String,
    peer: PeerKey,
}

/// Why a login may not proceed.
#[derive(Clone, Debug)]
pub enum LoginLimited {
    TooMany(TooMany),
    /// Too many logins of this peer, or of all unproven peers, are in progress.
    Overloaded,
}

/// The charges of one login.
struct LoginCharges {
    charges: Vec<BucketCharge>,
    /// The peer has proven itself for this name.
    is_proven: bool,
}

impl AttemptLimits {
    pub(super) fn new(
        store: Option<&Arc<SharedStore>>,
        limits: &Limits,
        old: Option<&Self>,
    ) -> Self {
        let buckets = |old: Option<&Arc<BucketSet>>, name: &str, quota: Quota| {
            super::reused_or_new(store, old, name, quota, limits.max_keys)
        };
        let (by_peer, by_name) = (limits.logins_by_peer, limits.logins_by_name);
        let tokens_by_peer = limits.unknown_tokens_by_peer;
        let old_of = |pick: fn(&Self) -> &Arc<BucketSet>| old.map(pick);
        Self {
            by_site: buckets(
                old_of(|old| &old.by_site),
                "logins_by_site",
                times(by_peer, SITE_FACTOR),
            ),
            by_peer: buckets(old_of(|old| &old.by_peer), "logins_by_peer", by_peer),
            by_name: buckets(old_of(|old| &old.by_name), "logins_by_name", by_name),
            by_name_of_unproven: buckets(
                old_of(|old| &old.by_name_of_unproven),
                "logins_of_strangers",
                times(by_name, UNPROVEN_FACTOR),
            ),
            of_proven: buckets(
                old_of(|old| &old.of_proven),
                "logins_of_proven_peers",
                by_name,
            ),
            tokens: buckets(
                old_of(|old| &old.tokens),
                "unknown_tokens",
                limits.unknown_tokens,
            ),
            tokens_by_peer: buckets(
                old_of(|old| &old.tokens_by_peer),
                "unknown_tokens_by_peer",
                tokens_by_peer,
            ),
            tokens_of_proven: buckets(
                old_of(|old| &old.tokens_of_proven),
                "unknown_tokens_of_proven_peers",
                tokens_by_peer,
            ),
            proven: old.map_or_else(
                || Arc::new(ProvenPeers::new(limits.max_keys)),
                |old| Arc::clone(&old.proven),
            ),
            login_slots: old
                .map(|old| Arc::clone(&old.login_slots))
                .unwrap_or_default(),
        }
    }

    pub(super) fn buckets(&self) -> [&Arc<BucketSet>; 8] {
        [
            &self.by_site,
            &self.by_peer,
            &self.by_name,
            &self.by_name_of_unproven,
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

    /// The charges of a login, those of the sender first: an attempt that another limit refuses has been
    /// charged to its sender by then.
    fn login_charges(&self, peer: IpAddr, name: &str) -> LoginCharges {
        let network = network(peer);
        let charge = |buckets: &Arc<BucketSet>, key, kind| {
            BucketCharge::new(buckets, key, kind).not_refunded()
        };
        if self.proven.has(name, network) {
            let key = self.of_proven.key((network, name));
            return LoginCharges {
                charges: vec![charge(&self.of_proven, key, BucketKind::PeerAndName)],
                is_proven: true,
            };
        }
        let mut charges = Vec::with_capacity(4);
        if let Some(site) = site(peer) {
            let key = self.by_site.key(site);
            charges.push(charge(&self.by_site, key, BucketKind::Site));
        }
        let key = self.by_peer.key(network);
        charges.push(charge(&self.by_peer, key, BucketKind::Peer));
        let key = self.by_name.key((network, name));
        charges.push(charge(&self.by_name, key, BucketKind::PeerAndName));
        let key = self.by_name_of_unproven.key(name);
        charges.push(charge(&self.by_name_of_unproven, key, BucketKind::Name));
        LoginCharges {
            charges,
            is_proven: false,
        }
    }

    fn introspection_charges(&self, peer: IpAddr) -> Vec<BucketCharge> {
        let network = network(peer);
        let charge =
            |buckets: &Arc<BucketSet>, key| BucketCharge::new(buckets, key, BucketKind::Peer);
        if self.proven.has(TOKENS_NAME, network) {
            let key = self.tokens_of_proven.key(network);
            return vec![charge(&self.tokens_of_proven, key).not_refunded()];
        }
        let key = self.tokens_by_peer.key(network);
        vec![
            charge(&self.tokens_by_peer, key).not_refunded(),
            shared_by_all(&self.tokens, BucketKind::Single).not_refunded(),
        ]
    }
}

impl Limiter {
    /// Admits a login attempt to the password check. It is charged now, since otherwise a burst of
    /// guesses would pass before the first one has failed. `LoginAttempt::succeeded` gives the charge
    /// back, since otherwise many clients behind one address, or with one user, would lock themselves
    /// out by logging in.
    pub async fn admit_login(
        &self,
        peer: IpAddr,
        name: &str,
    ) -> Result<LoginAttempt, LoginLimited> {
        let limits = &self.attempts;
        let LoginCharges {
            mut charges,
            is_proven,
        } = limits.login_charges(peer, name);
        let subject = LimitSubject::Login(peer, name);
        if let Err(empty) = self.charge_all(&mut charges, subject).await {
            return Err(LoginLimited::TooMany(self.refuse(&charges, empty)));
        }
        let slot = LoginSlots::acquire(&limits.login_slots, network(peer), is_proven);
        let Ok(slot) = slot.await else {
            // No password was checked, so nothing is charged.
            charges.iter_mut().for_each(BucketCharge::refund);
            return Err(LoginLimited::Overloaded);
        };
        Ok(LoginAttempt {
            charges: AttemptCharges {
                charges,
                proven: Arc::clone(&limits.proven),
                name: name.to_owned(),
                peer: network(peer),
            },
            _slot: slot,
        })
    }

    /// Whether this user has logged in through this gateway within a week.
    pub fn knows_user(&self, name: &str) -> bool {
        self.attempts.knows_user(name)
    }

    /// Admits the introspection of one unknown token.
    pub async fn admit_unknown_token(&self, peer: IpAddr) -> Result<IntrospectionAttempt, TooMany> {
        let limits = &self.attempts;
        let mut charges = limits.introspection_charges(peer);
        let subject = LimitSubject::Login(peer, TOKENS_NAME);
        match self.charge_all(&mut charges, subject).await {
            Err(empty) => Err(self.refuse(&charges, empty)),
            Ok(_) => Ok(IntrospectionAttempt(AttemptCharges {
                charges,
                proven: Arc::clone(&limits.proven),
                name: TOKENS_NAME.to_owned(),
                peer: network(peer),
            })),
        }
    }
}

impl LoginAttempt {
    /// The login succeeded: the attempt does not count.
    pub fn succeeded(self) {
        self.charges.succeeded();
    }
}

impl IntrospectionAttempt {
    /// The token was accepted: the introspection does not count.
    pub fn succeeded(self) {
        self.0.succeeded();
    }
}

impl AttemptCharges {
    fn succeeded(mut self) {
        self.charges.iter_mut().for_each(BucketCharge::refund);
        self.proven.remember(self.name.as_str(), self.peer);
    }
}

/// The slots of logins in progress. A password check is expensive on purpose and few run at once, so
/// the queue for them is divided among peers.
#[derive(Debug)]
struct LoginSlots {
    peers: Mutex<HashMap<PeerKey, PeerSlots>>,
    unproven: Arc<Semaphore>,
}

#[derive(Debug)]
struct PeerSlots {
    slots: Arc<Semaphore>,
    /// Logins that hold a slot or wait for one.
    logins: usize,
}

/// The slot of one login, until dropped.
#[derive(Debug)]
struct LoginSlot {
    _permits: Vec<OwnedSemaphorePermit>,
    _entry: PeerEntry,
}

/// Keeps the slots of a peer while it has logins.
#[derive(Debug)]
struct PeerEntry {
    all: Arc<LoginSlots>,
    peer: PeerKey,
}

impl Default for LoginSlots {
    fn default() -> Self {
        Self {
            peers: Mutex::default(),
            unproven: Arc::new(Semaphore::new(LOGINS_OF_UNPROVEN)),
        }
    }
}

impl LoginSlots {
    /// Waits for a slot among the logins of the peer, then among those of all unproven peers.
    async fn acquire(
        all: &Arc<Self>,
        peer: PeerKey,
        is_proven: bool,
    ) -> Result<LoginSlot, TooManyInFlight> {
        let (entry, slots) = Self::register(all, peer);
        let wait = async {
            let mut permits = vec![slots.acquire_owned().await.map_err(|_| TooManyInFlight)?];
            if !is_proven {
                let unproven = Arc::clone(&all.unproven).acquire_owned().await;
                permits.push(unproven.map_err(|_| TooManyInFlight)?);
            }
            Ok(permits)
        };
        Ok(LoginSlot {
            _permits: timeout(SLOT_TIMEOUT, wait)
                .await
                .map_err(|_| TooManyInFlight)??,
            _entry: entry,
        })
    }

    fn register(all: &Arc<Self>, peer: PeerKey) -> (PeerEntry, Arc<Semaphore>) {
        let mut peers = all.peers.lock();
        let known = peers.entry(peer).or_insert_with(|| PeerSlots {
            slots: Arc::new(Semaphore::new(LOGINS_PER_PEER)),
            logins: 0,
        });
        known.logins += 1;
        let entry = PeerEntry {
            all: Arc::clone(all),
            peer,
        };
        (entry, Arc::clone(&known.slots))
    }
}

impl Drop for PeerEntry {
    fn drop(&mut self) {
        let mut peers = self.all.peers.lock();
        let Some(known) = peers.get_mut(&self.peer) else {
            return;
        };
        known.logins -= 1;
        if known.logins == 0 {
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
