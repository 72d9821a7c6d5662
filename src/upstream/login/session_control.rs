//! The renewer's side of a session: it offers and condemns leases, and takes the events that
//! requests raised.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::judgement::{LeaseFacts, LeasePlacement, LoginCause, Millis};
use super::lease::Lease;
use super::session::Session;
use crate::clock::Deadline;
use crate::sync::lock;

/// Where a lease comes from.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct LeaseOrigin {
    /// When its login began, on the session's clock.
    pub(in crate::upstream) began: Millis,
    pub(in crate::upstream) cause: LoginCause,
    /// The probe has accepted it.
    pub(super) is_proven: bool,
}

impl Session {
    pub(in crate::upstream) fn now(&self) -> Millis {
        Millis::try_from(self.began.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    /// A number for a token that is new here.
    pub(super) fn next_generation(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Adds a lease: in use at once, or a candidate beside the lease in use.
    pub(in crate::upstream) fn offer(
        &self,
        mut lease: Lease,
        origin: LeaseOrigin,
    ) -> LeasePlacement {
        lease.endpoint.clone_from(&self.endpoint);
        let facts = LeaseFacts {
            generation: lease.generation,
            began: origin.began,
            obtained: self.now(),
            cause: origin.cause,
        };
        let _ = self.usable(); // a lease that has ended gives way
        let mut leases = lock(&self.leases);
        // In one step: what the judgement names can be found, and stays.
        leases.push(Arc::new(lease));
        let placement = self.judgement.offer(facts, origin.is_proven);
        drop(leases);
        self.follow_judgement();
        placement
    }

    /// The probe has found this generation dead.
    pub(super) fn condemn(&self, generation: u64) {
        self.judgement.condemn(generation);
        self.follow_judgement();
    }

    pub(super) fn is_young(&self, lease: &Lease) -> bool {
        self.judgement.is_young(lease.generation, self.now())
    }

    pub(super) fn by_generation(&self, generation: u64) -> Option<Arc<Lease>> {
        let leases = lock(&self.leases);
        let mut leases = leases.iter();
        let lease = leases.find(|lease| lease.generation == generation)?;
        (!lease.ends.has_passed()).then(|| Arc::clone(lease))
    }

    /// The lease in use, whether or not it has ended.
    pub(super) fn in_use(&self) -> Option<Arc<Lease>> {
        self.current.load_full()
    }

    /// The newest lease there is: the candidate, or the one in use.
    pub(in crate::upstream) fn newest(&self) -> Option<Arc<Lease>> {
        let [current, candidate, _] = self.judgement.generations();
        self.by_generation(candidate.or(current)?)
    }

    pub(super) fn take_promoted(&self) -> bool {
        self.events.promoted.swap(false, Ordering::AcqRel)
    }

    pub(super) fn take_rejected(&self) -> Option<u64> {
        let rejected = self.events.rejected.swap(0, Ordering::AcqRel);
        (rejected != 0).then_some(rejected)
    }

    pub(super) fn take_nudge(&self) -> bool {
        self.events.nudged.swap(false, Ordering::AcqRel)
    }

    /// A login brought a token, whether or not it will be used.
    pub(in crate::upstream) fn minted(&self, ends: Deadline, single_active: bool) {
        let mut minted = lock(&self.minted);
        if single_active {
            minted.clear();
        }
        minted.retain(|ends| !ends.has_passed());
        minted.push(ends);
    }

    #[cold]
    pub(super) fn after_the_end_of(&self, lease: &Lease) -> Option<Arc<Lease>> {
        self.judgement.expire(lease.generation);
        self.follow_judgement();
        let lease = self.current.load_full()?;
        (!lease.ends.has_passed()).then_some(lease)
    }

    /// Makes the lease in use the one that the judgement names, and forgets those that it
    /// names no more.
    pub(super) fn follow_judgement(&self) {
        let mut leases = lock(&self.leases);
        // Read under the lock, so that the last call stores the last decision.
        let known = self.judgement.generations();
        leases.retain(|lease| known.contains(&Some(lease.generation)));
        let current = known[0].and_then(|generation| {
            let mut leases = leases.iter();
            leases.find(|lease| lease.generation == generation).cloned()
        });
        if let Some(lease) = &current {
            let shown = i64::try_from(lease.shared.unwrap_or(lease.generation));
            let gauge = &self.metrics.session_generation;
            gauge.set(shown.unwrap_or(i64::MAX));
        }
        self.current.store(current);
    }
}
