//! One login for all gates that share a store. Whoever gets the turn logs in, extends
//! its lock meanwhile, and publishes what came of it; the others take it up. A gate that
//! dies in between loses the turn, and nothing else.
//!
//! The surprise: without the store a gate logs in for itself when it must. That login has
//! a number of this gate's own, and goes as soon as the store has one to offer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::lease_store::LeaseBinding;
use super::session::Session;
use crate::clock::Deadline;
use crate::store::SealedBytes;
use crate::store::shared::{Replica, SharedChange, SharedStore, StateSnapshotItem};

/// This gate's part in the login of all.
#[derive(Debug)]
pub(in crate::upstream) struct SharedLogin {
    pub(super) shared: Arc<SharedStore>,
    pub(super) bell: Arc<LeaseReplica>,
    /// When the newest lease is to be renewed.
    pub(super) renew: Option<Deadline>,
    /// Refused here, and the store has not heard it yet.
    refused: Option<u64>,
    /// The newest lease of all gates, which was given up here.
    pub(super) rejected: Option<u64>,
    /// The newest that was seen in the store.
    pub(super) seen: u64,
}

/// Hears of a new lease, and knows the last one.
#[derive(Debug)]
pub(super) struct LeaseReplica {
    upstream: Arc<str>,
    session: Arc<Session>,
    has_rung: AtomicBool,
    latest: Mutex<Option<LatestLease>>,
}

#[derive(Clone, Debug)]
pub(super) struct LatestLease {
    pub(super) generation: u64,
    pub(super) refused: u64,
    pub(super) ends: Deadline,
    pub(super) sealed: SealedBytes,
}

impl LeaseReplica {
    fn ring(&self) {
        self.has_rung.store(true, Ordering::Release);
        self.session.wake.notify_one();
    }

    pub(super) fn remember(&self, latest: LatestLease) {
        // One assignment: a panic elsewhere leaves no half of it.
        *self.latest.lock() = Some(latest);
    }
}

impl Replica for LeaseReplica {
    fn apply(&self, change: &SharedChange, _: u64) {
        if matches!(change, SharedChange::Lease(upstream) if *upstream == self.upstream) {
            self.ring();
        }
    }

    fn invalidate(&self, _: u64) {
        self.ring();
    }

    fn snapshot(&self, give: &mut dyn FnMut(StateSnapshotItem)) {
        let latest = self.latest.lock();
        let Some(latest) = latest.clone().filter(|latest| !latest.ends.has_passed()) else {
            return;
        };
        give(StateSnapshotItem::Lease {
            upstream: Arc::clone(&self.upstream),
            generation: latest.generation,
            refused: latest.refused,
            left: latest.ends.left(),
            sealed: latest.sealed,
        });
    }
}

impl SharedLogin {
    /// None: the store is not shared.
    pub(in crate::upstream) fn of(
        place: &LeaseBinding,
        upstream: &Arc<str>,
        session: &Arc<Session>,
    ) -> Option<Self> {
        let shared = place.shared()?;
        let bell = Arc::new(LeaseReplica {
            upstream: Arc::clone(upstream),
            session: Arc::clone(session),
            has_rung: AtomicBool::new(false),
            latest: Mutex::default(),
        });
        let follower: Weak<LeaseReplica> = Arc::downgrade(&bell);
        shared.add_replica(follower);
        Some(Self {
            shared: Arc::clone(shared),
            bell,
            renew: None,
            refused: None,
            rejected: None,
            seen: 0,
        })
    }

    pub(super) fn clear_changes(&self) {
        self.bell.has_rung.store(false, Ordering::Release);
    }

    pub(in crate::upstream) fn has_news(&self) -> bool {
        self.bell.has_rung.load(Ordering::Acquire)
    }

    pub(super) fn is_due(&self) -> bool {
        self.renew.is_none_or(|renew| renew.has_passed())
    }

    /// The probe has found the lease of all gates dead.
    pub(in crate::upstream) async fn refuse(&mut self, upstream: &str, number: u64) {
        self.refused = Some(number);
        self.tell_refused(upstream).await;
    }

    pub(super) async fn tell_refused(&mut self, upstream: &str) {
        if let Some(number) = self.refused
            && self.shared.refuse_lease(upstream, number).await.is_ok()
        {
            self.refused = None;
        }
    }

    /// The candidate that this gate has given up is not taken up again.
    pub(super) fn reject_newest(&mut self) {
        self.rejected = Some(self.seen);
    }
}
