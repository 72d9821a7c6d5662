//! Stage 5: sends a request, and sends it again on a fresh connection when a kept-alive one turned out to be
//! dead, and at another endpoint of the upstream. A request that may have been acted on is repeated only if
//! doing it twice is harmless.

use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use super::inject::{Inbound, UpstreamCredential, inject};
use super::upstream_exchange::{Forwarder, UpstreamResponse, rejection};
use crate::clock;
use crate::metrics::RetryReason;
use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::body::request_body::RequestBody;
use crate::pipeline::reject::Rejection;
use crate::upstream::{ChosenEndpoint, SendError, SendErrorKind};

impl Forwarder<'_> {
    /// Sends the request; again where it got no response and is safe to repeat. `credential` becomes the one
    /// that the response is for.
    pub(super) async fn send(
        &self,
        request: &Inbound<'_>,
        body: RequestBody,
        credential: &mut UpstreamCredential,
        entry: &mut AccessLogEntry,
    ) -> Result<UpstreamResponse, Rejection> {
        let metrics = &self.upstream().metrics;
        let chosen = self.endpoint_for(credential);
        let chosen = chosen.ok_or_else(|| rejection(request, self.connections.no_endpoint()))?;
        metrics.upstream_requests.add(credential.label());
        let mut endpoint = None;
        let endpoints = self.upstream().endpoints();
        if endpoints.has_several() {
            endpoints.note_request();
            entry.set_endpoint(chosen.name());
            endpoint = Some(Arc::clone(chosen.name()));
        }
        let outbound = inject(request, body, credential).into_request();
        let start = clock::now();
        let sent = self.connections.send_to(chosen, outbound, self.timeout());
        match sent.await {
            Ok(response) if endpoint.is_none() || !is_retriable(response.status()) => {
                let seconds = clock::now().duration_since(start).as_secs_f64();
                metrics.first_byte_seconds.observe(seconds);
                Ok(response)
            }
            outcome => {
                let repeat = Repeat {
                    forwarder: self,
                    request,
                    credential,
                    endpoint,
                };
                Box::pin(repeat.after(outcome, entry)).await
            }
        }
    }
}

/// One request that may have to be sent again.
#[derive(Debug)]
struct Repeat<'a> {
    forwarder: &'a Forwarder<'a>,
    request: &'a Inbound<'a>,
    credential: &'a mut UpstreamCredential,
    /// Where it was sent to; None: the upstream has one endpoint.
    endpoint: Option<Arc<str>>,
}

type SendOutcome = Result<UpstreamResponse, SendError>;

/// How often a request is repeated that the upstream has not processed.
const MAX_UNPROCESSED: usize = 3;

/// The repeats of one request so far.
#[derive(Debug, Default)]
struct RepeatsDone {
    /// Over a new connection at this endpoint.
    is_fresh: bool,
    /// A repeat of what may have arrived.
    is_resent: bool,
    /// Repeats of what was not processed.
    unprocessed: usize,
}

/// An endpoint's refusal, to be passed on if no other endpoint does better.
struct HeldRefusal {
    response: UpstreamResponse,
    /// What the request to that endpoint carried.
    credential: UpstreamCredential,
}

/// Where the request is sent to next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextTry {
    /// The same endpoint, over a new connection.
    FreshConnection,
    OtherEndpoint,
}

impl NextTry {
    /// Why a request is sent again after `outcome`.
    fn reason(self, outcome: &SendOutcome) -> RetryReason {
        match (self, outcome) {
            (Self::OtherEndpoint, _) => RetryReason::OtherEndpoint,
            (Self::FreshConnection, Err(error)) if error.kind == SendErrorKind::NotProcessed => {
                RetryReason::NotProcessed
            }
            (Self::FreshConnection, _) => RetryReason::DeadConnection,
        }
    }
}

impl Repeat<'_> {
    /// Sends the request again after `outcome`, as often as that is safe; returns the response for the
    /// client.
    async fn after(
        mut self,
        mut outcome: SendOutcome,
        entry: &mut AccessLogEntry,
    ) -> Result<UpstreamResponse, Rejection> {
        let metrics = &self.forwarder.upstream().metrics;
        let mut tried: Vec<Arc<str>> = self.endpoint.iter().cloned().collect();
        let mut refusal = None;
        let mut done = RepeatsDone::default();
        while let Some(next) = self.next(&outcome, &mut done) {
            let Some(body) = self.request.body().again() else {
                break;
            };
            let asked = self.credential.clone();
            let Some(chosen) = self.choose(next, &mut tried) else {
                break;
            };
            metrics.upstream_retries.add(next.reason(&outcome));
            entry.set_retried();
            if self.endpoint.is_some() {
                entry.set_endpoint(chosen.name());
                tried.retain(|name| name != chosen.name());
                tried.push(Arc::clone(chosen.name()));
            }
            if let Ok(response) = outcome {
                refusal = Some(HeldRefusal {
                    response,
                    credential: asked,
                });
            }
            let timeout = self.forwarder.timeout();
            let outbound = inject(self.request, body, self.credential).into_request();
            let connections = self.forwarder.connections;
            outcome = match next {
                NextTry::FreshConnection => connections.send_fresh(chosen, outbound, timeout).await,
                NextTry::OtherEndpoint => {
                    done.is_fresh = false;
                    connections.send_to(chosen, outbound, timeout).await
                }
            };
        }
        match (outcome, refusal) {
            (Ok(response), _) => Ok(response),
            (Err(_), Some(held)) => {
                *self.credential = held.credential;
                Ok(held.response)
            }
            (Err(error), None) => Err(rejection(self.request, error)),
        }
    }

    /// The endpoint of the next try. `tried`: the last one is that of the try before.
    fn choose(
        &mut self,
        next: NextTry,
        tried: &mut Vec<Arc<str>>,
    ) -> Option<ChosenEndpoint<RequestBody>> {
        let same = match next {
            NextTry::FreshConnection => {
                let name = tried.last().map_or("", |name| name);
                self.forwarder.connections.choose_again(name)
            }
            NextTry::OtherEndpoint => None,
        };
        let other = || {
            self.forwarder
                .other_endpoint(self.request, self.credential, tried)
        };
        same.or_else(other)
    }

    /// None: `outcome` is final.
    fn next(&self, outcome: &SendOutcome, done: &mut RepeatsDone) -> Option<NextTry> {
        let request = self.request;
        if let Err(error) = outcome
            && error.kind == SendErrorKind::NotProcessed
            && done.unprocessed < MAX_UNPROCESSED
        {
            // It costs the upstream nothing.
            done.unprocessed += 1;
            return Some(NextTry::FreshConnection);
        }
        if let Err(error) = outcome
            && error.kind == SendErrorKind::DeadConnection
            && !std::mem::replace(&mut done.is_fresh, true)
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
        let is_allowed = is_harmless_twice && !done.is_resent && endpoints.try_spend_retry();
        done.is_resent |= is_allowed;
        is_allowed.then_some(NextTry::OtherEndpoint)
    }
}

/// Whether a response says that the endpoint could not serve the request, and another one may.
fn is_retriable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 502..=504)
}
