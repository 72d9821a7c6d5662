//! The access record: opened first, closed last, on drop at the latest. One line and
//! a few counts per request; no header, no query and no body ever gets into it.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, StatusCode};
use tokio::time::Instant;

use super::line::{AccessLine, key};
use crate::identity::Client;
use crate::logging::WorkerLines;
use crate::metrics::{Blame, LabelSet as _, Reason};
use crate::pipeline::body::rate_guard::BodyDebtor;
use crate::pipeline::body::request_body::BodyHandle;
use crate::pipeline::body::streaming::StreamError;
use crate::pipeline::headers::trace::{HexDigits, TraceParent};
use crate::pipeline::limit::InFlight;
use crate::pipeline::peer::{Peer, sharer};
use crate::pipeline::reject::Rejection;
use crate::pipeline::stages::route::RouteEntry;
use crate::pipeline::users_node::attempted_user::TriedUser;
use crate::pipeline::worker_context::WorkerContext;

/// What is known of one request so far.
pub(in crate::pipeline) struct AccessLogEntry {
    here: Arc<WorkerContext>,
    id: HexDigits<32>,
    trace: TraceParent,
    opened: Instant,
    /// None: it was not read.
    method: Option<Method>,
    /// Its query is never shown.
    target: Option<PathAndQuery>,
    peer: IpAddr,
    /// Index in the rules' table.
    route: Option<usize>,
    client: Option<Client>,
    /// Of a login.
    tried_user: Option<Box<TriedUser>>,
    /// None: the client left before there was an answer.
    status: Option<StatusCode>,
    upstream_status: Option<u16>,
    blame: Blame,
    reason: Option<Reason>,
    cause: Option<Cow<'static, str>>,
    body: Option<BodyHandle>,
    bytes_out: u64,
    repeated: bool,
    end: BodyEnd,
    held: Option<InFlight>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyEnd {
    /// The client left, or is still there.
    Open,
    Complete,
    BrokeOff,
}

impl AccessLogEntry {
    pub(in crate::pipeline) fn open(
        here: &Arc<WorkerContext>,
        head: &Parts,
        peer: &Peer,
    ) -> Box<Self> {
        let mut record = Self::unread(here, TraceParent::of(&head.headers), peer);
        record.method = Some(head.method.clone());
        record.target = head.uri.path_and_query().cloned();
        record
    }

    /// Of a request whose head could not be read.
    pub(in crate::pipeline) fn open_unread(here: &Arc<WorkerContext>, peer: &Peer) -> Box<Self> {
        Self::unread(here, TraceParent::of(&HeaderMap::new()), peer)
    }

    fn unread(here: &Arc<WorkerContext>, trace: TraceParent, peer: &Peer) -> Box<Self> {
        here.metrics.requests_in_flight.inc();
        Box::new(Self {
            here: Arc::clone(here),
            id: HexDigits::random(),
            trace,
            opened: Instant::now(),
            method: None,
            target: None,
            peer: peer.ip(),
            route: None,
            client: None,
            tried_user: None,
            status: None,
            upstream_status: None,
            blame: Blame::None,
            reason: None,
            cause: None,
            body: None,
            bytes_out: 0,
            repeated: false,
            end: BodyEnd::Open,
            held: None,
        })
    }

    /// 32 hex digits, as the Webapp's own `X-Request-ID`.
    pub(in crate::pipeline) fn id(&self) -> &str {
        self.id.as_str()
    }

    pub(in crate::pipeline) fn opened(&self) -> Instant {
        self.opened
    }

    pub(in crate::pipeline) fn trace(&self) -> &TraceParent {
        &self.trace
    }

    pub(in crate::pipeline) fn peer(&mut self, ip: IpAddr) {
        self.peer = ip;
    }

    pub(in crate::pipeline) fn route(&mut self, route: &RouteEntry) {
        self.route = Some(route.index);
    }

    pub(in crate::pipeline) fn client(&mut self, client: &Client) {
        self.client = Some(client.clone());
    }

    pub(in crate::pipeline) fn tried_user(&mut self, user: TriedUser) {
        self.tried_user = Some(Box::new(user));
    }

    pub(in crate::pipeline) fn body(&mut self, body: BodyHandle) {
        self.body = Some(body);
    }

    /// The request's place among those in flight is free when the record closes.
    pub(in crate::pipeline) fn hold(&mut self, place: InFlight) {
        self.held = Some(place);
    }

    /// Counts that place as one of this client's; a client may have too many.
    pub(in crate::pipeline) fn claim_place(&mut self, client: &Client) -> Result<(), Rejection> {
        let peer = self.peer;
        match &mut self.held {
            Some(place) => place
                .claim(sharer(client, peer))
                .map_err(|_| Rejection::ShareTaken),
            None => Ok(()),
        }
    }

    pub(in crate::pipeline) fn repeated(&mut self) {
        self.repeated = true;
    }

    pub(in crate::pipeline) fn answered_upstream(&mut self, status: StatusCode) {
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
        self.here.metrics.rejections.add(mapping.reason);
    }

    pub(in crate::pipeline) fn status(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    pub(in crate::pipeline) fn sent(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
    }

    pub(in crate::pipeline) fn completed(&mut self) {
        if self.end == BodyEnd::Open {
            self.end = BodyEnd::Complete;
        }
    }

    pub(in crate::pipeline) fn broke_off(&mut self, error: &StreamError) {
        self.end = BodyEnd::BrokeOff;
        self.blame = match error {
            StreamError::Upstream(_)
            | StreamError::UpstreamSilent
            | StreamError::TimeUp(BodyDebtor::Upstream) => Blame::Upstream,
            StreamError::ClientSlow
            | StreamError::TimeUp(BodyDebtor::Client)
            | StreamError::NoRoom => Blame::Client,
        };
        self.cause = Some(Cow::Owned(error.to_string()));
    }

    fn count(&self, took: Duration, bytes_in: u64) {
        let metrics = &self.here.metrics;
        let status = self.status.map(|status| status.as_u16());
        let route = self.route.and_then(|index| self.here.live.routes.at(index));
        let counts = route.map_or(&self.here.no_route, |route| &route.counts);
        counts.add(metrics, status, took);
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

    fn log(&self, lines: &WorkerLines, took: Duration, bytes_in: u64) {
        let route = self.route.and_then(|index| self.here.live.routes.at(index));
        lines.add(|text, stamp| {
            let mut line = AccessLine::begin(text, lines.format(), stamp);
            line.word(key!("id"), self.id());
            line.word(key!("trace"), self.trace.id());
            line.address(key!("peer"), self.peer);
            line.text(
                key!("client"),
                self.client.as_ref().map_or("", Client::name),
            );
            if let Some(user) = &self.tried_user {
                line.text(key!("attempted_user"), user.text());
            }
            line.text(key!("route"), route.map_or("", |route| &route.name));
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
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            line.thousandths(key!("duration_ms"), micros);
            line.flag(key!("retried"), self.repeated);
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
        let took = self.opened.elapsed();
        let bytes_in = self.body.as_ref().map_or(0, BodyHandle::total);
        self.count(took, bytes_in);
        let is_wanted = self.here.live.config.log.access
            && tracing::enabled!(target: "tollgate::access", tracing::Level::INFO);
        if let Some(lines) = self.here.lines.as_ref().filter(|_| is_wanted) {
            self.log(lines, took, bytes_in);
        }
    }
}

impl fmt::Debug for AccessLogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
