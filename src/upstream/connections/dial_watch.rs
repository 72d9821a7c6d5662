//! Reports what became of a dial.

use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::ConnectResult;
use crate::upstream::Upstream;
use crate::upstream::endpoints::Endpoint;
use crate::upstream::transport::dial_error::DialError;
use crate::upstream::transport::tracked_stream::TrackedStream;

/// Opens a connection, and reports the outcome to the endpoint's health and the upstream's metrics.
pub(super) async fn dial_watched(
    upstream: &Upstream,
    endpoint: &Endpoint,
    end: Option<Instant>,
) -> Result<TrackedStream, DialError> {
    let watch = DialWatch::begin(upstream, endpoint);
    let dialed = endpoint.dialer.dial(end).await;
    watch.end(dialed.as_ref().err());
    upstream.metrics.upstream_connects.add(match &dialed {
        Ok(_) => ConnectResult::New,
        Err(failure) if failure.is_timeout() => ConnectResult::Timeout,
        Err(_) => ConnectResult::Failed,
    });
    dialed
}

/// Reports the outcome of a dial to the upstream's health, also if the request is dropped during
/// it.
struct DialWatch<'a> {
    upstream: &'a Upstream,
    endpoint: &'a Endpoint,
    began: Instant,
    has_ended: bool,
}

impl<'a> DialWatch<'a> {
    fn begin(upstream: &'a Upstream, endpoint: &'a Endpoint) -> Self {
        Self {
            upstream,
            endpoint,
            began: Instant::now(),
            has_ended: false,
        }
    }

    fn end(mut self, failure: Option<&DialError>) {
        self.has_ended = true;
        let state = &self.endpoint.state;
        match failure {
            None => {}
            // Ended early by the deadline of the whole exchange.
            Some(failure) if failure.is_deadline() && self.began.elapsed() < self.limit() => {
                state.health.abandoned(self.began.elapsed(), self.limit());
            }
            Some(failure) => self.upstream.endpoints.connect_failed(state, failure),
        }
    }

    fn limit(&self) -> Duration {
        self.endpoint.dialer.limit()
    }
}

impl Drop for DialWatch<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let health = &self.endpoint.state.health;
            health.abandoned(self.began.elapsed(), self.limit());
        }
    }
}
