//! OPTIONS requests that the gateway answers itself: those about the server as a whole, and those
//! that must not be forwarded any further.

use http::header::ALLOW;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};

use crate::pipeline::body::client_response_body::ResponseBody;
use crate::pipeline::headers;
use crate::pipeline::reject::Rejection;
use crate::pipeline::request_context::RequestContext;
use crate::pipeline::route_table::ANY_METHOD;

/// Answers `OPTIONS *` (RFC 9110 9.3.7), which asks about this server.
pub(in crate::pipeline) fn answer_for_server(head: &Parts) -> Option<Response<ResponseBody>> {
    let is_for_server = head.method == Method::OPTIONS && head.uri.path() == "*";
    is_for_server.then(|| allow(ANY_METHOD))
}

/// Answers `Max-Forwards: 0` (RFC 9110 7.6.2) as the final recipient.
pub(in crate::pipeline) fn answer_as_last_hop(
    request: &RequestContext<'_>,
) -> Result<Option<Response<ResponseBody>>, Rejection> {
    if request.head.method != Method::OPTIONS {
        return Ok(None);
    }
    let max_forwards = headers::max_forwards(&request.head.headers)?;
    Ok((max_forwards == Some(0)).then(|| {
        let routes = &request.live().routes;
        allow(&routes.allowed(&request.host, request.path))
    }))
}

fn allow(methods: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Ok(value) = HeaderValue::from_str(methods) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}
