//! The nodes of the pretend Webapp, one file per family. Each takes a call that
//! was let in and says what to answer; none knows of limits, credentials or faults.

mod media;
mod messages;
mod monitoring;
mod settings_node;
mod users_node;
mod various;

pub(super) use media::Media;
pub(super) use messages::{Contacts, messages};
pub(super) use monitoring::monitoring;
pub(super) use settings_node::Kept;
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

/// Bytes of a request body that is not media.
const MOST: usize = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

/// The whole body, if it is small and comes in time.
async fn read(body: Incoming, origin: Origin) -> Result<Bytes, Reply> {
    match timeout(PATIENCE, Limited::new(body, MOST).collect()).await {
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

/// A reply either way: `?` in the nodes, one answer outside.
fn either(result: Result<Reply, Reply>) -> Reply {
    result.unwrap_or_else(|reply| reply)
}
