//! The access record: opened first, closed last, on drop at the latest. One line and
//! a few counts per request; no header, no query and no body ever gets into it.

use std::fmt;
use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::time::Instant;
use tracing::info;

use super::limit::InFlight;
use super::peer::Peer;
use super::reject::Rejection;
use super::request_body::BodyHandle;
use super::streaming::StreamError;
use super::trace::Trace;
use crate::config::Route;
use crate::identity::Client;
use crate::metrics::{Blame, Gauged, Metrics, Reason};

/// What is known of one request so far.
pub(super) struct Record {
    metrics: Arc<Metrics>,
    _in_flight: Gauged,
    log: bool,
    id: String,
    trace: Trace,
    opened: Instant,
    method: Method,
    path: String,
    peer: std::net::IpAddr,
    route: Option<Arc<str>>,
    client: String,
    /// None: the client left before there was an answer.
    status: Option<StatusCode>,
    upstream_status: Option<u16>,
    blame: Blame,
    reason: Option<Reason>,
    cause: Option<String>,
    body: Option<BodyHandle>,
    bytes_out: u64,
    repeated: bool,
    end: End,
    held: Option<InFlight>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client left, or is still there.
    Open,
    Complete,
    BrokeOff,
}

impl Record {
    pub(super) fn open(
        metrics: &Arc<Metrics>,
        (method, path): (&Method, &str),
        peer: &Peer,
        trace: Trace,
        log: bool,
    ) -> Box<Self> {
        Box::new(Self {
            _in_flight: Gauged::enter(&metrics.in_flight),
            metrics: Arc::clone(metrics),
            log,
            id: super::trace::request_id(),
            trace,
            opened: Instant::now(),
            method: method.clone(),
            path: path.to_owned(),
            peer: peer.ip(),
            route: None,
            client: String::new(),
            status: None,
            upstream_status: None,
            blame: Blame::None,
            reason: None,
            cause: None,
            body: None,
            bytes_out: 0,
            repeated: false,
            end: End::Open,
            held: None,
        })
    }

    /// 32 hex digits, as the Webapp's own `X-Request-ID`.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn trace(&self) -> &Trace {
        &self.trace
    }

    pub(super) fn peer(&mut self, ip: std::net::IpAddr) {
        self.peer = ip;
    }

    pub(super) fn route(&mut self, route: &Route) {
        self.route = Some(Arc::clone(&route.name));
    }

    pub(super) fn client(&mut self, client: &Client) {
        client.name().clone_into(&mut self.client);
    }

    pub(super) fn body(&mut self, body: BodyHandle) {
        self.body = Some(body);
    }

    /// The request's place among those in flight is free when the record closes.
    pub(super) fn hold(&mut self, place: InFlight) {
        self.held = Some(place);
    }

    pub(super) fn repeated(&mut self) {
        self.repeated = true;
    }

    pub(super) fn answered_upstream(&mut self, status: StatusCode) {
        self.upstream_status = Some(status.as_u16());
        if status.is_server_error() {
            self.blame = Blame::Upstream;
        } else if status.is_client_error() {
            self.blame = Blame::Client;
        }
    }

    pub(super) fn rejected(&mut self, rejection: &Rejection) {
        let face = rejection.face();
        self.blame = face.blame;
        self.reason = Some(face.reason);
        self.cause = rejection.cause();
        self.metrics.rejections.add(face.reason);
    }

    pub(super) fn status(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
    }

    pub(super) fn completed(&mut self) {
        if self.end == End::Open {
            self.end = End::Complete;
        }
    }

    pub(super) fn broke_off(&mut self, error: &StreamError) {
        self.end = End::BrokeOff;
        self.blame = match error {
            StreamError::Upstream(_) => Blame::Upstream,
            StreamError::TooSlow => Blame::Client,
        };
        self.cause = Some(error.to_string());
    }

    fn count(&self, took: std::time::Duration, bytes_in: u64) {
        let metrics = &self.metrics;
        let route = self.route.as_deref().unwrap_or("none");
        let class = match self.status.map(|status| status.as_u16() / 100) {
            None => "none",
            Some(1) => "1xx",
            Some(2) => "2xx",
            Some(3) => "3xx",
            Some(4) => "4xx",
            Some(_) => "5xx",
        };
        metrics.requests.with_label_values(&[route, class]).inc();
        let seconds = metrics.request_seconds.with_label_values(&[route]);
        seconds.observe(took.as_secs_f64());
        metrics.answers.add(self.blame);
        metrics.bytes_in.inc_by(bytes_in);
        metrics.bytes_out.inc_by(self.bytes_out);
        if self.end == End::Open {
            metrics.clients_gone.inc();
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.opened.elapsed();
        let bytes_in = self.body.as_ref().map_or(0, BodyHandle::total);
        self.count(took, bytes_in);
        if !self.log {
            return;
        }
        let end = match self.end {
            End::Open => "client_left",
            End::Complete => "complete",
            End::BrokeOff => "broke_off",
        };
        info!(
            target: "tollgate::access",
            id = self.id,
            trace = %self.trace.id(),
            peer = %self.peer,
            client = self.client,
            route = self.route.as_deref().unwrap_or(""),
            method = %self.method,
            path = self.path,
            status = self.status.map(|status| status.as_u16()),
            upstream_status = self.upstream_status,
            blame = crate::metrics::Label::text(self.blame),
            reason = self.reason.map(crate::metrics::Label::text),
            cause = self.cause,
            bytes_in,
            bytes_out = self.bytes_out,
            duration_ms = took.as_secs_f64() * 1000.0,
            repeated = self.repeated,
            end,
        );
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
