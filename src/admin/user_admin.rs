//! Users at the operator's listener: end a user's tokens or delete a user, whatever its name, for
//! requests with the operator's token. Each change is logged.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::ALLOW;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tracing::info;

use super::key_admin::{AdminCallRejection, admit, refusal, to_response, unavailable};
use crate::identity::{RemoveError, UserDirectory};
use crate::secret::SecretSource;
use crate::token::TokenStore;

/// Administration of users.
#[derive(Clone)]
pub struct UserAdmin {
    /// None: the upstream owns the users.
    pub users: Option<Arc<UserDirectory>>,
    pub tokens: Arc<TokenStore>,
}

impl fmt::Debug for UserAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserAdmin").finish_non_exhaustive()
    }
}

/// A call under `/users`, by its path.
#[derive(Debug, PartialEq, Eq)]
enum UserCall {
    /// `/users/{name}`
    User(String),
    /// `/users/{name}/tokens`
    Tokens(String),
}

impl UserCall {
    /// The name is decoded once and may be anything, because users whose name no client can put
    /// into a path of the gateway must be reachable here.
    fn parse(path: &str) -> Option<Self> {
        let mut segments = path.strip_prefix("/users/")?.split('/');
        let name = percent_decode_str(segments.next()?).decode_utf8().ok()?;
        let call = match segments.next() {
            None => Self::User,
            Some("tokens") => Self::Tokens,
            Some(_) => return None,
        };
        let is_whole = segments.next().is_none() && !name.is_empty();
        is_whole.then(|| call(name.into_owned()))
    }
}

/// Whether a path belongs to user administration.
pub(super) fn is_user_path(path: &str) -> bool {
    path == "/users" || path.starts_with("/users/")
}

/// Responds to a call under `/users` from `peer`; `token` is the operator's.
pub(super) async fn respond<B>(
    request: Request<B>,
    admin: &UserAdmin,
    token: Option<&SecretSource>,
    peer: Option<SocketAddr>,
) -> Response<Full<Bytes>> {
    to_response(decide(&request, admin, token, peer).await)
}

async fn decide<B>(
    request: &Request<B>,
    admin: &UserAdmin,
    token: Option<&SecretSource>,
    peer: Option<SocketAddr>,
) -> Result<(StatusCode, Value), AdminCallRejection> {
    admit(request.headers(), token)?;
    let Some(call) = UserCall::parse(request.uri().path()) else {
        let text = "not found; there are /users/{name} and /users/{name}/tokens";
        return Err(refusal(StatusCode::NOT_FOUND, text));
    };
    if request.method() != Method::DELETE {
        let mut refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, "only DELETE");
        refusal.header = Some((ALLOW, HeaderValue::from_static("DELETE")));
        return Err(refusal);
    }
    let peer = peer.map_or_else(|| "-".to_owned(), |peer| peer.to_string());
    match call {
        UserCall::Tokens(user) => {
            // The upstream's users are not known here: a user without tokens has none to end.
            if admin
                .users
                .as_ref()
                .is_some_and(|users| users.show(&user).is_none())
            {
                return Err(unknown());
            }
            let ended = admin.tokens.revoke_user(&user).await;
            let ended = ended.map_err(|why| unavailable(&why))?;
            info!(?user, ended, %peer, "the operator ended a user's tokens");
            Ok((StatusCode::OK, json!({ "user": user, "ended": ended })))
        }
        UserCall::User(user) => {
            let Some(users) = &admin.users else {
                let text = "the upstream owns the users: delete this one there";
                return Err(refusal(StatusCode::CONFLICT, text));
            };
            users.remove(&user).await.map_err(|error| match error {
                RemoveError::Unknown => unknown(),
                RemoveError::FirstAdmin => refusal(StatusCode::CONFLICT, error.to_string()),
                RemoveError::Unavailable(why) => unavailable(&why),
            })?;
            let ended = admin.tokens.end_user(&user).await;
            info!(?user, ended, %peer, "the operator deleted a user");
            Ok((StatusCode::OK, json!({ "deleted": user, "ended": ended })))
        }
    }
}

fn unknown() -> AdminCallRejection {
    refusal(StatusCode::NOT_FOUND, "there is no user of this name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_any_user_by_one_decoding() {
        let user = |name: &str| Some(UserCall::User(name.to_owned()));
        assert_eq!(UserCall::parse("/users/anna"), user("anna"));
        assert_eq!(UserCall::parse("/users/a%2Fb%5C%25"), user("a/b\\%"));
        assert_eq!(UserCall::parse("/users/tokens"), user("tokens"));
        let tokens = UserCall::Tokens("a+b".to_owned());
        assert_eq!(UserCall::parse("/users/a+b/tokens"), Some(tokens));
        for path in [
            "/users",
            "/users/",
            "/users/a/",
            "/users/a/b",
            "/users/a/tokens/",
            "/users/%ff",
        ] {
            assert_eq!(UserCall::parse(path), None, "{path}");
        }
    }
}
