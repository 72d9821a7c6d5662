//! Upstream permits: leave to have one request in progress at the upstream. A stream whose client is
//! slow exchanges its permit for a place among the stalled streams.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::fair_queue::{ClientSlot, FairQueue, WaiterId};
use crate::config;
use crate::metrics::{GaugeGuard, UpstreamMetrics};
use crate::shares::{ShareHasher, ShareKey, SharePermit, SharePool};

/// One in this many permits is reserved for monitoring.
const PER_RESERVED: usize = 16;
/// With fewer permits nothing is reserved.
const MIN_WITH_RESERVE: usize = 4;

/// No permit within `queue_timeout`, or before the deadline of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no upstream permit within {waited:.1?}")]
pub struct PermitTimeout {
    pub waited: Duration,
    /// Estimated time until the requests still queued have had a permit, at the current rate.
    pub retry_after: Duration,
}

/// All permits of one upstream.
#[derive(Debug)]
pub struct UpstreamPermits {
    queue: FairQueue,
    queue_timeout: Duration,
    hasher: ShareHasher,
    stalled: Arc<SharePool>,
    max_stalled: usize,
    metrics: Arc<UpstreamMetrics>,
}

/// Leave to have one request in progress at the upstream; dropped at the end of the response.
#[derive(Debug)]
#[must_use = "the permit ends when this is dropped"]
pub struct UpstreamPermit {
    permits: Arc<UpstreamPermits>,
    slot: ClientSlot,
}

/// What a stream holds instead of a permit while its client is slow.
#[derive(Debug)]
pub struct StalledPlace {
    permits: Arc<UpstreamPermits>,
    place: SharePermit,
    _counted: GaugeGuard,
}

/// A queued request. Dropping it removes it from the queue.
struct QueuedRequest {
    permits: Arc<UpstreamPermits>,
    /// None after the permit was granted.
    waiter: Option<WaiterId>,
}

impl UpstreamPermits {
    pub(super) fn new(
        settings: &config::UpstreamConfig,
        metrics: &Arc<UpstreamMetrics>,
    ) -> Arc<Self> {
        let permits = settings.concurrency;
        let reserve = match permits {
            ..MIN_WITH_RESERVE => 0,
            _ => (permits / PER_RESERVED).max(1),
        };
        Arc::new(Self {
            queue: FairQueue::new(permits, reserve),
            queue_timeout: settings.queue_timeout,
            hasher: ShareHasher::default(),
            stalled: SharePool::new(),
            max_stalled: settings.stalled_streams,
            metrics: Arc::clone(metrics),
        })
    }

    /// The client's key in this queue.
    pub fn key(&self, client: impl std::hash::Hash) -> ShareKey {
        self.hasher.key(client)
    }

    /// Waits for a permit, at most `queue_timeout`.
    pub async fn acquire(
        self: &Arc<Self>,
        client: ShareKey,
        is_monitoring: bool,
    ) -> Result<UpstreamPermit, PermitTimeout> {
        match self.try_acquire(client, is_monitoring) {
            Some(permit) => Ok(permit),
            None => Box::pin(self.wait(client, is_monitoring, self.queue_timeout)).await,
        }
    }

    /// The same, at most until `deadline`, when the request would be given up.
    pub async fn acquire_by(
        self: &Arc<Self>,
        client: ShareKey,
        is_monitoring: bool,
        deadline: Instant,
    ) -> Result<UpstreamPermit, PermitTimeout> {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = self.queue_timeout.min(left);
        match self.try_acquire(client, is_monitoring) {
            Some(permit) => Ok(permit),
            None => Box::pin(self.wait(client, is_monitoring, limit)).await,
        }
    }

    /// A permit without waiting; None if none is free for this client.
    pub fn try_acquire(
        self: &Arc<Self>,
        client: ShareKey,
        is_monitoring: bool,
    ) -> Option<UpstreamPermit> {
        let slot = self.queue.try_take(client, is_monitoring)?;
        Some(UpstreamPermit {
            permits: Arc::clone(self),
            slot,
        })
    }

    async fn wait(
        self: &Arc<Self>,
        client: ShareKey,
        is_monitoring: bool,
        limit: Duration,
    ) -> Result<UpstreamPermit, PermitTimeout> {
        let _queued = GaugeGuard::enter(&self.metrics.upstream_requests_queued);
        let before = self.queue.length().granted;
        let began = Instant::now();
        let request = QueuedRequest {
            permits: Arc::clone(self),
            waiter: Some(self.queue.enqueue(client, is_monitoring)),
        };
        match timeout(limit, request).await {
            Ok(permit) => Ok(permit),
            Err(_) => Err(self.timed_out(before, began.elapsed())),
        }
    }

    /// The time for the remaining queue, at the rate at which permits were granted during the wait.
    fn timed_out(&self, granted_before: u64, waited: Duration) -> PermitTimeout {
        let now = self.queue.length();
        let granted = now.granted.saturating_sub(granted_before).max(1);
        let queue = now.waiting as f64 / granted as f64;
        let seconds = (waited.as_secs_f64() * queue).clamp(1.0, 60.0);
        PermitTimeout {
            waited,
            retry_after: Duration::from_secs_f64(seconds),
        }
    }
}

impl UpstreamPermit {
    /// Exchanges the permit for a place among the stalled streams; returns the permit if the client has
    /// used up its share of those.
    pub fn park(self) -> Result<StalledPlace, Self> {
        let key = self.permits.queue.key(self.slot);
        let most = self.permits.max_stalled;
        let Some(place) = self.permits.stalled.take(key, most) else {
            return Err(self);
        };
        let metrics = &self.permits.metrics;
        metrics.permits_released_early.inc();
        Ok(StalledPlace {
            _counted: GaugeGuard::enter(&metrics.stalled_streams),
            permits: Arc::clone(&self.permits),
            place,
        })
    }

    /// Whether ending a stalled stream of the same client would make room for this one.
    pub fn is_of_client(&self, stalled: &StalledPlace) -> bool {
        Arc::ptr_eq(&self.permits, &stalled.permits)
            && self.permits.queue.key(self.slot) == stalled.place.key()
    }

    /// Whether a request is queued, so that a stalled stream must be aborted for it; counts the abort.
    pub fn is_wanted_by_others(&self) -> bool {
        let is_wanted = self.permits.queue.length().waiting > 0;
        if is_wanted {
            self.permits.metrics.stalled_streams_aborted.inc();
        }
        is_wanted
    }
}

impl Drop for UpstreamPermit {
    fn drop(&mut self) {
        self.permits.queue.release(self.slot);
    }
}

impl StalledPlace {
    /// Waits for a permit again, because the upstream has more to do. The stalled place is kept
    /// meanwhile.
    pub fn resume(&self) -> impl Future<Output = Result<UpstreamPermit, PermitTimeout>> + use<> {
        let (permits, key) = (Arc::clone(&self.permits), self.place.key());
        async move { permits.acquire(key, false).await }
    }
}

impl Future for QueuedRequest {
    type Output = UpstreamPermit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<UpstreamPermit> {
        let Some(waiter) = self.waiter else {
            return Poll::Pending; // polled after its end
        };
        self.permits.queue.poll_permit(waiter, cx).map(|slot| {
            self.waiter = None;
            UpstreamPermit {
                permits: Arc::clone(&self.permits),
                slot,
            }
        })
    }
}

impl Drop for QueuedRequest {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter {
            self.permits.queue.leave(waiter);
        }
    }
}
