//! What requests say about their endpoints: the breaker, the ejection and the metrics get each outcome.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tracing::{info, warn};

use super::EndpointSet;
use super::endpoint_state::{EndpointState, is_endpoint_failure};
use crate::upstream::health::breaker::FailureSource;
use crate::upstream::transport::dial_error::DialError;

/// A timeout counts against an endpoint that had not responded for this long. Less is the end of a
/// deadline that others have used up.
const HANGING: Duration = Duration::from_secs(1);

impl EndpointSet {
    /// A response head has arrived from `state`.
    #[inline]
    pub(in crate::upstream) fn responded(&self, state: &Arc<EndpointState>, status: StatusCode) {
        state.health.responded();
        if self.sole.is_none() {
            self.note_response(state, status);
        }
    }

    fn note_response(&self, state: &Arc<EndpointState>, status: StatusCode) {
        let is_failure = is_endpoint_failure(status);
        if let Some(metrics) = &state.metrics {
            metrics.note_response(is_failure);
        }
        let Some(rules) = &self.policy.ejection else {
            return;
        };
        if is_failure {
            let cause = format!("status {}", status.as_u16());
            self.note_failure(state, &cause);
        } else if state.note_success(rules) {
            info!(upstream = %self.upstream, endpoint = %state.name,
                "the endpoint works again; it gets requests");
            state.begin_ramp();
        }
    }

    /// A request to `state` got no connection.
    pub(in crate::upstream) fn connect_failed(
        &self,
        state: &Arc<EndpointState>,
        failure: &DialError,
    ) {
        let is_counted = state.health.connect_failed(FailureSource::Request, failure);
        if let Some(metrics) = &state.metrics {
            metrics.note_no_connection();
        }
        if is_counted {
            self.note_failure(state, &"no connection");
        }
    }

    /// A request to `state` got no response over its connection.
    pub(in crate::upstream) fn response_failed(
        &self,
        state: &Arc<EndpointState>,
        failure: &(dyn Error + 'static),
    ) {
        state
            .health
            .response_failed(FailureSource::Request, failure);
        self.note_no_response(state);
    }

    /// The same, after a timeout; `owed`: how long the endpoint had not responded, of at most `limit`.
    pub(in crate::upstream) fn timed_out(
        &self,
        state: &Arc<EndpointState>,
        owed: Duration,
        limit: Duration,
    ) {
        state.health.abandoned(owed, limit);
        if owed >= limit.min(HANGING) {
            self.note_no_response(state);
        } else if let Some(metrics) = &state.metrics {
            metrics.note_no_response();
        }
    }

    /// A response head from `state` that cannot be forwarded.
    pub(in crate::upstream) fn response_unusable(&self, state: &Arc<EndpointState>) {
        state.health.responded();
        self.note_no_response(state);
    }

    fn note_no_response(&self, state: &Arc<EndpointState>) {
        if let Some(metrics) = &state.metrics {
            metrics.note_no_response();
        }
        self.note_failure(state, &"no response");
    }

    #[cold]
    fn note_failure(&self, state: &Arc<EndpointState>, cause: &dyn std::fmt::Display) {
        let Some(rules) = self.policy.ejection.as_ref().filter(|_| self.has_several()) else {
            return;
        };
        if !state.note_failure(rules) {
            return;
        }
        let _ejecting = self.ejecting.lock();
        // After a failed trial it is out already.
        if !state.is_ejected() && !self.list.load().may_eject(state) {
            return;
        }
        let pause = state.eject(rules);
        if let Some(metrics) = &state.metrics {
            metrics.ejections.inc();
        }
        warn!(upstream = %self.upstream, endpoint = %state.name, seconds = pause.as_secs_f64(), cause = %cause,
            "the endpoint is ejected: its requests failed; others get them");
    }
}
