//! What the stages know about one request once it has a route. Built once per request; it only
//! borrows.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;
use tokio::time::Instant;

use super::LiveRules;
use super::access_log::entry::AccessLogEntry;
use super::body::request_body::RequestBody;
use super::peer::Peer;
use super::route_table::RouteEntry;
use super::worker_context::WorkerContext;
use crate::config::UpstreamConfig;
use crate::upstream::UpstreamConnections;

/// One routed request.
pub(super) struct RequestContext<'a> {
    pub(super) worker: &'a Arc<WorkerContext>,
    /// The request line and the fields, as the client sent them.
    pub(super) head: &'a Parts,
    /// The connection that the request came on.
    pub(super) peer: &'a Peer,
    /// The client's address, as far as trusted proxies tell; limits count by it.
    pub(super) origin: IpAddr,
    /// Requested host in lower case, without a port.
    pub(super) host: Cow<'a, str>,
    /// The checked path, as it is forwarded.
    pub(super) path: &'a str,
    pub(super) route: &'a RouteEntry,
    /// When the whole exchange must have ended.
    pub(super) deadline: Instant,
    /// It is a call of gRPC, which may be silent for as long as client and upstream like.
    pub(super) is_call: bool,
    pub(super) entry: &'a mut AccessLogEntry,
}

impl<'a> RequestContext<'a> {
    /// The rules that apply to this request from start to end, even if a reload happens meanwhile.
    pub(super) fn live(&self) -> &'a LiveRules {
        &self.worker.live
    }

    /// The settings of the upstream that this request goes to.
    pub(super) fn upstream_settings(&self) -> &'a UpstreamConfig {
        &self.worker.live.config.upstreams[self.route.upstream]
    }

    /// The connections to the upstream that this request goes to.
    pub(super) fn connections(&self) -> &'a Arc<UpstreamConnections<RequestBody>> {
        &self.worker.connections[self.route.upstream]
    }
}
