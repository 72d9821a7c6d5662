//! Messages and contacts.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::super::hex;
use super::super::node_call::NodeCall;
use super::super::node_reply::{Origin, Reply};
use super::{either, missing, object, text};
use crate::profiles::whatsapp::ErrorCode;

const ORIGIN: Origin = Origin::Coreapp;

/// Characters of a text message (protocol sheet, section 3).
const MAX_TEXT: usize = 4096;

pub(in super::super) async fn messages(call: NodeCall) -> Reply {
    if call.path.len() == 2 {
        either(send(call).await)
    } else {
        either(mark(call).await)
    }
}

async fn send(call: NodeCall) -> Result<Reply, Reply> {
    let members = object(call.body, ORIGIN).await?;
    text(&members, "to", ORIGIN)?;
    if members.get("type").is_none_or(|kind| kind == "text") {
        let words = members.get("text").and_then(|text| text.get("body"));
        let words = words.and_then(Value::as_str);
        let words = words.ok_or_else(|| missing(ORIGIN, "text.body"))?;
        if words.chars().count() > MAX_TEXT {
            let details = "Text is longer than 4096 characters";
            return Err(Reply::bad(ORIGIN, ErrorCode::MessageTooLong, details));
        }
    }
    let payload = json!({ "messages": [{ "id": message_id() }] });
    Ok(Reply::json(Origin::Send, StatusCode::CREATED, payload))
}

/// 27 characters that begin with `gBGG`, which is how these three bytes look.
fn message_id() -> String {
    let mut bytes: [u8; 20] = rand::random();
    bytes[..3].copy_from_slice(&[0x80, 0x11, 0x86]);
    URL_SAFE_NO_PAD.encode(bytes)
}

async fn mark(call: NodeCall) -> Result<Reply, Reply> {
    let members = object(call.body, ORIGIN).await?;
    if text(&members, "status", ORIGIN)? != "read" {
        let details = "Parameter 'status' must be read";
        return Err(Reply::bad(ORIGIN, ErrorCode::ParameterInvalid, details));
    }
    Ok(Reply::ok(ORIGIN, json!({})))
}

/// Numbers that have been looked up: without waiting, the first reply is `processing`, a later one has
/// the result.
#[derive(Default)]
pub(in super::super) struct Contacts {
    known: Mutex<HashSet<String>>,
}

const MAX_KNOWN: usize = 100_000;
const MAX_CONTACTS: usize = 1024;

impl Contacts {
    pub(in super::super) async fn respond(&self, call: NodeCall) -> Reply {
        match call.segments().as_slice() {
            [_, _, id, "identity"] => {
                let known = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit());
                if known {
                    either(identity(call).await)
                } else {
                    Reply::not_found(ORIGIN, "unknown contact")
                }
            }
            _ => either(self.check(call).await),
        }
    }

    async fn check(&self, call: NodeCall) -> Result<Reply, Reply> {
        let members = object(call.body, ORIGIN).await?;
        let requested = members.get("contacts").and_then(Value::as_array);
        let requested = requested.ok_or_else(|| missing(ORIGIN, "contacts"))?;
        if requested.len() > MAX_CONTACTS {
            let details = "Too many contacts in one request";
            return Err(Reply::bad(ORIGIN, ErrorCode::ParameterInvalid, details));
        }
        let waits = waits(&members)?;
        let numbers = requested.iter().filter_map(Value::as_str);
        let found: Vec<Value> = numbers.map(|number| self.look_up(number, waits)).collect();
        Ok(Reply::ok(ORIGIN, json!({ "contacts": found })))
    }

    fn look_up(&self, input: &str, waits: bool) -> Value {
        let digits: String = input.chars().filter(char::is_ascii_digit).collect();
        if !(7..=15).contains(&digits.len()) {
            return json!({ "input": input, "status": "invalid" });
        }
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        if known.insert(digits.clone()) && !waits {
            return json!({ "input": input, "status": "processing" });
        }
        json!({ "input": input, "status": "valid", "wa_id": digits })
    }
}

fn waits(members: &Map<String, Value>) -> Result<bool, Box<Reply>> {
    match members.get("blocking").map(Value::as_str) {
        None | Some(Some("no_wait")) => Ok(false),
        Some(Some("wait")) => Ok(true),
        Some(_) => {
            let details = "Parameter 'blocking' must be wait or no_wait";
            Err(Reply::bad(ORIGIN, ErrorCode::ParameterInvalid, details).into())
        }
    }
}

async fn identity(call: NodeCall) -> Result<Reply, Reply> {
    if call.verb() == "PUT" {
        let members = object(call.body, ORIGIN).await?;
        text(&members, "hash", ORIGIN)?;
        return Ok(Reply::ok(ORIGIN, json!({})));
    }
    let identity = json!({
        "acknowledged": true,
        "created_timestamp": 1_600_000_000,
        "hash": hex(&[0xA5; 6]),
    });
    Ok(Reply::ok(ORIGIN, json!({ "identity": identity })))
}
