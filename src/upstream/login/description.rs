//! Makes a login request from its description, and parses the response. Pure; `call.rs` sends it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::profiles::{BasicCredentials, parse_expiry};
pub use crate::profiles::{
    BodyCode, CredentialForm, ExpirySource, LoginDescription, TokenInjection, TokenSource,
};
use crate::secret::Secret;

/// Longer than any service grants; an expiry beyond it is a misinterpreted number.
const MAX_LIFE: Duration = Duration::from_secs(400 * 86_400);
/// A token longer than this would not fit most servers' header limits.
const MAX_TOKEN: usize = 8 * 1024;

/// What is wrong with a successful response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLoginResponse {
    #[error("it is longer than a login's response can be")]
    TooLarge,
    #[error(
        "it was cut short: the connection ended before its length was reached, or without \
         close_notify where it gives no length"
    )]
    CutShort,
    #[error("it holds no token where one should be")]
    NoToken,
    #[error("its token cannot be sent in a header")]
    BadToken,
    #[error("it does not say when the token ends")]
    NoExpiry,
    #[error("its expiry cannot be understood")]
    BadExpiry,
    #[error("its token has ended already, by the upstream's own clock")]
    Past,
    #[error("its token would live absurdly long")]
    TooFar,
}

/// The parts of a login request besides method and path.
#[derive(Debug)]
pub(in crate::upstream) struct LoginRequestParts {
    /// Marked sensitive if it contains the password.
    pub(in crate::upstream) header: Option<(HeaderName, HeaderValue)>,
    pub(in crate::upstream) body: Zeroizing<Vec<u8>>,
}

/// A successful response, not validated yet.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct LoginResponseParts<'a> {
    pub(in crate::upstream) headers: &'a HeaderMap,
    pub(in crate::upstream) body: &'a [u8],
    /// Unix seconds on the upstream's clock when it responded.
    pub(in crate::upstream) upstream_now: i64,
}

/// The content of a valid response.
#[derive(Debug)]
pub(in crate::upstream) struct ParsedLogin {
    pub(in crate::upstream) token: Secret,
    pub(in crate::upstream) headers: Vec<(HeaderName, HeaderValue)>,
    /// Counted from the response.
    pub(in crate::upstream) life: Duration,
}

impl LoginDescription {
    pub(in crate::upstream) fn question(
        &self,
        username: &str,
        password: &Secret,
    ) -> LoginRequestParts {
        let (header, body) = match &self.credential {
            CredentialForm::Basic => {
                let text = BasicCredentials::header(username, password);
                // Base64 is always a valid header value.
                let value = HeaderValue::from_str(text.expose()).ok().map(sensitive);
                (value.map(|value| (AUTHORIZATION, value)), Vec::new())
            }
            CredentialForm::Json(template) => {
                let filled = fill(template, username, password);
                let kind = HeaderValue::from_static("application/json");
                (Some((CONTENT_TYPE, kind)), filled.to_string().into_bytes())
            }
            CredentialForm::Form(pairs) => {
                let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
                (Some((CONTENT_TYPE, kind)), form(pairs, username, password))
            }
        };
        LoginRequestParts {
            header,
            body: Zeroizing::new(body),
        }
    }

    pub(in crate::upstream) fn read(
        &self,
        answer: LoginResponseParts<'_>,
    ) -> Result<ParsedLogin, BadLoginResponse> {
        let json: Option<Value> = serde_json::from_slice(answer.body).ok();
        let token = self.token.find(answer, json.as_ref())?;
        let headers = vec![self.inject.header(&token)?];
        let life = self
            .expiry
            .iter()
            .find_map(|source| source.life(json.as_ref(), &token, answer.upstream_now))
            .ok_or(BadLoginResponse::NoExpiry)??;
        match life {
            Duration::ZERO => Err(BadLoginResponse::Past),
            life if life > MAX_LIFE => Err(BadLoginResponse::TooFar),
            life => Ok(ParsedLogin {
                token,
                headers,
                life,
            }),
        }
    }

    /// Whether a 401's body says that the password must be changed.
    pub(in crate::upstream) fn wants_password_change(&self, body: &[u8]) -> bool {
        let Some(wanted) = &self.password_change else {
            return false;
        };
        serde_json::from_slice::<Value>(body)
            .ok()
            .and_then(|json| json.pointer(&wanted.pointer)?.as_u64())
            .is_some_and(|code| code == u64::from(wanted.code))
    }
}

impl TokenSource {
    fn find(
        &self,
        answer: LoginResponseParts<'_>,
        json: Option<&Value>,
    ) -> Result<Secret, BadLoginResponse> {
        let text = match self {
            Self::Pointer(pointer) => json
                .and_then(|json| json.pointer(pointer)?.as_str())
                .map(str::to_owned),
            Self::Header(name) => answer
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned),
            Self::WholeBody => match json {
                Some(Value::String(text)) => Some(text.clone()),
                Some(Value::Null | Value::Object(_) | Value::Array(_)) => None,
                _ => std::str::from_utf8(answer.body)
                    .ok()
                    .map(|text| text.trim().to_owned()),
            },
        };
        let token = Secret::new(
            text.filter(|text| !text.is_empty())
                .ok_or(BadLoginResponse::NoToken)?,
        );
        // Printable and without spaces, which excludes HTML pages.
        let is_legal = token.expose().bytes().all(|byte| byte.is_ascii_graphic())
            && !token.expose().starts_with('<')
            && token.expose().len() <= MAX_TOKEN;
        is_legal.then_some(token).ok_or(BadLoginResponse::BadToken)
    }
}

impl ExpirySource {
    /// None: no expiry here. Zero: expired already.
    fn life(
        &self,
        json: Option<&Value>,
        token: &Secret,
        now: i64,
    ) -> Option<Result<Duration, BadLoginResponse>> {
        let found = |pointer: &str| json?.pointer(pointer).filter(|value| !value.is_null());
        let until =
            |end: i64| Duration::from_secs(u64::try_from(end.saturating_sub(now)).unwrap_or(0));
        match self {
            Self::PointerDate(pointer) => found(pointer).map(|value| {
                let end = value.as_str().and_then(parse_expiry);
                end.map(until).ok_or(BadLoginResponse::BadExpiry)
            }),
            Self::PointerSeconds(pointer) => {
                found(pointer).map(|value| Ok(Duration::from_secs(number(value)?)))
            }
            Self::PointerMillis(pointer) => {
                found(pointer).map(|value| Ok(Duration::from_millis(number(value)?)))
            }
            Self::JwtExp => {
                let claims = token.expose().split('.').nth(1)?;
                let claims = Zeroizing::new(URL_SAFE_NO_PAD.decode(claims).ok()?);
                let claims: Value = serde_json::from_slice(&claims).ok()?;
                let end = claims.get("exp").filter(|value| !value.is_null())?;
                // RFC 7519 allows a fraction.
                let end = end.as_i64().or(end.as_f64().map(|end| end as i64));
                Some(end.map(until).ok_or(BadLoginResponse::BadExpiry))
            }
            Self::Fixed(life) => Some(Ok(*life)),
        }
    }
}

impl TokenInjection {
    pub(in crate::upstream) fn header(
        &self,
        token: &Secret,
    ) -> Result<(HeaderName, HeaderValue), BadLoginResponse> {
        let text = Zeroizing::new(self.template.replace("{token}", token.expose()));
        let value = HeaderValue::from_str(&text).map_err(|_| BadLoginResponse::BadToken)?;
        Ok((self.header.clone(), sensitive(value)))
    }
}

fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// A number, or digits in a string, as some services send it.
fn number(value: &Value) -> Result<u64, BadLoginResponse> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        Value::Number(number) => number.as_u64().or_else(|| {
            let fraction = number.as_f64().filter(|number| *number >= 0.0)?;
            Some(fraction as u64)
        }),
        _ => None,
    }
    .ok_or(BadLoginResponse::BadExpiry)
}

fn fill_text(template: &str, username: &str, password: &Secret) -> String {
    // One pass, so that a user name with the text `{password}` is not expanded.
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{username}") {
            text.push_str(username);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{password}") {
            text.push_str(password.expose());
            rest = after;
        } else {
            text.push('{');
            rest = &rest[1..];
        }
    }
    text.push_str(rest);
    text
}

fn fill(template: &Value, username: &str, password: &Secret) -> Value {
    match template {
        Value::String(text) => Value::String(fill_text(text, username, password)),
        Value::Array(items) => items
            .iter()
            .map(|item| fill(item, username, password))
            .collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| (name.clone(), fill(value, username, password)))
            .collect(),
        other => other.clone(),
    }
}

/// `application/x-www-form-urlencoded`, as the URL standard writes it.
fn form(pairs: &[(String, String)], username: &str, password: &Secret) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push(b'&');
        }
        encode(name, &mut text);
        text.push(b'=');
        let value = Zeroizing::new(fill_text(value, username, password));
        encode(&value, &mut text);
    }
    text
}

fn encode(text: &str, into: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => into.push(byte),
            b' ' => into.push(b'+'),
            other => into.extend_from_slice(format!("%{other:02X}").as_bytes()),
        }
    }
}
