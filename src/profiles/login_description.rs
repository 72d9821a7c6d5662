//! A login as data: how the request is made, where the response has token and expiry, how the
//! token goes on requests. `upstream` makes the call.

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{HeaderName, Method, StatusCode};
use serde_json::Value;

/// One kind of login.
#[derive(Clone, Debug, PartialEq)]
pub struct LoginDescription {
    pub method: Method,
    pub path: PathAndQuery,
    pub credential: CredentialForm,
    /// Statuses that mean yes.
    pub accepted: Vec<StatusCode>,
    pub token: TokenSource,
    /// The first that yields one counts.
    pub expiry: Vec<ExpirySource>,
    pub inject: TokenInjection,
    /// A 401 whose body says this is not a wrong password, but one that must be changed.
    pub password_change: Option<BodyCode>,
}

/// How user name and password are sent. In templates, `{username}` and
/// `{password}` stand for them and are escaped as the form demands.
#[derive(Clone, Debug, PartialEq)]
pub enum CredentialForm {
    Basic,
    Json(Value),
    Form(Vec<(String, String)>),
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

/// The header that carries the token, such as `authorization: Bearer {token}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInjection {
    pub header: HeaderName,
    pub template: String,
}

impl TokenInjection {
    pub fn bearer() -> Self {
        Self {
            header: AUTHORIZATION,
            template: "Bearer {token}".to_owned(),
        }
    }
}

/// A number at a place in a JSON body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyCode {
    pub pointer: String,
    pub code: u32,
}
