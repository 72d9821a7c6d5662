//! A reply of a node, and the response made of it.

use std::time::{Duration, UNIX_EPOCH};

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use serde_json::Value;

use super::faults::Switches;
use super::hex;
use super::reply_body::Body;
use crate::clock;
use crate::profiles::whatsapp::{COREAPP_META, ErrorCode, WEBAPP_META, error_body};
use crate::profiles::{EnvelopeMeta, body};

/// The end of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// The part of the Webapp that a reply comes from; visible in `meta.version` and the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The Webapp itself: users, tokens, certificates.
    Webapp,
    /// Relayed from the Coreapp.
    Coreapp,
    /// Relayed from the Coreapp, and a message was sent.
    Send,
}

impl Origin {
    pub(super) fn meta(self) -> EnvelopeMeta {
        match self {
            Self::Webapp => WEBAPP_META,
            Self::Coreapp | Self::Send => COREAPP_META,
        }
    }

    fn internal_ids(self) -> Option<String> {
        let id = || hex(&rand::random::<[u8; 16]>());
        match self {
            Self::Webapp => None,
            Self::Coreapp => Some(id()),
            Self::Send => {
                let job = hex(&rand::random::<[u8; 9]>()).to_uppercase();
                Some(format!("{}|{job}", id()))
            }
        }
    }
}

pub(super) struct Reply {
    pub status: StatusCode,
    pub origin: Origin,
    pub body: Body,
    pub headers: HeaderMap,
}

impl Reply {
    /// The members of `payload`, and `meta`.
    pub(super) fn json(origin: Origin, status: StatusCode, payload: Value) -> Self {
        Self::text(origin, status, body(payload, Some(origin.meta())))
    }

    pub(super) fn ok(origin: Origin, payload: Value) -> Self {
        Self::json(origin, StatusCode::OK, payload)
    }

    /// The given JSON text.
    pub(super) fn text(origin: Origin, status: StatusCode, json: String) -> Self {
        Self::typed(origin, status, "application/json", Body::whole(json))
    }

    pub(super) fn error(
        origin: Origin,
        status: StatusCode,
        code: ErrorCode,
        details: &str,
    ) -> Self {
        Self::text(origin, status, error_body(code, details, origin.meta()))
    }

    pub(super) fn bad(origin: Origin, code: ErrorCode, details: &str) -> Self {
        Self::error(origin, StatusCode::BAD_REQUEST, code, details)
    }

    pub(super) fn not_found(origin: Origin, details: &str) -> Self {
        Self::error(origin, StatusCode::NOT_FOUND, ErrorCode::NotFound, details)
    }

    pub(super) fn typed(
        origin: Origin,
        status: StatusCode,
        content_type: &str,
        body: Body,
    ) -> Self {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(content_type) {
            headers.insert(header::CONTENT_TYPE, value);
        }
        Self {
            status,
            origin,
            body,
            headers,
        }
    }

    /// A reply without body and content type.
    pub(super) fn empty(origin: Origin, status: StatusCode) -> Self {
        Self {
            status,
            origin,
            body: Body::whole(""),
            headers: HeaderMap::new(),
        }
    }

    pub(super) fn header(mut self, name: header::HeaderName, value: &'static str) -> Self {
        self.headers.insert(name, HeaderValue::from_static(value));
        self
    }

    /// Copies the request's fields into the reply, `Authorization` in three places, as a careless
    /// service would.
    pub(super) fn echo(mut self, fields: &HeaderMap) -> Self {
        let Some(credential) = fields.get(header::AUTHORIZATION) else {
            return self;
        };
        self.headers
            .insert("x-echo-authorization", credential.clone());
        let Body::Whole(Some(bytes)) = &self.body else {
            return self;
        };
        let text = Value::from(String::from_utf8_lossy(credential.as_bytes()));
        if let Some(rest) = bytes.strip_prefix(b"{") {
            let text_of =
                |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let fields: serde_json::Map<String, Value> = fields
                .iter()
                .map(|(name, value)| (name.to_string(), Value::from(text_of(value))))
                .collect();
            let fields = Value::Object(fields);
            let mut echoed = format!("{{\"echo\":{text},\"received\":{fields},").into_bytes();
            echoed.extend_from_slice(rest);
            self.body = Body::whole(echoed);
        }
        self
    }

    pub(super) fn misbehave(mut self, switches: &Switches) -> Self {
        self.body = if switches.close_mid_body > 0 {
            self.body.cut()
        } else if switches.stall_after_headers {
            self.body.silent()
        } else if switches.slow_body {
            self.body.slow()
        } else if switches.trailers {
            self.headers.insert(
                header::TRAILER,
                HeaderValue::from_static("x-emulator-sha256"),
            );
            self.body.with_trailers()
        } else {
            return self;
        };
        self
    }

    /// The response, with the headers that every response has.
    pub(super) fn into_response(self, clock_offset: i64) -> Response<Body> {
        let ids = self.origin.internal_ids();
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::SERVER, HeaderValue::from_static("Server"));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, private"),
        );
        let id = hex(&rand::random::<[u8; 16]>());
        for (name, text) in [
            ("x-request-id", Some(id)),
            ("x-internal-request-ids", ids),
            ("date", Some(date(clock_offset))),
        ] {
            if let Some(value) = text.and_then(|text| HeaderValue::from_maybe_shared(text).ok()) {
                headers.insert(name, value);
            }
        }
        headers.extend(self.headers);
        response
    }
}

/// Errors are boxed replies, to keep results small.
impl From<Box<Self>> for Reply {
    fn from(boxed: Box<Self>) -> Self {
        *boxed
    }
}

/// The HTTP date at `offset`, limited to the years that HTTP can express.
fn date(offset: i64) -> String {
    let seconds = clock::unix_seconds().saturating_add(offset);
    let seconds = u64::try_from(seconds).unwrap_or(0).min(LAST_SECOND);
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

pub(super) fn too_many() -> Reply {
    Reply::error(
        Origin::Webapp,
        StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::TooManyRequests,
        "Rate limit hit, please slow down",
    )
}

pub(super) fn overloaded() -> Reply {
    Reply::error(
        Origin::Webapp,
        StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Overloaded,
        "System is overloaded, please try again later",
    )
}

pub(super) fn unauthorized() -> Reply {
    Reply::error(
        Origin::Webapp,
        StatusCode::UNAUTHORIZED,
        ErrorCode::AccessDenied,
        "Invalid credentials",
    )
}

pub(super) fn forbidden(details: &str) -> Reply {
    Reply::error(
        Origin::Webapp,
        StatusCode::FORBIDDEN,
        ErrorCode::AccessDenied,
        details,
    )
}
