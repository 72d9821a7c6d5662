//! Nodes with plausible replies and no state.

use http::StatusCode;
use serde_json::json;

use super::super::hex;
use super::super::node_call::NodeCall;
use super::super::node_reply::{Origin, Reply};
use super::super::node_routes::Node;
use super::super::reply_body::Body;
use super::{either, object, read, text};
use crate::profiles::whatsapp::ErrorCode;

const ORIGIN: Origin = Origin::Coreapp;

/// The admin web page, which balancers probe for a 200.
pub(in super::super) fn page() -> Reply {
    let page = "<!DOCTYPE html><html><head><title>WhatsApp Business API</title></head>\
                <body><p>This is an emulated Webapp. It sends nothing.</p></body></html>\n";
    let body = Body::whole(page);
    Reply::typed(
        Origin::Webapp,
        StatusCode::OK,
        "text/html; charset=UTF-8",
        body,
    )
}

pub(in super::super) async fn various(call: NodeCall) -> Reply {
    match call.route.node {
        Node::Account => either(account(call).await),
        Node::Groups => either(groups(call).await),
        Node::Stickerpacks => either(stickerpacks(call).await),
        _ => either(drained(call, StatusCode::OK).await),
    }
}

/// Reads the body and ignores it.
async fn drained(call: NodeCall, status: StatusCode) -> Result<Reply, Reply> {
    read(call.body, ORIGIN).await?;
    Ok(Reply::json(ORIGIN, status, json!({})))
}

async fn account(call: NodeCall) -> Result<Reply, Reply> {
    match (call.verb(), call.path.get(2).map(String::as_str)) {
        ("POST", None) => {
            let members = object(call.body, ORIGIN).await?;
            text(&members, "cc", ORIGIN)?;
            text(&members, "phone_number", ORIGIN)?;
            // The emulated number is registered already.
            Ok(Reply::json(ORIGIN, StatusCode::CREATED, json!({})))
        }
        ("POST", Some("verify")) => {
            let members = object(call.body, ORIGIN).await?;
            text(&members, "code", ORIGIN)?;
            Ok(Reply::json(ORIGIN, StatusCode::CREATED, json!({})))
        }
        ("POST", Some(_)) => {
            let members = object(call.body, ORIGIN).await?;
            let shards = members.get("shards").and_then(serde_json::Value::as_u64);
            if !shards.is_some_and(|shards| shards <= 32 && shards.is_power_of_two()) {
                let details = "Parameter 'shards' must be 1, 2, 4, 8, 16 or 32";
                return Err(Reply::bad(ORIGIN, ErrorCode::ParameterInvalid, details));
            }
            Ok(Reply::json(ORIGIN, StatusCode::CREATED, json!({})))
        }
        ("GET", _) => Ok(Reply::ok(ORIGIN, json!({ "account": { "shards": 1 } }))),
        _ => drained(call, StatusCode::OK).await,
    }
}

async fn groups(call: NodeCall) -> Result<Reply, Reply> {
    match (call.verb(), call.path.len()) {
        ("GET", 2) => Ok(Reply::ok(ORIGIN, json!({ "groups": [] }))),
        ("POST", 2) => {
            let members = object(call.body, ORIGIN).await?;
            text(&members, "subject", ORIGIN)?;
            let id = format!("15550100100-{}", hex(&rand::random::<[u8; 5]>()));
            let payload = json!({ "groups": [{ "id": id, "creation_time": 1_600_000_000 }] });
            Ok(Reply::json(ORIGIN, StatusCode::CREATED, payload))
        }
        ("GET", _) => Err(Reply::not_found(ORIGIN, "Group is unknown")),
        _ => drained(call, StatusCode::OK).await,
    }
}

async fn stickerpacks(call: NodeCall) -> Result<Reply, Reply> {
    match (call.verb(), call.path.len()) {
        ("GET", 2) => Ok(Reply::ok(ORIGIN, json!({ "stickerpacks": [] }))),
        ("POST", 2) => {
            object(call.body, ORIGIN).await?;
            let id = hex(&rand::random::<[u8; 8]>());
            let payload = json!({ "stickerpacks": [{ "id": id }] });
            Ok(Reply::json(ORIGIN, StatusCode::CREATED, payload))
        }
        ("POST", _) => drained(call, StatusCode::CREATED).await,
        _ => Err(Reply::not_found(ORIGIN, "Stickerpack not found")),
    }
}
