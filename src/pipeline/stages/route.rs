//! Stage 1: the request target and the fields of a request lead to its route and its origin.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::request::Parts;
use tracing::warn;

use super::request_target;
use crate::config::Target;
use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::grpc;
use crate::pipeline::headers;
use crate::pipeline::peer::Peer;
use crate::pipeline::reject::Rejection;
use crate::pipeline::request_context::RequestContext;
use crate::pipeline::worker_context::WorkerContext;

/// Finds the route. Fails when the request target is ambiguous, and when no route takes the request.
pub(in crate::pipeline) fn route<'a>(
    worker: &'a Arc<WorkerContext>,
    head: &'a Parts,
    peer: &'a Peer,
    entry: &'a mut AccessLogEntry,
) -> Result<RequestContext<'a>, Rejection> {
    let path = request_target::checked(&head.uri)?;
    let origin = origin(worker, head, peer);
    entry.set_origin(origin);
    let host = headers::host(&head.uri, &head.headers);
    let route = worker.live.routes.find(&host, path, &head.method)?;
    entry.set_route(route.index);
    if route.target == Target::Closed {
        return Err(Rejection::NoRoute);
    }
    request_target::check_query(&head.uri, &route.allow_fields)?;
    let upstream = &worker.live.config.upstreams[route.upstream];
    let is_call = grpc::is_forwarded_call(head, upstream);
    let timeout = match is_call {
        true => grpc::call_timeout(&head.headers),
        false => route.timeout,
    };
    Ok(RequestContext {
        worker,
        head,
        peer,
        origin,
        host,
        path,
        route,
        deadline: entry.opened() + timeout,
        is_call,
        entry,
    })
}

/// The client's address. Requests whose trusted proxy names no readable address are counted, and the
/// first one is logged.
fn origin(worker: &WorkerContext, head: &Parts, peer: &Peer) -> IpAddr {
    let trusted = &worker.live.config.http.trusted_proxies;
    let origin = headers::origin(&head.headers, peer, trusted);
    let Some(text) = origin.unreadable else {
        return origin.ip;
    };
    worker.app.metrics.invalid_forwarded_addresses.inc();
    let is_logged = &worker.app.unreadable_origin_logged;
    if !is_logged.swap(true, Ordering::Relaxed) {
        let text: String = text.chars().take(64).collect();
        warn!(
            proxy = %peer.ip(),
            ?text,
            "a trusted proxy sent X-Forwarded-For or Forwarded without a readable client address; \
             such requests are counted as the proxy's own; see tollgate_invalid_forwarded_addresses_total"
        );
    }
    origin.ip
}
