//! Stage 5, the exchange itself: what it needs, its upstream permit and its endpoint. `repeat` sends the
//! request, again where that is safe.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

use super::inject::{Inbound, UpstreamCredential, probe};
use crate::config::{self, EndpointAffinity, Route};
use crate::identity::Client;
use crate::pipeline::body::permit_state::PermitState;
use crate::pipeline::body::request_body::{BodyFailure, RequestBody};
use crate::pipeline::peer::share_owner;
use crate::pipeline::reject::Rejection;
use crate::pipeline::request_context::RequestContext;
use crate::pipeline::worker_context::WorkerContext;
use crate::shares::ShareKey;
use crate::upstream::{
    ChosenEndpoint, EndpointChoice, ResponseTimeout, SendError, SendErrorKind, Upstream,
    UpstreamConnections, UpstreamResponseBody,
};

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
    /// The client, where all its requests go to one endpoint.
    affinity: Option<u64>,
    /// It is a call of gRPC.
    pub(super) is_call: bool,
}

pub(super) type UpstreamResponse = Response<UpstreamResponseBody>;

impl<'a> Forwarder<'a> {
    pub(in crate::pipeline) fn new(request: &RequestContext<'a>, client: &Client) -> Self {
        let owner = share_owner(client, request.origin);
        let connections = request.connections();
        let affinity = match connections.upstream().endpoints().affinity() {
            EndpointAffinity::LeastRequests => None,
            EndpointAffinity::Client => Some(stable_hash(&owner)),
        };
        Self {
            worker: request.worker,
            connections,
            settings: request.upstream_settings(),
            route: request.route,
            share: connections.upstream().permits().key(owner),
            deadline: request.deadline,
            affinity,
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
        let health = self.upstream().endpoints();
        if health.is_unknown() {
            let known = timeout(self.settings.connect_timeout, health.known());
            let _ = timeout_at(self.deadline, known).await;
        }
        let pass = health.admit().map_err(Rejection::UpstreamDown)?;
        let permits = self.upstream().permits();
        let permit = permits.acquire_by(self.share, self.route.monitoring, self.deadline);
        let permit = permit.await;
        let permit = permit.map_err(Rejection::UpstreamQueueTimeout)?;
        // The upstream may have gone down during the wait.
        health.readmit(pass).map_err(Rejection::UpstreamDown)?;
        Ok(PermitState::Held(permit))
    }

    /// The endpoint for this request; `tried`: not one of these, nor one that is down.
    pub(super) fn choose(&self, tried: &[Arc<str>]) -> Option<ChosenEndpoint<RequestBody>> {
        self.connections.choose(EndpointChoice {
            affinity: self.affinity,
            tried,
            must_be_up: !tried.is_empty(),
            is_own: false,
        })
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

/// The status of the response to a probe that carries `credential`; None: no response.
pub(super) async fn probe_status(
    connections: &UpstreamConnections<RequestBody>,
    path: &PathAndQuery,
    credential: &UpstreamCredential,
    timeout: ResponseTimeout,
) -> Option<StatusCode> {
    let outbound = probe(path, credential, connections.via()).into_request();
    let chosen = match credential.endpoint() {
        Some(endpoint) => connections.choose_again(endpoint)?,
        None => connections.choose(EndpointChoice::default())?,
    };
    let response = connections.send_to(chosen, outbound, timeout).await.ok()?;
    Some(response.status())
}

/// The same in every process, so that a client's requests go to one endpoint through any replica.
fn stable_hash(owner: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    owner.hash(&mut hasher);
    hasher.finish()
}

pub(super) fn rejection(request: &Inbound<'_>, error: SendError) -> Rejection {
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
