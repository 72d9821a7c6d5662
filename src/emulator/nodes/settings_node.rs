//! Settings and certificates: what was set can be read back until the emulator stops.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::super::node_call::NodeCall;
use super::super::node_reply::{Origin, Reply};
use super::super::reply_body::Body;
use super::{either, object, read, text};
use crate::profiles::whatsapp::ErrorCode;

const ORIGIN: Origin = Origin::Coreapp;

/// Characters of the profile's text (protocol sheet, section 3).
const MAX_ABOUT: usize = 139;

pub(in super::super) struct SettingsNode {
    authority: String,
    application: Mutex<Map<String, Value>>,
    business: Mutex<Map<String, Value>>,
    compliance: Mutex<Map<String, Value>>,
    about: Mutex<String>,
    photo: Mutex<Option<Bytes>>,
    webhook_authorities: Mutex<Option<Bytes>>,
}

impl SettingsNode {
    pub(in super::super) fn new(authority: String) -> Self {
        Self {
            authority,
            application: Mutex::new(factory()),
            business: Mutex::default(),
            compliance: Mutex::default(),
            about: Mutex::default(),
            photo: Mutex::default(),
            webhook_authorities: Mutex::default(),
        }
    }

    pub(in super::super) async fn settings(&self, call: NodeCall) -> Reply {
        either(match call.segments().get(2..).unwrap_or_default() {
            ["application"] => self.application(call).await,
            ["application", ..] => providers(call).await,
            ["business", "profile"] => members(&self.business, call, "profile").await,
            ["business", ..] => members(&self.compliance, call, "compliance_info").await,
            ["profile", "about"] => self.about(call).await,
            ["profile", ..] => self.photo(call).await,
            // Backup, restore and the PIN contain secrets: accepted, but not stored.
            _ => empty(call).await,
        })
    }

    async fn application(&self, call: NodeCall) -> Result<Reply, Reply> {
        match call.verb() {
            "PATCH" => {
                let changes = object(call.body, ORIGIN).await?;
                let max = changes.get("max_concurrent_requests").map(Value::as_u64);
                if max.is_some_and(|max| !matches!(max, Some(6 | 12 | 18 | 24))) {
                    let details = "Parameter 'max_concurrent_requests' must be 6, 12, 18 or 24";
                    return Err(Reply::bad(ORIGIN, ErrorCode::ParameterInvalid, details));
                }
                let mut now = self.application.lock();
                // Bounded, because many small bodies could add up.
                if now.len() > 256 {
                    *now = factory();
                }
                now.extend(changes);
                Ok(Reply::ok(ORIGIN, json!({})))
            }
            "DELETE" => {
                *self.application.lock() = factory();
                Ok(Reply::ok(ORIGIN, json!({})))
            }
            _ => {
                let now = self.application.lock().clone();
                Ok(Reply::ok(
                    ORIGIN,
                    json!({ "settings": { "application": now } }),
                ))
            }
        }
    }

    async fn about(&self, call: NodeCall) -> Result<Reply, Reply> {
        if call.verb() == "GET" {
            let about = self.about.lock().clone();
            let profile = json!({ "about": { "text": about } });
            return Ok(Reply::ok(
                ORIGIN,
                json!({ "settings": { "profile": profile } }),
            ));
        }
        let members = object(call.body, ORIGIN).await?;
        let about = text(&members, "text", ORIGIN)?;
        if about.chars().count() > MAX_ABOUT {
            let details = "Text is longer than 139 characters";
            return Err(Reply::bad(ORIGIN, ErrorCode::ParameterInvalid, details));
        }
        about.clone_into(&mut self.about.lock());
        Ok(Reply::ok(ORIGIN, json!({})))
    }

    async fn photo(&self, call: NodeCall) -> Result<Reply, Reply> {
        match call.verb() {
            "POST" => {
                let photo = read(call.body, ORIGIN).await?;
                *self.photo.lock() = Some(photo);
                Ok(Reply::json(ORIGIN, StatusCode::CREATED, json!({})))
            }
            "DELETE" => {
                self.photo.lock().take();
                Ok(Reply::ok(ORIGIN, json!({})))
            }
            _ => {
                let photo = self.photo.lock().clone();
                let photo =
                    photo.ok_or_else(|| Reply::not_found(ORIGIN, "No profile photo found"))?;
                if call.has_query("format", "link") {
                    let profile = json!({ "photo": { "link": "https://webapp/photo.jpg" } });
                    return Ok(Reply::ok(
                        ORIGIN,
                        json!({ "settings": { "profile": profile } }),
                    ));
                }
                let body = Body::whole(photo);
                Ok(Reply::typed(ORIGIN, StatusCode::OK, "image/jpeg", body))
            }
        }
    }

    pub(in super::super) async fn certificates(&self, call: NodeCall) -> Reply {
        let origin = call.route.origin;
        either(match (call.verb(), call.path.get(2).map(String::as_str)) {
            ("GET", Some("external")) => Ok(file(self.authority.clone().into())),
            ("GET", _) => {
                let found = self.webhook_authorities.lock().clone();
                let details = "No webhook CA certificates found";
                found
                    .map(file)
                    .ok_or_else(|| Reply::not_found(origin, details))
            }
            ("DELETE", _) => {
                self.webhook_authorities.lock().take();
                Ok(Reply::text(origin, StatusCode::OK, "{}".to_owned()))
            }
            (_, kind) => {
                let external = kind == Some("external");
                self.take_certificates(call, external).await
            }
        })
    }

    async fn take_certificates(&self, call: NodeCall, external: bool) -> Result<Reply, Reply> {
        let origin = call.route.origin;
        let pem = read(call.body, origin).await?;
        let mark: &[u8] = b"-----BEGIN CERTIFICATE-----";
        if !pem.windows(mark.len()).any(|window| window == mark) {
            let details = "Certificate is not in PEM format";
            return Err(Reply::bad(origin, ErrorCode::ParameterInvalid, details));
        }
        // An external certificate comes with its key, which must not be readable.
        if !external {
            *self.webhook_authorities.lock() = Some(pem);
        }
        Ok(Reply::text(origin, StatusCode::OK, "null".to_owned()))
    }
}

fn factory() -> Map<String, Value> {
    let start = json!({
        "callback_persist": true,
        "max_concurrent_requests": 6,
        "media": { "auto_download": ["image", "document", "audio"] },
        "pass_through": true,
        "sent_status": false,
        "webhooks": { "url": "" },
    });
    start.as_object().cloned().unwrap_or_default()
}

/// One object that GET shows and POST replaces.
async fn members(
    settings: &Mutex<Map<String, Value>>,
    call: NodeCall,
    name: &str,
) -> Result<Reply, Reply> {
    if call.verb() == "GET" {
        let now = settings.lock().clone();
        let business = json!({ name: now });
        return Ok(Reply::ok(
            ORIGIN,
            json!({ "settings": { "business": business } }),
        ));
    }
    let changes = object(call.body, ORIGIN).await?;
    *settings.lock() = changes;
    Ok(Reply::ok(ORIGIN, json!({})))
}

/// Media providers may contain credentials: accepted, never shown.
async fn providers(call: NodeCall) -> Result<Reply, Reply> {
    if call.verb() == "GET" {
        let providers = json!({ "media": { "providers": [] } });
        return Ok(Reply::ok(
            ORIGIN,
            json!({ "settings": { "application": providers } }),
        ));
    }
    empty(call).await
}

async fn empty(call: NodeCall) -> Result<Reply, Reply> {
    read(call.body, ORIGIN).await?;
    Ok(Reply::ok(ORIGIN, json!({})))
}

/// A certificate as a file download, not as an API reply.
fn file(pem: Bytes) -> Reply {
    let kind = "text/plain;charset=UTF-8";
    let mut reply = Reply::typed(Origin::Webapp, StatusCode::OK, kind, Body::whole(pem));
    for (name, value) in [
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"ca.pem\"",
        ),
        (header::ACCEPT_RANGES, "bytes"),
        (header::CACHE_CONTROL, "public"),
    ] {
        reply.headers.insert(name, HeaderValue::from_static(value));
    }
    reply
}
