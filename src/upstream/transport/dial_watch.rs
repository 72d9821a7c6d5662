//! Reports what became of a dial.

use std::time::Duration;

use tokio::time::Instant;

use super::dial_error::DialError;
use super::tracked_stream::TrackedStream;
use crate::metrics::ConnectResult;
use crate::upstream::Upstream;
use crate::upstream::health::breaker::FailureSource;

/// Opens a connection, and reports the outcome to the upstream's health and metrics.
pub(super) async fn dial_watched(
    upstream: &Upstream,
    end: Option<Instant>,
) -> Result<TrackedStream, DialError> {
    let watch = DialWatch::begin(upstream);
    let dialed = upstream.dialer.dial(end).await;
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
    began: Instant,
    has_ended: bool,
}

impl<'a> DialWatch<'a> {
    fn begin(upstream: &'a Upstream) -> Self {
        Self {
            upstream,
            began: Instant::now(),
            has_ended: false,
        }
    }

    fn end(mut self, failure: Option<&DialError>) {
        self.has_ended = true;
        let health = self.upstream.health();
        match failure {
            None => {}
            // Ended early by the deadline of the whole exchange.
            Some(failure) if failure.is_deadline() && self.began.elapsed() < self.limit() => {
                health.abandoned(self.began.elapsed(), self.limit());
            }
            Some(failure) => health.connect_failed(FailureSource::Request, failure),
        }
    }

    fn limit(&self) -> Duration {
        self.upstream.dialer.limit()
    }
}

impl Drop for DialWatch<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let health = self.upstream.health();
            health.abandoned(self.began.elapsed(), self.limit());
        }
    }
}
