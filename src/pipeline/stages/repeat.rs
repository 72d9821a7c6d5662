//! Stage 5, the repeats of an exchange: on a fresh connection when a kept-alive one turned out to be dead,
//! and at another endpoint of the upstream. A request that may have been acted on is repeated only if
//! doing it twice is harmless.

use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use super::inject::{Inbound, UpstreamCredential, inject};
use super::upstream_exchange::{Forwarder, UpstreamResponse, rejection};
use crate::metrics::RetryReason;
use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::reject::Rejection;
use crate::upstream::{SendError, SendErrorKind};

/// One request that may have to be sent again.
#[derive(Debug)]
pub(super) struct Repeat<'a> {
    pub(super) forwarder: &'a Forwarder<'a>,
    pub(super) request: &'a Inbound<'a>,
    pub(super) credential: &'a UpstreamCredential,
    /// Where it was sent to; None: the upstream has one endpoint.
    pub(super) endpoint: Option<Arc<str>>,
}

type SendOutcome = Result<UpstreamResponse, SendError>;

/// Where the request is sent to next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextTry {
    /// The same endpoint, over a new connection.
    FreshConnection,
    OtherEndpoint,
}

impl Repeat<'_> {
    /// Sends the request again after `outcome`, as often as that is safe; returns the response for the
    /// client.
    pub(super) async fn after(
        self,
        mut outcome: SendOutcome,
        entry: &mut AccessLogEntry,
    ) -> Result<UpstreamResponse, Rejection> {
        let metrics = &self.forwarder.upstream().metrics;
        let mut tried: Vec<Arc<str>> = self.endpoint.iter().cloned().collect();
        // An endpoint's refusal, to be passed on if no other endpoint does better.
        let mut refusal = None;
        let mut is_fresh = false;
        let mut is_resent = false;
        loop {
            let Some(next) = self.next(&outcome, is_fresh, &mut is_resent) else {
                break;
            };
            let Some(body) = self.request.body().again() else {
                break;
            };
            let chosen = match next {
                NextTry::FreshConnection => {
                    let name = tried.last().map_or("", |name| name);
                    self.forwarder.connections.choose_again(name)
                }
                NextTry::OtherEndpoint => self.forwarder.choose(&tried),
            };
            let Some(chosen) = chosen else {
                break;
            };
            if let Ok(response) = outcome {
                refusal = Some(response);
            }
            entry.set_retried();
            if self.endpoint.is_some() {
                entry.set_endpoint(chosen.name());
            }
            let timeout = self.forwarder.timeout();
            let outbound = inject(self.request, body, self.credential).into_request();
            let connections = self.forwarder.connections;
            outcome = match next {
                NextTry::FreshConnection => {
                    is_fresh = true;
                    metrics.upstream_retries.add(RetryReason::DeadConnection);
                    connections.send_fresh(chosen, outbound, timeout).await
                }
                NextTry::OtherEndpoint => {
                    tried.push(Arc::clone(chosen.name()));
                    is_fresh = false;
                    metrics.upstream_retries.add(RetryReason::OtherEndpoint);
                    connections.send_to(chosen, outbound, timeout).await
                }
            };
        }
        match (outcome, refusal) {
            (Ok(response), _) | (Err(_), Some(response)) => Ok(response),
            (Err(error), None) => Err(rejection(self.request, error)),
        }
    }

    /// None: `outcome` is final.
    fn next(&self, outcome: &SendOutcome, is_fresh: bool, is_resent: &mut bool) -> Option<NextTry> {
        let request = self.request;
        if let Err(error) = outcome
            && error.kind == SendErrorKind::DeadConnection
            && !is_fresh
            && (error.is_unsent || request.is_idempotent())
        {
            return Some(NextTry::FreshConnection);
        }
        if self.endpoint.is_none() || Instant::now() >= self.forwarder.deadline {
            return None;
        }
        let is_harmless_twice = match outcome {
            Ok(response) if is_retriable(response.status()) => request.is_safe(),
            Ok(_) => return None,
            Err(error) if error.is_unsent => return Some(NextTry::OtherEndpoint),
            Err(error) => match error.kind {
                SendErrorKind::Closed
                | SendErrorKind::DeadConnection
                | SendErrorKind::Protocol
                | SendErrorKind::Framing(_)
                | SendErrorKind::FirstByteTimeout => request.is_safe(),
                _ => return None,
            },
        };
        let endpoints = self.forwarder.upstream().endpoints();
        let is_allowed = is_harmless_twice && !*is_resent && endpoints.try_spend_retry();
        *is_resent |= is_allowed;
        is_allowed.then_some(NextTry::OtherEndpoint)
    }
}

/// Whether a response says that the endpoint could not serve the request, and another one may.
pub(super) fn is_retriable(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}
