//! Stage 5, the exchange itself: waits for an upstream permit, sends a request, and repeats it once
//! on a fresh connection when a kept-alive one turned out to be dead.

use http::uri::PathAndQuery;
use http::{Response, StatusCode};
use tokio::time::Instant;

use super::inject::{Inbound, UpstreamCredential, inject, probe};
use crate::clock;
use crate::config::{self, Route};
use crate::identity::Client;
use crate::metrics::RetryReason;
use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::body::permit_state::PermitState;
use crate::pipeline::body::request_body::{BodyFailure, RequestBody};
use crate::pipeline::peer::share_owner;
use crate::pipeline::reject::Rejection;
use crate::pipeline::request_context::RequestContext;
use crate::pipeline::worker_context::WorkerContext;
use crate::shares::ShareKey;
use crate::upstream::{
    OutboundRequest, ResponseTimeout, SendError, SendErrorKind, Upstream, UpstreamConnections,
    UpstreamResponseBody,
};

/// How often a request is repeated that the upstream has not processed.
const MAX_REPEATS: usize = 3;

/// Sends one request to the upstream, as often as necessary.
#[derive(Debug)]
pub(in crate::pipeline) struct Forwarder<'a> {
    pub(super) worker: &'a WorkerContext,
    /// This worker's connections to the upstream that the route leads to.
    pub(super) connections: &'a UpstreamConnections<RequestBody>,
    settings: &'a config::UpstreamConfig,
    pub(in crate::pipeline) route: &'a Route,
    /// The client whose upstream permits the request takes.
    pub(super) share: ShareKey,
    /// When the whole exchange must have ended.
    pub(super) deadline: Instant,
    /// It is a call of gRPC.
    pub(super) is_call: bool,
}

pub(super) type UpstreamResponse = Response<UpstreamResponseBody>;

impl<'a> Forwarder<'a> {
    pub(in crate::pipeline) fn new(request: &RequestContext<'a>, client: &Client) -> Self {
        let owner = share_owner(client, request.origin);
        let connections = request.connections();
        Self {
            worker: request.worker,
            connections,
            settings: request.upstream_settings(),
            route: request.route,
            share: connections.upstream().permits().key(owner),
            deadline: request.deadline,
            is_call: request.is_call,
        }
    }

    pub(super) fn upstream(&self) -> &'a Upstream {
        self.connections.upstream()
    }

    pub(super) fn settings(&self) -> &'a config::UpstreamConfig {
        self.settings
    }

    /// Waits for an upstream permit. Fails at once when the upstream is down.
    pub(super) async fn permit(&self) -> Result<PermitState, Rejection> {
        let health = self.upstream().health();
        let pass = health.admit().map_err(Rejection::UpstreamDown)?;
        let permit = self
            .upstream()
            .acquire_permit(self.share, self.route.monitoring)
            .await;
        let permit = permit.map_err(Rejection::UpstreamQueueTimeout)?;
        // The upstream may have gone down during the wait.
        health.readmit(pass).map_err(Rejection::UpstreamDown)?;
        Ok(PermitState::Held(permit))
    }

    /// Sends the request once; once more when a kept-alive connection was dead and the request is
    /// safe to repeat.
    pub(super) async fn send(
        &self,
        request: &Inbound<'_>,
        body: RequestBody,
        credential: &UpstreamCredential,
        entry: &mut AccessLogEntry,
    ) -> Result<UpstreamResponse, Rejection> {
        let metrics = &self.upstream().metrics;
        metrics.upstream_requests.add(credential.label());
        let outbound = inject(request, body, credential).into_request();
        let start = clock::now();
        let sent = self.connections.send(outbound, self.timeout()).await;
        match sent {
            Ok(response) => {
                let seconds = clock::now().duration_since(start).as_secs_f64();
                metrics.first_byte_seconds.observe(seconds);
                Ok(response)
            }
            Err(error) => Box::pin(self.send_again(request, error, credential, entry)).await,
        }
    }

    async fn send_again(
        &self,
        request: &Inbound<'_>,
        error: SendError,
        credential: &UpstreamCredential,
        entry: &mut AccessLogEntry,
    ) -> Result<UpstreamResponse, Rejection> {
        let mut error = error;
        for _ in 0..MAX_REPEATS {
            let Some(outbound) = repeatable(request, &error, credential) else {
                break;
            };
            entry.set_retried();
            let reason = match error.kind {
                SendErrorKind::NotProcessed => RetryReason::NotProcessed,
                _ => RetryReason::DeadConnection,
            };
            self.upstream().metrics.upstream_retries.add(reason);
            match self.connections.send_fresh(outbound, self.timeout()).await {
                Ok(response) => return Ok(response),
                // A dead connection is repeated once; what was not processed costs the upstream nothing.
                Err(next) if next.kind == SendErrorKind::NotProcessed => error = next,
                Err(next) => return Err(rejection(request, next)),
            }
        }
        Err(rejection(request, error))
    }

    /// How long the upstream may take to respond.
    pub(super) fn timeout(&self) -> ResponseTimeout {
        let default = self.settings().first_byte_timeout;
        ResponseTimeout {
            first_byte: self.route.first_byte_timeout.unwrap_or(default),
            until: Some(self.deadline),
        }
    }
}

/// The status with which the upstream responds to a probe that carries `credential`.
pub(super) async fn probe_status(
    connections: &UpstreamConnections<RequestBody>,
    path: &PathAndQuery,
    credential: &UpstreamCredential,
    timeout: ResponseTimeout,
) -> Option<StatusCode> {
    let outbound = probe(path, credential, connections.via()).into_request();
    let response = connections.send(outbound, timeout).await.ok()?;
    Some(response.status())
}

/// The request for a repeat, if the only fault was a dead kept-alive connection.
fn repeatable<'a>(
    request: &'a Inbound<'_>,
    error: &SendError,
    credential: &'a UpstreamCredential,
) -> Option<OutboundRequest<'a, RequestBody>> {
    if !matches!(
        error.kind,
        SendErrorKind::DeadConnection | SendErrorKind::NotProcessed
    ) {
        return None;
    }
    if !error.is_unsent && !request.is_idempotent() {
        return None;
    }
    let body = request.body().again()?;
    Some(inject(request, body, credential).into_request())
}

fn rejection(request: &Inbound<'_>, error: SendError) -> Rejection {
    if let Some(failure) = request.body().failure() {
        return BodyFailure::rejection(failure);
    }
    match error.kind {
        SendErrorKind::FirstByteTimeout | SendErrorKind::ConnectTimeout => {
            Rejection::UpstreamTimeout
        }
        SendErrorKind::Closed | SendErrorKind::DeadConnection if request.body().is_some() => {
            Rejection::BrokeOff(Box::new(error))
        }
        SendErrorKind::Framing(why) => Rejection::BadUpstreamResponse(why.text()),
        _ => Rejection::Unreachable(Box::new(error)),
    }
}
