//! OPTIONS requests that end at the gate: those about the server as a whole, and those that
//! may go no further.

use http::header::ALLOW;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};

use crate::pipeline::body::response_body::ResponseBody;
use crate::pipeline::headers;
use crate::pipeline::reject::Rejection;

/// `OPTIONS *` (RFC 9110 9.3.7): which server that is, the gate alone can say.
pub(in crate::pipeline) fn of_the_server(head: &Parts) -> Option<Response<ResponseBody>> {
    let is_asked = head.method == Method::OPTIONS && head.uri.path() == "*";
    is_asked.then(|| answer(super::route::ANY_METHOD))
}

/// `Max-Forwards: 0` (RFC 9110 7.6.2): the gate answers as the last recipient. `allowed`:
/// the methods that the target takes.
pub(in crate::pipeline) fn of_the_last_hop(
    head: &Parts,
    allowed: impl FnOnce() -> String,
) -> Result<Option<Response<ResponseBody>>, Rejection> {
    if head.method != Method::OPTIONS {
        return Ok(None);
    }
    let left = headers::hops_left(&head.headers)?;
    Ok((left == Some(0)).then(|| answer(&allowed())))
}

fn answer(allowed: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Ok(value) = HeaderValue::from_str(allowed) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}
