//! The access log entry of a request: opened before any stage runs, written when it is dropped. It
//! never contains a header, a query or a body.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, StatusCode};
use tokio::time::Instant;

use super::attempted_user::AttemptedUser;
use super::line::{AccessLine, key};
use crate::clock;
use crate::identity::Client;
use crate::logging::WorkerLines;
use crate::metrics::{Blame, LabelSet as _, Reason};
use crate::pipeline::body::rate_guard::BodySide;
use crate::pipeline::body::request_body::BodyHandle;
use crate::pipeline::body::response_stream::StreamError;
use crate::pipeline::headers::trace::{HexDigits, TraceParent};
use crate::pipeline::limit::InFlightPermit;
use crate::pipeline::peer::{Peer, share_owner};
use crate::pipeline::reject::Rejection;
use crate::pipeline::route_table::RouteEntry;
use crate::pipeline::worker_context::WorkerContext;

/// What is known of one request so far.
pub(in crate::pipeline) struct AccessLogEntry {
    worker: Arc<WorkerContext>,
    id: HexDigits<32>,
    trace: TraceParent,
    opened: Instant,
    /// None: the head could not be read.
    method: Option<Method>,
    /// The query is never logged.
    target: Option<PathAndQuery>,
    origin: IpAddr,
    /// Index in the route table.
    route: Option<usize>,
    client: Option<Client>,
    /// None: the request has none of them.
    uncommon: Option<Box<UncommonFields>>,
    /// None: the client disconnected before there was a response.
    status: Option<StatusCode>,
    upstream_status: Option<u16>,
    blame: Blame,
    reason: Option<Reason>,
    cause: Option<Cow<'static, str>>,
    request_body: Option<BodyHandle>,
    bytes_out: u64,
    retried: bool,
    end: BodyEnd,
    in_flight: Option<InFlightPermit>,
}

/// What few requests have, so that the entry stays small.
#[derive(Default)]
struct UncommonFields {
    /// The user name of a login.
    attempted_user: Option<AttemptedUser>,
    /// The upstream's endpoint that got the request; None: there is only one.
    endpoint: Option<Arc<str>>,
}

/// How the response body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyEnd {
    /// It has not ended; in a closed entry: the client disconnected.
    Open,
    Complete,
    BrokeOff,
}

impl AccessLogEntry {
    pub(in crate::pipeline) fn open(
        worker: &Arc<WorkerContext>,
        head: &Parts,
        peer: &Peer,
    ) -> Box<Self> {
        let mut entry = Self::new(worker, TraceParent::of(&head.headers), peer);
        entry.method = Some(head.method.clone());
        entry.target = head.uri.path_and_query().cloned();
        entry
    }

    /// The entry of a request whose head could not be read.
    pub(in crate::pipeline) fn open_unread(worker: &Arc<WorkerContext>, peer: &Peer) -> Box<Self> {
        Self::new(worker, TraceParent::of(&HeaderMap::new()), peer)
    }

    fn new(worker: &Arc<WorkerContext>, trace: TraceParent, peer: &Peer) -> Box<Self> {
        worker.app.metrics.requests_in_flight.inc();
        Box::new(Self {
            worker: Arc::clone(worker),
            id: HexDigits::random(),
            trace,
            opened: clock::now(),
            method: None,
            target: None,
            origin: peer.ip(),
            route: None,
            client: None,
            uncommon: None,
            status: None,
            upstream_status: None,
            blame: Blame::None,
            reason: None,
            cause: None,
            request_body: None,
            bytes_out: 0,
            retried: false,
            end: BodyEnd::Open,
            in_flight: None,
        })
    }

    /// The request id, 32 hex digits.
    pub(in crate::pipeline) fn id(&self) -> &str {
        self.id.as_str()
    }

    pub(in crate::pipeline) fn opened(&self) -> Instant {
        self.opened
    }

    pub(in crate::pipeline) fn trace(&self) -> &TraceParent {
        &self.trace
    }

    pub(in crate::pipeline) fn set_origin(&mut self, ip: IpAddr) {
        self.origin = ip;
    }

    /// `index`: in the route table of the worker's rules.
    pub(in crate::pipeline) fn set_route(&mut self, index: usize) {
        self.route = Some(index);
    }

    /// How long the upstream of its route is left alone after failures; zero: it is up, or there is no
    /// route.
    pub(in crate::pipeline) fn upstream_pause(&self) -> Duration {
        let live = &self.worker.live;
        let route = self.route.and_then(|index| live.routes.at(index));
        route.map_or(Duration::ZERO, |route| {
            live.upstreams[route.upstream].endpoints().pause()
        })
    }

    pub(in crate::pipeline) fn set_client(&mut self, client: &Client) {
        self.client = Some(client.clone());
    }

    pub(in crate::pipeline) fn set_attempted_user(&mut self, user: AttemptedUser) {
        self.uncommon.get_or_insert_default().attempted_user = Some(user);
    }

    pub(in crate::pipeline) fn set_request_body(&mut self, body: BodyHandle) {
        self.request_body = Some(body);
    }

    /// Keeps the request's in-flight permit until the entry is closed.
    pub(in crate::pipeline) fn set_in_flight(&mut self, permit: InFlightPermit) {
        self.in_flight = Some(permit);
    }

    /// Counts the in-flight permit as one of this client's, and of its route's upstream; fails when the
    /// client or the upstream has its share.
    pub(in crate::pipeline) fn claim_in_flight(
        &mut self,
        client: &Client,
    ) -> Result<(), Rejection> {
        let Some(permit) = self.in_flight.as_mut().filter(|permit| permit.is_crowded()) else {
            return Ok(());
        };
        let owner = share_owner(client, self.origin);
        permit.claim(owner).map_err(|_| Rejection::ShareTaken)?;
        let live = &self.worker.live;
        let route = self.route.and_then(|index| live.routes.at(index));
        let route = route.filter(|route| live.upstreams.len() > 1 && route.is_forwarded());
        let Some(route) = route else {
            return Ok(());
        };
        let claim = permit.claim_for_upstream(&live.upstreams[route.upstream].name);
        claim.map_err(|_| Rejection::Overloaded)
    }

    pub(in crate::pipeline) fn set_endpoint(&mut self, name: &Arc<str>) {
        self.uncommon.get_or_insert_default().endpoint = Some(Arc::clone(name));
    }

    pub(in crate::pipeline) fn set_retried(&mut self) {
        self.retried = true;
    }

    pub(in crate::pipeline) fn upstream_responded(&mut self, status: StatusCode) {
        self.upstream_status = Some(status.as_u16());
        if status.is_server_error() {
            self.blame = Blame::Upstream;
        } else if status.is_client_error() {
            self.blame = Blame::Client;
        }
    }

    pub(in crate::pipeline) fn rejected(&mut self, rejection: &Rejection) {
        let mapping = rejection.mapping();
        self.blame = mapping.blame;
        self.reason = Some(mapping.reason);
        self.cause = rejection.cause();
        self.worker.app.metrics.rejections.add(mapping.reason);
    }

    pub(in crate::pipeline) fn set_status(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    pub(super) fn add_bytes_out(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
    }

    /// The response body has been sent to its end.
    pub(super) fn complete(&mut self) {
        if self.end == BodyEnd::Open {
            self.end = BodyEnd::Complete;
        }
    }

    /// The response body ended with an error.
    pub(super) fn broke_off(&mut self, error: &StreamError) {
        self.end = BodyEnd::BrokeOff;
        self.blame = match error {
            StreamError::Upstream(_)
            | StreamError::UpstreamSilent
            | StreamError::DeadlinePassed(BodySide::Upstream) => Blame::Upstream,
            StreamError::ClientSlow
            | StreamError::DeadlinePassed(BodySide::Client)
            | StreamError::NoRoom => Blame::Client,
        };
        self.cause = Some(Cow::Owned(error.to_string()));
    }

    fn count(&self, duration: Duration, bytes_in: u64) {
        let metrics = &self.worker.app.metrics;
        let status = self.status.map(|status| status.as_u16());
        let route = self
            .route
            .and_then(|index| self.worker.live.routes.at(index));
        let counts = route.map_or(&self.worker.no_route, |route| &route.counts);
        counts.add(metrics, status, duration);
        metrics.responses.add(self.blame);
        if bytes_in > 0 {
            metrics.request_body_bytes.inc_by(bytes_in);
        }
        metrics.response_body_bytes.inc_by(self.bytes_out);
        if self.end == BodyEnd::Open {
            metrics.client_disconnects.inc();
        }
        metrics.requests_in_flight.dec();
    }

    /// The upstream that the request goes to; None: it goes to none, or there is only one.
    fn upstream_name(&self, route: Option<&RouteEntry>) -> Option<&str> {
        let upstreams = &self.worker.live.upstreams;
        let route = route.filter(|route| upstreams.len() > 1 && route.is_forwarded())?;
        Some(&upstreams[route.upstream].name)
    }

    fn log(&self, lines: &WorkerLines, duration: Duration, bytes_in: u64) {
        let route = self
            .route
            .and_then(|index| self.worker.live.routes.at(index));
        lines.add(|text, stamp| {
            let mut line = AccessLine::begin(text, lines.format(), stamp);
            line.word(key!("id"), self.id());
            line.word(key!("trace"), self.trace.id());
            line.address(key!("peer"), self.origin);
            line.text(
                key!("client"),
                self.client.as_ref().map_or("", Client::name),
            );
            let uncommon = self.uncommon.as_deref();
            if let Some(user) = uncommon.and_then(|one| one.attempted_user.as_ref()) {
                line.text(key!("attempted_user"), user.text());
            }
            line.text(key!("route"), route.map_or("", |route| &route.name));
            if let Some(upstream) = self.upstream_name(route) {
                line.word(key!("upstream"), upstream);
            }
            if let Some(endpoint) = uncommon.and_then(|one| one.endpoint.as_ref()) {
                line.text(key!("endpoint"), endpoint);
            }
            line.text(
                key!("method"),
                self.method.as_ref().map_or("", Method::as_str),
            );
            line.text(
                key!("path"),
                self.target.as_ref().map_or("", PathAndQuery::path),
            );
            if let Some(status) = self.status {
                line.number(key!("status"), status.as_u16().into());
            }
            if let Some(status) = self.upstream_status {
                line.number(key!("upstream_status"), status.into());
            }
            line.word(key!("blame"), self.blame.text());
            if let Some(reason) = self.reason {
                line.word(key!("reason"), reason.text());
            }
            if let Some(cause) = &self.cause {
                line.text(key!("cause"), cause);
            }
            line.number(key!("bytes_in"), bytes_in);
            line.number(key!("bytes_out"), self.bytes_out);
            let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
            line.thousandths(key!("duration_ms"), micros);
            line.flag(key!("retried"), self.retried);
            line.word(key!("outcome"), self.end.text());
            line.end();
        });
    }
}

impl BodyEnd {
    fn text(self) -> &'static str {
        match self {
            Self::Open => "client_disconnected",
            Self::Complete => "complete",
            Self::BrokeOff => "aborted",
        }
    }
}

impl Drop for AccessLogEntry {
    fn drop(&mut self) {
        let duration = self.opened.elapsed();
        let bytes_in = self.request_body.as_ref().map_or(0, BodyHandle::total);
        self.count(duration, bytes_in);
        let is_wanted = self.worker.live.config.log.access
            && tracing::enabled!(target: "tollgate::access", tracing::Level::INFO);
        if let Some(lines) = self.worker.lines.as_ref().filter(|_| is_wanted) {
            self.log(lines, duration, bytes_in);
        }
    }
}

impl fmt::Debug for AccessLogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLogEntry")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
