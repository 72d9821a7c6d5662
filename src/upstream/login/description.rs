//! Makes a login request from its description, and parses the response. Pure; `call.rs` sends it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde_json::Value;
use zeroize::Zeroizing;

pub use crate::profiles::LoginDescription;
use crate::profiles::{
    BasicCredentials, CredentialForm, ExpirySource, FormField, HeaderTemplate, JsonTemplate,
    LoginContent, TemplateName, TokenSource, parse_expiry,
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
    #[error("it has not the value that means success")]
    Denied,
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

/// The parts of a login request besides its method.
#[derive(Debug)]
pub(in crate::upstream) struct LoginRequestParts {
    /// Path and query.
    pub(in crate::upstream) target: Uri,
    /// Marked sensitive where they may contain the password.
    pub(in crate::upstream) headers: Vec<(HeaderName, HeaderValue)>,
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

/// A value that cannot stand where the description puts it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsendableValue {
    #[error(
        "header {0} of the login cannot carry its value: it has a line break or a control character"
    )]
    Header(HeaderName),
    #[error("the path of the login is no path with its values")]
    Path,
}

impl LoginDescription {
    pub(in crate::upstream) fn question(
        &self,
        username: &str,
        password: &Secret,
    ) -> Result<LoginRequestParts, UnsendableValue> {
        let value = |name| match name {
            TemplateName::Username => username,
            TemplateName::Password => password.expose(),
            TemplateName::Token => "",
        };
        let target = self.target.fill(value, percent_encode);
        let target = target.parse().map_err(|_| UnsendableValue::Path)?;
        let mut headers = filled(&self.headers, value).map_err(UnsendableValue::Header)?;
        let basic = match self.credential {
            CredentialForm::InTemplates => None,
            CredentialForm::Basic => Some(BasicCredentials::header(username, password)),
            CredentialForm::ClientSecretBasic => {
                let encoded = |text: &str| {
                    let mut into = Zeroizing::new(String::with_capacity(text.len() * 3));
                    form_encode(text, &mut into);
                    into
                };
                let password = Secret::new(encoded(password.expose()).as_str());
                Some(BasicCredentials::header(&encoded(username), &password))
            }
        };
        // Base64 is always a valid header value.
        let basic = basic.and_then(|text| HeaderValue::from_str(text.expose()).ok());
        headers.extend(basic.map(|value| (AUTHORIZATION, sensitive(value))));
        let (kind, body) = match &self.body {
            LoginContent::Empty => (None, Vec::new()),
            LoginContent::Json(template) => {
                let json = fill(template, &value);
                (Some("application/json"), json.to_string().into_bytes())
            }
            LoginContent::Form(fields) => {
                let form = form(fields, &value);
                (Some("application/x-www-form-urlencoded"), form)
            }
        };
        headers.extend(kind.map(|kind| (CONTENT_TYPE, HeaderValue::from_static(kind))));
        Ok(LoginRequestParts {
            target,
            headers,
            body: Zeroizing::new(body),
        })
    }

    /// The fields that carry `token` on a request.
    pub(in crate::upstream) fn token_headers(
        &self,
        token: &Secret,
    ) -> Result<Vec<(HeaderName, HeaderValue)>, BadLoginResponse> {
        filled(&self.inject, |_| token.expose()).map_err(|_| BadLoginResponse::BadToken)
    }

    pub(in crate::upstream) fn read(
        &self,
        answer: LoginResponseParts<'_>,
    ) -> Result<ParsedLogin, BadLoginResponse> {
        let json: Option<Value> = serde_json::from_slice(answer.body).ok();
        if let Some(wanted) = &self.accepted.body
            && json.as_ref().and_then(|json| json.pointer(&wanted.pointer)) != Some(&wanted.equals)
        {
            return Err(BadLoginResponse::Denied);
        }
        let token = self.token.find(answer, json.as_ref())?;
        let headers = self.token_headers(&token)?;
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

/// The fields of these templates, marked sensitive; the name of one whose value cannot stand in a header.
fn filled<'a>(
    templates: &[HeaderTemplate],
    value: impl Fn(TemplateName) -> &'a str,
) -> Result<Vec<(HeaderName, HeaderValue)>, HeaderName> {
    let as_it_is = |text: &str, into: &mut String| into.push_str(text);
    let field = |template: &HeaderTemplate| {
        let text = template.value.fill(&value, as_it_is);
        let value = HeaderValue::from_str(&text).map_err(|_| template.name.clone())?;
        Ok((template.name.clone(), sensitive(value)))
    };
    templates.iter().map(field).collect()
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

fn fill<'a>(template: &JsonTemplate, value: &impl Fn(TemplateName) -> &'a str) -> Value {
    let as_it_is = |text: &str, into: &mut String| into.push_str(text);
    match template {
        JsonTemplate::Text(text) => Value::String(text.fill(value, as_it_is).to_string()),
        JsonTemplate::List(items) => items.iter().map(|item| fill(item, value)).collect(),
        JsonTemplate::Object(members) => members
            .iter()
            .map(|member| (member.name.clone(), fill(&member.value, value)))
            .collect(),
        JsonTemplate::Other(other) => other.clone(),
    }
}

/// `application/x-www-form-urlencoded`, as the URL standard writes it.
fn form<'a>(fields: &[FormField], value: &impl Fn(TemplateName) -> &'a str) -> Vec<u8> {
    let mut text = String::new();
    for field in fields {
        if !text.is_empty() {
            text.push('&');
        }
        form_encode(&field.name, &mut text);
        text.push('=');
        let as_it_is = |text: &str, into: &mut String| into.push_str(text);
        form_encode(&field.value.fill(value, as_it_is), &mut text);
    }
    text.into_bytes()
}

fn form_encode(text: &str, into: &mut String) {
    encode(text, b"*-._", "+", into);
}

/// RFC 3986, 2.3: what is unreserved stays.
fn percent_encode(text: &str, into: &mut String) {
    encode(text, b"-._~", "%20", into);
}

fn encode(text: &str, plain: &[u8], space: &str, into: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => into.push(char::from(byte)),
            _ if plain.contains(&byte) => into.push(char::from(byte)),
            b' ' => into.push_str(space),
            other => into.push_str(&format!("%{other:02X}")),
        }
    }
}
