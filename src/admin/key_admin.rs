//! API keys at run time: list, create, delete, for requests with the operator's token. The text of a
//! key is only in the response that creates it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, Limited};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::timeout;

use crate::clock;
use crate::config::{PathPattern, is_name, parse_quota};
use crate::identity::{KeyError, KeyRing, ListedKey, NewKey};
use crate::profiles::Role;
use crate::secret::{LEAST_OPERATOR_TOKEN, SecretSource};
use crate::store::StoreUnavailable;

const MAX_BODY: usize = 16 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Administration of API keys.
#[derive(Clone)]
pub struct KeyAdmin {
    /// The operator's token in the current configuration; None: key administration is off.
    pub token: Arc<dyn Fn() -> Option<SecretSource> + Send + Sync>,
    pub ring: Arc<KeyRing>,
    /// The keys in the config file: listed too, and their names cannot be used again.
    pub configured: Arc<dyn Fn() -> Vec<ListedKey> + Send + Sync>,
    /// The names of the upstreams in use.
    pub upstreams: Arc<dyn Fn() -> Vec<Arc<str>> + Send + Sync>,
}

impl fmt::Debug for KeyAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyAdmin").finish_non_exhaustive()
    }
}

/// Why a call of the operator is refused.
#[derive(Debug)]
pub(super) struct AdminCallRejection {
    pub(super) status: StatusCode,
    pub(super) text: String,
    pub(super) header: Option<(http::HeaderName, HeaderValue)>,
}

pub(super) fn refusal(status: StatusCode, text: impl Into<String>) -> AdminCallRejection {
    AdminCallRejection {
        status,
        text: text.into(),
        header: None,
    }
}

/// Whether a path belongs to key administration.
pub(super) fn is_key_path(path: &str) -> bool {
    path == "/keys" || path.starts_with("/keys/")
}

/// Responds to a call under `/keys`.
pub(super) async fn respond<B>(request: Request<B>, admin: &KeyAdmin) -> Response<Full<Bytes>>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    to_response(decide(request, admin).await)
}

/// The result or the refusal as a JSON response.
pub(super) fn to_response(
    outcome: Result<(StatusCode, Value), AdminCallRejection>,
) -> Response<Full<Bytes>> {
    match outcome {
        Ok((status, value)) => json_response(status, &value),
        Err(refusal) => {
            let mut response = json_response(refusal.status, &json!({ "error": refusal.text }));
            if let Some((name, value)) = refusal.header {
                response.headers_mut().insert(name, value);
            }
            response
        }
    }
}

async fn decide<B>(
    request: Request<B>,
    admin: &KeyAdmin,
) -> Result<(StatusCode, Value), AdminCallRejection>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    admit(request.headers(), (admin.token)().as_ref())?;
    let name = request
        .uri()
        .path()
        .strip_prefix("/keys/")
        .map(str::to_owned);
    match (request.method().clone(), name) {
        (Method::GET, None) => Ok((StatusCode::OK, list(admin))),
        (Method::POST, None) => {
            let wanted = parse_new_key(&body(request).await?)?;
            check_upstreams(&wanted.upstreams, &(admin.upstreams)())?;
            create(admin, wanted).await
        }
        (Method::DELETE, Some(name)) => delete(admin, &name).await,
        (_, name) => {
            let allowed = if name.is_some() {
                "DELETE"
            } else {
                "GET, POST"
            };
            let mut refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, format!("only {allowed}"));
            refusal.header = Some((ALLOW, HeaderValue::from_static(allowed)));
            Err(refusal)
        }
    }
}

/// Checks the operator's token. It is compared by digest, so that the time does not depend on the
/// position of the first difference or on the length.
pub(super) fn admit(
    headers: &HeaderMap,
    token: Option<&SecretSource>,
) -> Result<(), AdminCallRejection> {
    let Some(token) = token else {
        let text = "nothing can be changed here until [operator] token is set";
        return Err(refusal(StatusCode::FORBIDDEN, text));
    };
    let token = token.read().map_err(|error| {
        let text = format!("the operator's token cannot be read: {error}");
        refusal(StatusCode::SERVICE_UNAVAILABLE, text)
    })?;
    if token.expose().chars().count() < LEAST_OPERATOR_TOKEN {
        let text = "the operator's token has become too short: it must have 16 characters";
        return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, text));
    }
    let presented = headers
        .get(AUTHORIZATION)
        .and_then(|field| field.to_str().ok());
    let presented = presented.and_then(|text| text.split_once(' '));
    let presented = presented.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let presented = Sha256::digest(presented.map_or("", |(_, text)| text.trim()));
    if bool::from(
        presented
            .as_slice()
            .ct_eq(Sha256::digest(token.expose()).as_slice()),
    ) {
        return Ok(());
    }
    let mut refusal = refusal(StatusCode::UNAUTHORIZED, "the operator's token is needed");
    let challenge = HeaderValue::from_static("Bearer realm=\"operator\"");
    refusal.header = Some((WWW_AUTHENTICATE, challenge));
    Err(refusal)
}

pub(super) async fn body<B>(request: Request<B>) -> Result<Bytes, AdminCallRejection>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let read = Limited::new(request.into_body(), MAX_BODY).collect();
    match timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(refusal(
            StatusCode::BAD_REQUEST,
            "the body is too long, or incomplete",
        )),
        Err(_) => Err(refusal(
            StatusCode::REQUEST_TIMEOUT,
            "the body came too slowly",
        )),
    }
}

/// A key as written in the config file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyConfigSnippet {
    name: String,
    /// RFC 3339.
    expires: Option<String>,
    role: Option<WrittenRole>,
    #[serde(default)]
    paths: Vec<String>,
    #[serde(default)]
    upstreams: Vec<String>,
    #[serde(default)]
    methods: Vec<String>,
    limit: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenRole {
    User,
    Admin,
}

fn parse_new_key(body: &[u8]) -> Result<NewKey, AdminCallRejection> {
    let bad = |text: String| refusal(StatusCode::BAD_REQUEST, text);
    let written: KeyConfigSnippet =
        serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
    if !is_name(&written.name) {
        return Err(bad("name: letters, digits, - _ and . only".to_owned()));
    }
    let expires = written.expires.map(|text| text.parse::<Timestamp>());
    let expires = expires
        .transpose()
        .map_err(|_| bad("expires: such as \"2099-12-31T23:59:59Z\"".to_owned()))?;
    let expires = expires.map(Timestamp::as_second);
    if expires.is_some_and(|moment| moment <= clock::unix_seconds()) {
        return Err(bad("expires: has passed".to_owned()));
    }
    let paths = written.paths.iter();
    let paths = paths.map(|text| {
        PathPattern::parse(text).map_err(|error| bad(format!("paths: {text} {error}")))
    });
    let methods = written.methods.iter().map(|text| {
        let method = Method::from_bytes(text.as_bytes());
        let known = method
            .ok()
            .filter(|_| text.bytes().all(|byte| byte.is_ascii_uppercase()));
        known.ok_or_else(|| bad("methods: such as \"GET\"".to_owned()))
    });
    let limit = written.limit.map(|text| {
        let quota = parse_quota(&text);
        quota.ok_or_else(|| bad("limit: such as \"5/s burst 10\"".to_owned()))
    });
    Ok(NewKey {
        name: written.name.into(),
        expires,
        role: match written.role {
            Some(WrittenRole::Admin) => Role::Admin,
            Some(WrittenRole::User) | None => Role::User,
        },
        paths: paths.collect::<Result<_, _>>()?,
        upstreams: written.upstreams.into_iter().map(Arc::from).collect(),
        methods: methods.collect::<Result<_, _>>()?,
        limit: limit.transpose()?,
    })
}

/// A name that is misspelt must not become a key that opens nothing, or later something else.
fn check_upstreams(wanted: &[Arc<str>], known: &[Arc<str>]) -> Result<(), AdminCallRejection> {
    let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) else {
        return Ok(());
    };
    let all: Vec<&str> = known.iter().map(|name| &**name).collect();
    let text = format!(
        "upstreams: there is no upstream \"{unknown}\"; there are {}",
        all.join(", ")
    );
    Err(refusal(StatusCode::BAD_REQUEST, text))
}

fn list(admin: &KeyAdmin) -> Value {
    let configured = (admin.configured)();
    let taken = |name: &str| configured.iter().any(|listed| *listed.key.name == *name);
    let made = admin.ring.list();
    let made = made.iter().map(|listed| {
        let origin = if taken(&listed.key.name) {
            "shadowed by config"
        } else {
            "store"
        };
        describe(listed, origin)
    });
    let written = configured.iter().map(|listed| describe(listed, "config"));
    json!({ "keys": written.chain(made).collect::<Vec<_>>() })
}

fn describe(listed: &ListedKey, origin: &str) -> Value {
    let key = &listed.key;
    let moment = |seconds: i64| {
        Timestamp::from_second(seconds)
            .ok()
            .map(|time| time.to_string())
    };
    let methods: Vec<&str> = key.methods.iter().map(Method::as_str).collect();
    let paths: Vec<String> = key.paths.iter().map(ToString::to_string).collect();
    let upstreams: Vec<&str> = key.upstreams.iter().map(|name| &**name).collect();
    json!({
        "name": &*key.name,
        "origin": origin,
        "role": match key.role { Role::User => "user", Role::Admin => "admin" },
        "expires": key.expires.and_then(moment),
        "paths": paths,
        "upstreams": upstreams,
        "methods": methods,
        "limit": key.limit.as_ref().map(ToString::to_string),
        "last_use": listed.last_use.and_then(moment),
    })
}

async fn create(
    admin: &KeyAdmin,
    wanted: NewKey,
) -> Result<(StatusCode, Value), AdminCallRejection> {
    let name = Arc::clone(&wanted.name);
    if (admin.configured)()
        .iter()
        .any(|listed| listed.key.name == name)
    {
        let text = "the config file has a key of this name";
        return Err(refusal(StatusCode::CONFLICT, text));
    }
    let text = admin.ring.create(wanted).await.map_err(refused)?;
    let created = json!({ "name": &*name, "key": text.expose() });
    Ok((StatusCode::CREATED, created))
}

async fn delete(admin: &KeyAdmin, name: &str) -> Result<(StatusCode, Value), AdminCallRejection> {
    match admin.ring.delete(name).await {
        Ok(()) => Ok((StatusCode::OK, json!({ "deleted": name }))),
        Err(KeyError::Unknown)
            if (admin.configured)()
                .iter()
                .any(|listed| *listed.key.name == *name) =>
        {
            let text = "this key is defined in the config file: remove it there";
            Err(refusal(StatusCode::CONFLICT, text))
        }
        Err(error) => Err(refused(error)),
    }
}

fn refused(error: KeyError) -> AdminCallRejection {
    let text = error.to_string();
    match error {
        KeyError::Exists | KeyError::Full => refusal(StatusCode::CONFLICT, text),
        KeyError::Unknown => refusal(StatusCode::NOT_FOUND, text),
        KeyError::Unavailable(why) => unavailable(&why),
    }
}

pub(super) fn unavailable(why: &StoreUnavailable) -> AdminCallRejection {
    AdminCallRejection {
        status: StatusCode::SERVICE_UNAVAILABLE,
        text: why.to_string(),
        header: Some((RETRY_AFTER, HeaderValue::from(why.retry_after().as_secs()))),
    }
}

fn json_response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(format!("{value}\n").into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
