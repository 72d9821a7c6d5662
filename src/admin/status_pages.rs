//! `/healthz`, `/readyz` and `/metrics` of the operator's listener.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;

use super::{AdminParts, AdminState};

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Responds to a request. hyper omits the body if the method is HEAD.
pub(super) fn respond<B>(
    request: &Request<B>,
    state: &AdminState,
    is_draining: bool,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if !matches!(path, "/healthz" | "/readyz" | "/metrics") {
        let text = "not found; there are /healthz, /readyz, /metrics, /keys and /users\n";
        return text_response(StatusCode::NOT_FOUND, text);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = text_response(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        refusal.headers_mut().insert(ALLOW, allowed);
        return refusal;
    }
    match path {
        "/healthz" => text_response(StatusCode::OK, "ok\n"),
        "/readyz" => match state.parts.get() {
            Some(parts) => readiness(parts, is_draining),
            None => starting(),
        },
        _ => {
            if let Some(parts) = state.parts.get() {
                (parts.refresh)();
            }
            with_type(StatusCode::OK, PROMETHEUS, state.metrics.text())
        }
    }
}

/// The response while the gateway starts; the log shows the progress.
pub(super) fn starting() -> Response<Full<Bytes>> {
    let text = "starting: the store is being opened and loaded\n";
    text_response(StatusCode::SERVICE_UNAVAILABLE, text)
}

fn readiness(parts: &AdminParts, is_draining: bool) -> Response<Full<Bytes>> {
    let mut reasons = String::new();
    if is_draining {
        reasons.push_str("draining\n");
    }
    if let Err(reason) = (parts.ready)() {
        // Writing to memory cannot fail.
        let _ = writeln!(reasons, "{}", reason.trim_end());
    }
    let is_ready = reasons.is_empty();
    if let Some(note) = (parts.notes)() {
        let _ = writeln!(reasons, "{note}");
    }
    if is_ready {
        text_response(StatusCode::OK, format!("ready\n{reasons}"))
    } else {
        text_response(StatusCode::SERVICE_UNAVAILABLE, reasons)
    }
}

fn text_response(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    with_type(status, TEXT, text)
}

fn with_type(
    status: StatusCode,
    content_type: &'static str,
    text: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
