//! The nodes of the emulated Webapp, one file per family. Each turns an admitted call into a reply;
//! limits, credentials and faults are handled before and after. Start at `messages.rs`.

mod media;
mod messages;
mod monitoring;
mod settings_node;
mod users_node;
mod various;

pub(super) use media::Media;
pub(super) use messages::{Contacts, messages};
pub(super) use monitoring::monitoring;
pub(super) use settings_node::SettingsNode;
pub(super) use users_node::{login, users};
pub(super) use various::{page, various};

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::node_reply::{Origin, Reply};
use crate::profiles::whatsapp::ErrorCode;

/// Maximum size in bytes of a request body other than media.
const MAX: usize = 1024 * 1024;
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads the whole body, if it is small and arrives in time.
async fn read(body: Incoming, origin: Origin) -> Result<Bytes, Reply> {
    match timeout(READ_TIMEOUT, Limited::new(body, MAX).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(_)) => Err(Reply::error(
            origin,
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::InvalidRequest,
            "Request body is too large, or broke off",
        )),
        Err(_) => Err(Reply::error(
            origin,
            StatusCode::REQUEST_TIMEOUT,
            ErrorCode::InvalidRequest,
            "Request body did not arrive in time",
        )),
    }
}

/// The body as a JSON object.
async fn object(body: Incoming, origin: Origin) -> Result<Map<String, Value>, Reply> {
    match serde_json::from_slice(&read(body, origin).await?) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(Reply::bad(
            origin,
            ErrorCode::InvalidRequest,
            "Request must be a JSON object",
        )),
        Err(_) => Err(not_json(origin)),
    }
}

fn not_json(origin: Origin) -> Reply {
    Reply::bad(
        origin,
        ErrorCode::InvalidRequest,
        "Unable to decode json from the request: Syntax error",
    )
}

fn missing(origin: Origin, name: &str) -> Reply {
    let details = format!("Parameter '{name}' is required");
    Reply::bad(origin, ErrorCode::ParameterMissing, &details)
}

fn text<'a>(
    members: &'a Map<String, Value>,
    name: &str,
    origin: Origin,
) -> Result<&'a str, Box<Reply>> {
    let value = members.get(name).and_then(Value::as_str);
    value.ok_or_else(|| missing(origin, name).into())
}

/// The reply of either case: nodes use `?`, callers get one reply.
fn either(result: Result<Reply, Reply>) -> Reply {
    result.unwrap_or_else(|reply| reply)
}
