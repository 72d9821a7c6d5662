//! Sends the gateway's own probes to an endpoint after a failure: a connection and a small request,
//! on the control runtime, so that no client request is spent on it.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::Endpoint;
use super::own_requests::{CallError, OwnRequests};
use crate::error_chain::chain;
use crate::lifecycle::TaskScope;
use crate::metrics::{ProbeOutcome, UpstreamMetrics};
use crate::upstream::health::breaker::FailureSource;

/// Timeout of the connection, and of the response: a healthy upstream is quicker for so small a
/// request.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Probes in flight at once. One that is never answered must not block the next: its connection may
/// have died with the upstream.
const AT_ONCE: usize = 6;

/// Probes an endpoint while its health is in doubt; one per endpoint.
#[derive(Debug)]
pub(super) struct EndpointProber {
    own: Arc<OwnRequests>,
    endpoint: Arc<Endpoint>,
    metrics: Arc<UpstreamMetrics>,
    scope: TaskScope,
}

impl EndpointProber {
    pub(super) fn new(
        own: &Arc<OwnRequests>,
        endpoint: &Arc<Endpoint>,
        scope: &TaskScope,
        metrics: &Arc<UpstreamMetrics>,
    ) -> Self {
        Self {
            own: Arc::clone(own),
            endpoint: Arc::clone(endpoint),
            metrics: Arc::clone(metrics),
            scope: scope.clone(),
        }
    }

    /// Runs until drain.
    pub(super) async fn run(self) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let health = Arc::clone(&self.endpoint.state.health);
        let mut levels = health.levels();
        let mut asked = 0;
        // The health was taken over at a reload, which may have corrected the connection settings.
        health.hurry();
        while !self.scope.stop.is_draining() {
            levels.mark_unchanged();
            let due = health.next_probe();
            tokio::select! {
                () = self.scope.stop.draining() => return,
                _ = levels.changed() => {}
                () = sleep_until(due.unwrap_or_else(far)), if due.is_some() => {
                    health.probe_begins();
                    if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                        self.ask(place, asked);
                        asked += 1;
                    }
                }
            }
        }
    }

    fn ask(&self, place: OwnedSemaphorePermit, nth: usize) {
        let (own, endpoint) = (Arc::clone(&self.own), Arc::clone(&self.endpoint));
        let (metrics, stop) = (Arc::clone(&self.metrics), self.scope.stop.clone());
        self.scope.spawn("upstream probe", async move {
            let _place = place;
            let outcome = tokio::select! {
                outcome = own.ask(&endpoint, nth) => outcome,
                () = stop.draining() => return,
            };
            let health = &endpoint.state.health;
            match outcome {
                Ok(()) => {
                    metrics.upstream_probes.add(ProbeOutcome::Succeeded);
                    health.responded();
                }
                Err(failure) => {
                    metrics.upstream_probes.add(ProbeOutcome::Failed);
                    debug!(error = %chain(&failure), "the upstream did not answer a probe");
                    match &failure {
                        CallError::Unreachable(_) => {
                            health.connect_failed(FailureSource::Probe, &failure);
                        }
                        CallError::Broken(_) | CallError::Late(_) => {
                            health.response_failed(FailureSource::Probe, &failure);
                        }
                    }
                }
            }
        });
    }
}

impl OwnRequests {
    /// Sent without a credential: any response will do, a 401 or a 404 as well. Every other probe asks
    /// for `/`, in case the probe's path is the only one that does not respond.
    fn target(&self, nth: usize) -> Uri {
        match &self.probe {
            Some(path) if nth.is_multiple_of(2) => Uri::from(path.clone()),
            _ => Uri::from_static("/"),
        }
    }

    async fn ask(&self, endpoint: &Endpoint, nth: usize) -> Result<(), CallError> {
        let dial_by = Instant::now() + MAX_WAIT;
        let limit = self.response_timeout.min(MAX_WAIT);
        let question = self.get(self.target(nth));
        self.call_at(endpoint, question, Some(dial_by), limit, async |_| ())
            .await
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}
