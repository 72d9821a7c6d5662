//! Stage 3: takes one permit of each rate limit that applies to a request.

use crate::config::{Target, UsersCall};
use crate::identity::Client;
use crate::pipeline::limit::{RateAdmission, RateSubject};
use crate::pipeline::reject::Rejection;
use crate::pipeline::request_context::RequestContext;

/// Waits up to the route's `max_wait`. Logins are limited later, by the users node, which knows the
/// user name.
pub(in crate::pipeline) async fn admit(
    request: &RequestContext<'_>,
    client: &Client,
) -> Result<RateAdmission, Rejection> {
    let route = request.route;
    if route.target == Target::UsersNode(UsersCall::Login) {
        return Ok(RateAdmission::default());
    }
    let subject = RateSubject {
        client,
        peer: request.origin,
        class: &route.class,
        class_bucket: &route.class_bucket,
        upstream: route.destination(),
    };
    let admission = request.live().limiter.admit(subject, route.max_wait).await;
    admission.map_err(|limit| Rejection::TooMany(Box::new(limit)))
}
