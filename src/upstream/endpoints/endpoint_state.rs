//! What is known of one endpoint. It belongs to the endpoint's address and not to a configuration, so it
//! survives reloads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::check_record::{CheckRecord, CheckState};
use super::outlier_record::OutlierRecord;
use crate::clock;
use crate::config::EjectionRules;
use crate::metrics::EndpointMetrics;
use crate::upstream::health::EndpointHealth;
use crate::upstream::transport::in_flight_count::InFlightCount;

/// The least share of an endpoint that has just become available.
const MIN_RAMP: f64 = 0.1;

/// The state of one endpoint, shared by all workers and the control runtime.
#[derive(Debug)]
pub(in crate::upstream) struct EndpointState {
    /// For logs, metrics and the operator: the address.
    pub(in crate::upstream) name: Arc<str>,
    pub(in crate::upstream) health: Arc<EndpointHealth>,
    /// Requests sent to it that have not ended, bodies included. Counted with several endpoints only.
    pub(in crate::upstream) in_flight: Arc<InFlightCount>,
    outlier: Mutex<OutlierRecord>,
    /// `outlier` has something that a success would change.
    is_noted: AtomicBool,
    is_ejected: AtomicBool,
    is_drained: AtomicBool,
    check: Mutex<CheckRecord>,
    is_check_failed: AtomicBool,
    is_check_passed: AtomicBool,
    /// Milliseconds after `epoch` at which its slow start began; 0: it has its full share.
    ramp_from: AtomicU64,
    epoch: Instant,
    /// None: the upstream has one endpoint, whose metrics are the upstream's.
    pub(in crate::upstream) metrics: Option<Arc<EndpointMetrics>>,
}

/// How much an endpoint is to be preferred; the lowest is best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EndpointRank {
    Available,
    /// Its first health check has not ended.
    Unproven,
    /// Ejected, or its health checks fail.
    Unhealthy,
    /// Its breaker is open: it does not respond at all.
    Down,
}

impl EndpointState {
    pub(super) fn new(
        name: Arc<str>,
        health: Arc<EndpointHealth>,
        metrics: Option<Arc<EndpointMetrics>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            health,
            in_flight: InFlightCount::new(metrics.as_ref().map(|one| one.in_flight.clone())),
            outlier: Mutex::default(),
            is_noted: AtomicBool::new(false),
            is_ejected: AtomicBool::new(false),
            is_drained: AtomicBool::new(false),
            check: Mutex::default(),
            is_check_failed: AtomicBool::new(false),
            is_check_passed: AtomicBool::new(false),
            ramp_from: AtomicU64::new(0),
            epoch: clock::now(),
            metrics,
        })
    }

    /// None: the operator has drained it.
    pub(super) fn rank(&self, is_checked: bool) -> Option<EndpointRank> {
        if self.is_drained() {
            return None;
        }
        Some(if self.health.is_down() {
            EndpointRank::Down
        } else if self.is_ejected() || self.is_check_failed.load(Ordering::Relaxed) {
            EndpointRank::Unhealthy
        } else if is_checked && !self.is_check_passed.load(Ordering::Relaxed) {
            EndpointRank::Unproven
        } else {
            EndpointRank::Available
        })
    }

    pub(in crate::upstream) fn is_ejected(&self) -> bool {
        self.is_ejected.load(Ordering::Relaxed)
    }

    /// Whether it counts as out when another one would be ejected.
    pub(super) fn is_out(&self) -> bool {
        let is_unhealthy = self.is_ejected() || self.is_check_failed.load(Ordering::Relaxed);
        is_unhealthy || self.is_drained() || self.health.is_down()
    }

    pub(in crate::upstream) fn is_drained(&self) -> bool {
        self.is_drained.load(Ordering::Relaxed)
    }

    /// Takes it out of use, or back. False: it was so already.
    pub(super) fn set_drained(&self, is_drained: bool) -> bool {
        self.is_drained.swap(is_drained, Ordering::Relaxed) != is_drained
    }

    /// Failed requests since its last success.
    pub(in crate::upstream) fn failures(&self) -> u32 {
        match self.is_noted.load(Ordering::Relaxed) {
            true => self.outlier.lock().failures(),
            false => 0,
        }
    }

    /// A request has failed here. True: it should be ejected.
    pub(super) fn note_failure(&self, rules: &EjectionRules) -> bool {
        let mut outlier = self.outlier.lock();
        let is_enough = outlier.failed(rules);
        self.publish(&outlier);
        is_enough
    }

    pub(super) fn eject(&self, rules: &EjectionRules) -> Duration {
        let mut outlier = self.outlier.lock();
        let pause = outlier.eject(rules, clock::now());
        self.publish(&outlier);
        pause
    }

    /// Ends an ejection without a trial.
    pub(super) fn pardon(&self) {
        let mut outlier = self.outlier.lock();
        outlier.pardon();
        self.publish(&outlier);
    }

    /// A request has succeeded here. True: its ejection has ended.
    #[inline]
    pub(super) fn note_success(&self, rules: &EjectionRules) -> bool {
        self.is_noted.load(Ordering::Relaxed) && self.forgive(rules)
    }

    #[cold]
    fn forgive(&self, rules: &EjectionRules) -> bool {
        let mut outlier = self.outlier.lock();
        let has_returned = outlier.succeeded(rules, clock::now());
        self.publish(&outlier);
        has_returned
    }

    /// Whether the next request is to find out if its ejection can end.
    pub(super) fn claim_trial(&self) -> bool {
        let may_be_tried = self.is_ejected() && !self.is_drained() && !self.health.is_down();
        may_be_tried && self.outlier.lock().claim_trial(clock::now())
    }

    pub(super) fn ejected_for(&self) -> Duration {
        self.outlier.lock().left(clock::now())
    }

    fn publish(&self, outlier: &MutexGuard<'_, OutlierRecord>) {
        let order = Ordering::Relaxed;
        self.is_noted.store(!outlier.is_clean(), order);
        self.is_ejected.store(outlier.is_ejected(), order);
    }

    /// Changes the record of its health checks.
    pub(super) fn with_check<T>(&self, change: impl FnOnce(&mut CheckRecord) -> T) -> T {
        let mut check = self.check.lock();
        let changed = change(&mut check);
        let state = check.state();
        let order = Ordering::Relaxed;
        let is_failed = state == CheckState::Failing;
        self.is_check_failed.store(is_failed, order);
        let is_passed = state == CheckState::Passing;
        self.is_check_passed.store(is_passed, order);
        changed
    }

    /// Its slow start begins now.
    pub(in crate::upstream) fn begin_ramp(&self) {
        let at = clock::now().saturating_duration_since(self.epoch);
        let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        self.ramp_from.store(at.max(1), Ordering::Relaxed);
    }

    /// The part of its share that it gets now, 0.1 to 1, when a slow start takes `slow_start`.
    pub(super) fn ramp(&self, slow_start: Duration) -> f64 {
        let from = self.ramp_from.load(Ordering::Relaxed);
        if from == 0 || slow_start.is_zero() {
            return 1.0;
        }
        let elapsed = clock::now().saturating_duration_since(self.epoch);
        let elapsed = elapsed.saturating_sub(Duration::from_millis(from));
        if elapsed >= slow_start {
            self.ramp_from.store(0, Ordering::Relaxed);
            return 1.0;
        }
        elapsed.div_duration_f64(slow_start).max(MIN_RAMP)
    }
}

/// Whether a response with this status counts against its endpoint. 501 and 505 are about the request.
pub(super) fn is_endpoint_failure(status: StatusCode) -> bool {
    status.is_server_error()
        && status != StatusCode::NOT_IMPLEMENTED
        && status != StatusCode::HTTP_VERSION_NOT_SUPPORTED
}
