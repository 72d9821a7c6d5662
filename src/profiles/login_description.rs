//! A login as data: how the request is made, where the response has token and expiry, how the
//! token goes on requests. `upstream` makes the call.

use std::fmt;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderName, Method, StatusCode};
use serde_json::Value;

use super::template::Template;

/// One kind of login.
#[derive(Clone, Debug, PartialEq)]
pub struct LoginDescription {
    pub method: Method,
    /// Path, and a query if it has one. Values are percent-encoded.
    pub target: Template,
    /// Besides those of `credential`.
    pub headers: Vec<HeaderTemplate>,
    pub credential: CredentialForm,
    pub body: LoginContent,
    /// What means yes.
    pub accepted: LoginAcceptance,
    /// Statuses that mean that user name or password are wrong.
    pub refused: Vec<StatusCode>,
    pub token: TokenSource,
    /// The first that yields one counts.
    pub expiry: Vec<ExpirySource>,
    pub inject: Vec<HeaderTemplate>,
    /// A 401 whose body says this is not a wrong password, but one that must be changed.
    pub password_change: Option<BodyCode>,
}

/// How user name and password are sent, where they are not in templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialForm {
    InTemplates,
    /// `Authorization: Basic` (RFC 7617).
    Basic,
    /// The same, each of the two form-encoded before (RFC 6749, 2.3.1).
    ClientSecretBasic,
}

/// The content of the login request.
#[derive(Clone, Debug, PartialEq)]
pub enum LoginContent {
    Empty,
    Json(JsonTemplate),
    /// `application/x-www-form-urlencoded`.
    Form(Vec<FormField>),
}

/// A JSON value whose texts are templates.
#[derive(Clone, Debug, PartialEq)]
pub enum JsonTemplate {
    Text(Template),
    List(Vec<Self>),
    Object(Vec<JsonMember>),
    /// Number, true, false or null.
    Other(Value),
}

#[derive(Clone, Debug, PartialEq)]
pub struct JsonMember {
    pub name: String,
    pub value: JsonTemplate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormField {
    pub name: String,
    pub value: Template,
}

/// A header field, such as `authorization: Bearer {token}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderTemplate {
    pub name: HeaderName,
    pub value: Template,
}

/// When the response means yes. A token must be in it besides.
#[derive(Clone, Debug, PartialEq)]
pub struct LoginAcceptance {
    pub statuses: Vec<StatusCode>,
    /// None: the status is enough.
    pub body: Option<BodyValue>,
}

/// A value at a place in a JSON body.
#[derive(Clone, Debug, PartialEq)]
pub struct BodyValue {
    /// A JSON pointer (RFC 6901).
    pub pointer: String,
    pub equals: Value,
}

/// Where the token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// A JSON pointer (RFC 6901).
    Pointer(String),
    Header(HeaderName),
    /// The body is the token: a JSON string, or plain text.
    WholeBody,
}

/// Where the token's end is. Null and missing fall through to the next source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpirySource {
    /// A date in the body, on the upstream's clock.
    PointerDate(String),
    /// Seconds to live.
    PointerSeconds(String),
    /// Milliseconds to live.
    PointerMillis(String),
    /// The `exp` claim of a token that is a JWT, on the upstream's clock.
    JwtExp,
    /// What the service's manual says.
    Fixed(Duration),
}

impl LoginDescription {
    /// The call as text, without user name and password: two logins of one user that differ in it may bring
    /// different tokens. Kept tokens are bound to it, so its form must stay.
    pub fn call(&self) -> String {
        let mut text = format!("{} {}", self.method, self.target);
        for header in &self.headers {
            text.push_str(&format!("\n{}: {}", header.name, header.value));
        }
        match &self.body {
            LoginContent::Empty => {}
            LoginContent::Json(json) => text.push_str(&format!("\njson {json}")),
            LoginContent::Form(fields) => {
                for field in fields {
                    text.push_str(&format!("\n{}={}", field.name, field.value));
                }
            }
        }
        text
    }
}

impl fmt::Display for JsonTemplate {
    /// Much as JSON is written, with the names of what is known only later.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{:?}", text.to_string()),
            Self::List(items) => {
                f.write_str("[")?;
                items.iter().try_for_each(|item| write!(f, "{item},"))?;
                f.write_str("]")
            }
            Self::Object(members) => {
                f.write_str("{")?;
                let member = |member: &JsonMember| write!(f, "{:?}:{},", member.name, member.value);
                members.iter().try_for_each(member)?;
                f.write_str("}")
            }
            Self::Other(value) => write!(f, "{value}"),
        }
    }
}

impl JsonTemplate {
    /// Adds the templates of all its texts to `into`.
    pub fn collect_templates<'a>(&'a self, into: &mut Vec<&'a Template>) {
        match self {
            Self::Text(text) => into.push(text),
            Self::List(items) => items.iter().for_each(|item| item.collect_templates(into)),
            Self::Object(members) => {
                for member in members {
                    member.value.collect_templates(into);
                }
            }
            Self::Other(_) => {}
        }
    }
}

impl HeaderTemplate {
    /// `Authorization: Bearer` (RFC 6750, 2.1).
    pub fn bearer() -> Self {
        Self {
            name: AUTHORIZATION,
            value: Template::of("Bearer {token}"),
        }
    }
}

/// A number at a place in a JSON body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyCode {
    pub pointer: String,
    pub code: u32,
}
