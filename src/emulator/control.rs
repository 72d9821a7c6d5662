//! The control port: all switches and counters as JSON over plain HTTP. It shows no secrets, but has
//! no authentication, so it must be on loopback.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::webapp_state::WebappState;
use crate::secret::Secret;

const MAX: usize = 64 * 1024;
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a call is refused.
#[derive(Debug)]
enum ControlError {
    Bad(String),
    NotFound(&'static str),
    NoSuchCall,
}

pub(super) async fn response(
    webapp: &WebappState,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let (status, value) = match execute(webapp, request).await {
        Ok(value) => (StatusCode::OK, value),
        Err(ControlError::Bad(reason)) => (
            StatusCode::BAD_REQUEST,
            json!({ "error": reason, "calls": calls() }),
        ),
        Err(ControlError::NotFound(reason)) => (StatusCode::NOT_FOUND, json!({ "error": reason })),
        Err(ControlError::NoSuchCall) => (
            StatusCode::NOT_FOUND,
            json!({ "error": "no such call", "calls": calls() }),
        ),
    };
    let mut text = serde_json::to_string_pretty(&value).unwrap_or_default();
    text.push('\n');
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

async fn execute(webapp: &WebappState, request: Request<Incoming>) -> Result<Value, ControlError> {
    // A web page in the operator's browser can send to loopback too, but always with Origin.
    if request.headers().contains_key(header::ORIGIN) {
        return Err(ControlError::Bad("not for browsers".to_owned()));
    }
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_end_matches('/');
    match (&parts.method, path) {
        (&Method::GET, "") => Ok(state(webapp)),
        (&Method::POST, "/faults") => {
            let changes = object(body).await?;
            let now = webapp.faults.set(changes).map_err(|error| {
                let reason = std::error::Error::source(&error);
                ControlError::Bad(reason.map_or_else(|| error.to_string(), ToString::to_string))
            })?;
            Ok(json!({ "switches": now }))
        }
        (&Method::DELETE, "/faults") => Ok(json!({ "switches": webapp.faults.reset() })),
        (&Method::POST, "/tokens/expire") => Ok(json!({ "expired": webapp.tokens.expire_all() })),
        (&Method::POST, "/tokens/forget") => Ok(json!({ "forgotten": webapp.tokens.forget_all() })),
        (&Method::POST, "/tokens/revoke") => revoke(webapp, &object(body).await?),
        (&Method::POST, "/password") => password(webapp, &object(body).await?),
        (&Method::DELETE, "/counts") => {
            webapp.counts.reset();
            Ok(json!({ "counts": webapp.counts.show() }))
        }
        _ => Err(ControlError::NoSuchCall),
    }
}

fn revoke(webapp: &WebappState, members: &Map<String, Value>) -> Result<Value, ControlError> {
    match (text(members, "token"), text(members, "user")) {
        (Some(token), None) if webapp.tokens.revoke(token) => Ok(json!({ "revoked": 1 })),
        (Some(_), None) => Err(ControlError::NotFound("no such token")),
        (None, Some(user)) => Ok(json!({ "revoked": webapp.tokens.revoke_user(user) })),
        _ => Err(ControlError::Bad(
            "expected {\"token\": \"...\"} or {\"user\": \"...\"}".to_owned(),
        )),
    }
}

fn password(webapp: &WebappState, members: &Map<String, Value>) -> Result<Value, ControlError> {
    let Some(password) = text(members, "password") else {
        let expected =
            "expected {\"password\": \"...\"}, with \"username\" for others than the first";
        return Err(ControlError::Bad(expected.to_owned()));
    };
    let name = text(members, "username").unwrap_or(webapp.directory.first());
    // No rule is applied: a test may want a password the rule forbids.
    if webapp
        .directory
        .change_password(name, Secret::new(password))
    {
        Ok(json!({ "changed": name }))
    } else {
        Err(ControlError::NotFound("no such user"))
    }
}

fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    members.get(name).and_then(Value::as_str)
}

async fn object(body: Incoming) -> Result<Map<String, Value>, ControlError> {
    let whole = timeout(READ_TIMEOUT, Limited::new(body, MAX).collect()).await;
    let Ok(Ok(whole)) = whole else {
        let reason = "expected a JSON object of at most 64 KiB, within ten seconds";
        return Err(ControlError::Bad(reason.to_owned()));
    };
    serde_json::from_slice(&whole.to_bytes())
        .map_err(|error| ControlError::Bad(format!("expected a JSON object: {error}")))
}

fn state(webapp: &WebappState) -> Value {
    json!({
        "counts": webapp.counts.show(),
        "tokens": webapp.tokens.count(),
        "users": webapp.directory.count(),
        "switches": webapp.faults.now(),
        "calls": calls(),
    })
}

fn calls() -> Value {
    json!({
        "GET /": "this state",
        "POST /faults": "set some of the switches, e.g. {\"hang\": true, \"respond_503\": 3}; \
            fail_next_logins takes {\"times\": 2, \"how\": {\"status\": 503}}; \
            login_response and how: normal, ten_megabytes, html, cut_in_middle, never, empty_body, \
            password_change_required or {\"status\": 503}; \
            expiry_form: normal, null, past, garbage, missing, far_future; \
            token_form: normal, missing, empty, line_break; logout_scope: token, user; \
            health: single, high_availability; gateway_status: connected, connecting, \
            disconnected, uninitialized, unregistered",
        "DELETE /faults": "all switches as at the start",
        "POST /tokens/expire": "all tokens have expired",
        "POST /tokens/forget": "all tokens are unknown",
        "POST /tokens/revoke": "{\"token\": \"...\"} or {\"user\": \"...\"}",
        "POST /password": "{\"password\": \"...\"}, with \"username\" for others than the first",
        "DELETE /counts": "all counters to zero",
    })
}
