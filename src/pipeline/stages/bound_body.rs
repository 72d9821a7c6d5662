//! Applies the limits of the route to the client's body, before any of it is read.

use http_body::Body as _;

use crate::config::{Target, UsersCall};
use crate::pipeline::body::client_body::ClientBody;
use crate::pipeline::body::request_body::{BodyRules, MAX_READ_BODY, RequestBody};
use crate::pipeline::reject::Rejection;
use crate::pipeline::request_context::RequestContext;

/// Fails when the declared length of the body exceeds the limit of its route.
pub(in crate::pipeline) fn bound_body(
    request: &mut RequestContext<'_>,
    body: ClientBody,
) -> Result<RequestBody, Rejection> {
    let (config, upstream) = (&request.live().config, request.upstream_settings());
    // The bodies of these calls are read before they are sent, so they are kept whatever the limit.
    let min_replay = match request.route.target {
        Target::UsersNode(UsersCall::Create | UsersCall::Login) => MAX_READ_BODY,
        _ => 0,
    };
    let rules = BodyRules {
        max_bytes: request.route.max_body,
        replay_limit: upstream.replay_limit.max(min_replay),
        idle_timeout: upstream.body_idle_timeout,
        min_rate: config.http.min_body_rate,
        deadline: request.deadline,
    };
    let body = RequestBody::new(body, rules);
    if body.size_hint().lower() > request.route.max_body {
        return Err(Rejection::TooLarge);
    }
    request.entry.set_request_body(body.handle());
    Ok(body)
}
