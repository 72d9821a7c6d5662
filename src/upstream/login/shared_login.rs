//! One login for all gateways that share a store. The gateway that holds the lock logs in, extends
//! the lock meanwhile and publishes the token; the others adopt it. A gateway that dies during a
//! login loses only the lock.
//! While the store is down a gateway logs in for itself if it must. That lease has a local
//! generation, and is replaced once the store has a lease.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::lease_store::LeaseBinding;
use super::session::Session;
use crate::clock::Deadline;
use crate::store::SealedBytes;
use crate::store::shared::{Replica, SharedChange, SharedStore, StateSnapshotItem};

/// This gateway's part in the shared login.
#[derive(Debug)]
pub(in crate::upstream) struct SharedLogin {
    pub(super) shared: Arc<SharedStore>,
    pub(super) follower: Arc<LeaseReplica>,
    /// When the newest lease is to be renewed.
    pub(super) renew: Option<Deadline>,
    /// A generation that was refused here, while the store has not been told yet.
    refused: Option<u64>,
    /// The newest shared generation, if this gateway gave it up.
    pub(super) rejected: Option<u64>,
    /// The newest generation read from the store.
    pub(super) seen: u64,
}

/// Follows the shared lease: notes changes, and keeps the latest one for a resync.
#[derive(Debug)]
pub(super) struct LeaseReplica {
    upstream: Arc<str>,
    session: Arc<Session>,
    has_changed: AtomicBool,
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
    fn notify(&self) {
        self.has_changed.store(true, Ordering::Release);
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
            self.notify();
        }
    }

    fn invalidate(&self, _: u64) {
        self.notify();
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
        let follower = Arc::new(LeaseReplica {
            upstream: Arc::clone(upstream),
            session: Arc::clone(session),
            has_changed: AtomicBool::new(false),
            latest: Mutex::default(),
        });
        let weak: Weak<LeaseReplica> = Arc::downgrade(&follower);
        shared.add_replica(weak);
        Some(Self {
            shared: Arc::clone(shared),
            follower,
            renew: None,
            refused: None,
            rejected: None,
            seen: 0,
        })
    }

    pub(super) fn clear_changes(&self) {
        self.follower.has_changed.store(false, Ordering::Release);
    }

    pub(in crate::upstream) fn has_news(&self) -> bool {
        self.follower.has_changed.load(Ordering::Acquire)
    }

    pub(super) fn is_due(&self) -> bool {
        self.renew.is_none_or(|renew| renew.has_passed())
    }

    /// Reports that the probe found the shared lease dead.
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

    /// Prevents that this gateway adopts the rejected candidate again.
    pub(super) fn reject_newest(&mut self) {
        self.rejected = Some(self.seen);
    }
}
