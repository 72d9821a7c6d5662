//! Applies the limits of the route to the client's body, before any of it is read.

use std::time::Duration;

use http_body::Body as _;

use crate::config::{Target, UsersCall};
use crate::pipeline::body::client_body::ClientBody;
use crate::pipeline::body::request_body::{BodyRules, MAX_READ_BODY, RequestBody};
use crate::pipeline::grpc::UNLIMITED;
use crate::pipeline::reject::Rejection;
use crate::pipeline::request_context::RequestContext;

/// How long a request waits for the first bytes of a body that is not small.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_millis(100);
/// The same for a call, whose next message may depend on the response.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_millis(5);

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
        idle_timeout: match request.is_call {
            true => UNLIMITED,
            false => upstream.body_idle_timeout,
        },
        min_rate: match request.is_call {
            true => 0,
            false => config.http.min_body_rate,
        },
        first_bytes_timeout: match request.is_call {
            true => FIRST_MESSAGE_TIMEOUT,
            false => FIRST_BYTES_TIMEOUT,
        },
        deadline: request.deadline,
    };
    let body = RequestBody::new(body, rules);
    if body.size_hint().lower() > request.route.max_body {
        return Err(Rejection::TooLarge);
    }
    request.entry.set_request_body(body.handle());
    Ok(body)
}
