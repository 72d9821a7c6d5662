//! Stage 2: credential -> `Client`. Knows nothing of the upstream's login.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method};

use super::Live;
use super::headers::X_API_KEY;
use super::reject::Rejection;
use super::unknown::Asked;
use crate::config::{Access, ApiKey, Directory, Route, UnknownTokens};
use crate::identity::{self, Client, KeyRefused};
use crate::secret::Secret;
use crate::token::{Grant, TokenDigest, TokenStore};

/// What a client presented, and who that makes it.
#[derive(Debug)]
pub(super) struct Authenticated {
    pub client: Client,
    /// The token's digest, when it was a token.
    pub digest: Option<TokenDigest>,
    /// The client's own bearer, which goes up again when the Webapp owns the users.
    pub bearer: Option<Secret>,
}

/// A credential as presented, unchecked.
#[derive(Debug)]
enum Credential<'a> {
    Nothing,
    Bearer(&'a str),
    Key(&'a str),
    Basic,
}

/// Decides who calls. `ask` puts an unknown token to the Webapp, where that is wanted.
pub(super) async fn authenticate<F>(
    live: &Live,
    tokens: &TokenStore,
    route: &Route,
    request: (&Method, &str, &HeaderMap),
    ask: impl FnOnce(Secret, TokenDigest) -> F,
) -> Result<Authenticated, Rejection>
where
    F: Future<Output = Result<Asked, Rejection>>,
{
    let (method, path, headers) = request;
    if route.access.contains(&Access::Open) {
        return Ok(Authenticated {
            client: Client::Open,
            digest: None,
            bearer: None,
        });
    }
    match credential(headers)? {
        Credential::Nothing => Err(Rejection::Unauthenticated("no credential")),
        Credential::Basic => Err(Rejection::Unauthenticated("password instead of a token")),
        Credential::Key(text) => key_client(live, route, method, path, text),
        Credential::Bearer(text) => {
            if !route
                .access
                .iter()
                .any(|access| matches!(access, Access::Token | Access::Role(_)))
            {
                return Err(Rejection::Unauthenticated("tokens are not good here"));
            }
            let digest = TokenDigest::of(text);
            let found = match tokens.find(&digest) {
                Some(grant) => Some(grant),
                None => tokens
                    .look_up(&digest)
                    .await
                    .map_err(Rejection::TokenUnsure)?,
            };
            let grant = match found {
                Some(grant) => grant,
                None if asks(live) => match ask(Secret::new(text), digest).await? {
                    Asked::Known(grant) => grant,
                    Asked::Unknown => return Err(Rejection::Unauthenticated("unknown token")),
                },
                None => {
                    return Err(Rejection::Unauthenticated(
                        "unknown, expired or revoked token",
                    ));
                }
            };
            check_role(route, &grant)?;
            let relayed = live.config.users.directory == Directory::Webapp;
            Ok(Authenticated {
                client: Client::User {
                    name: grant.user,
                    role: grant.role,
                },
                digest: Some(digest),
                bearer: relayed.then(|| Secret::new(text)),
            })
        }
    }
}

pub(super) fn asks(live: &Live) -> bool {
    let users = &live.config.users;
    users.directory == Directory::Webapp && users.unknown_tokens == UnknownTokens::Ask
}

/// Whether there is a credential, read as `authenticate` reads it.
pub(super) fn is_presented(headers: &HeaderMap) -> Result<bool, Rejection> {
    credential(headers).map(|found| !matches!(found, Credential::Nothing))
}

fn credential(headers: &HeaderMap) -> Result<Credential<'_>, Rejection> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let mut keys = headers.get_all(X_API_KEY).iter();
    let found = (fields.next(), keys.next());
    if fields.next().is_some() || keys.next().is_some() || matches!(found, (Some(_), Some(_))) {
        return Err(Rejection::Unauthenticated("more than one credential"));
    }
    let unreadable = |_| Rejection::Unauthenticated("credential is not text");
    match found {
        (None, None) => Ok(Credential::Nothing),
        (_, Some(key)) => match key.to_str().map_err(unreadable)?.trim() {
            "" => Err(Rejection::Unauthenticated("empty credential")),
            key => Ok(Credential::Key(key)),
        },
        (Some(field), None) => {
            let text = field.to_str().map_err(unreadable)?.trim();
            let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
            let rest = rest.trim_start();
            // Scheme names are case-insensitive (RFC 9110, 11.1).
            match scheme {
                _ if rest.is_empty() => Err(Rejection::Unauthenticated("empty credential")),
                _ if scheme.eq_ignore_ascii_case("bearer") => Ok(Credential::Bearer(rest)),
                _ if scheme.eq_ignore_ascii_case("apikey") => Ok(Credential::Key(rest)),
                _ if scheme.eq_ignore_ascii_case("basic") => Ok(Credential::Basic),
                _ => Err(Rejection::Unauthenticated("unknown scheme")),
            }
        }
    }
}

/// The text of the one credential, for `fuzz/`.
#[cfg(fuzzing)]
pub(super) fn credential_of(headers: &HeaderMap) -> Result<Option<&str>, Rejection> {
    Ok(match credential(headers)? {
        Credential::Nothing | Credential::Basic => None,
        Credential::Bearer(text) | Credential::Key(text) => Some(text),
    })
}

/// The config file's keys, then those made at run time. A name in the file is the
/// file's: a run-time key of that name is good for nothing.
fn find_key(live: &Live, text: &str) -> Result<Arc<ApiKey>, KeyRefused> {
    match live.keys.find(text) {
        Err(KeyRefused::Unknown) => {}
        found => return found,
    }
    let key = live.ring.find(text)?;
    if live.keys.has(&key.name) {
        return Err(KeyRefused::Unknown);
    }
    Ok(key)
}

fn key_client(
    live: &Live,
    route: &Route,
    method: &Method,
    path: &str,
    text: &str,
) -> Result<Authenticated, Rejection> {
    let key = find_key(live, text);
    let key = key.map_err(|refused| Rejection::Unauthenticated(refused.reason()))?;
    let by_role = Access::Role(key.role);
    let taken = route.access.contains(&Access::ApiKey)
        || (!key.paths.is_empty() && route.access.contains(&by_role));
    if !taken {
        return Err(Rejection::Unauthenticated("API keys are not good here"));
    }
    if !identity::permits(&key, route.monitoring, method, path) {
        return Err(Rejection::Forbidden(
            "This API key is not for this path or method",
        ));
    }
    Ok(Authenticated {
        client: Client::Key(Arc::clone(&key)),
        digest: None,
        bearer: None,
    })
}

/// A grant without a role is the Webapp's to judge: it knows its users, we do not.
fn check_role(route: &Route, grant: &Grant) -> Result<(), Rejection> {
    let fits = |access: &Access| match (access, grant.role) {
        (Access::Token, _) | (Access::Role(_), None) => true,
        (Access::Role(wanted), Some(role)) => role >= *wanted,
        (Access::Open | Access::ApiKey, _) => false,
    };
    if route.access.iter().any(fits) {
        return Ok(());
    }
    Err(Rejection::Forbidden("Only an admin may do this"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_credential_is_read_once_and_only_once() {
        let mut headers = HeaderMap::new();
        assert!(matches!(credential(&headers), Ok(Credential::Nothing)));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("bEaReR  abc "));
        assert!(matches!(
            credential(&headers),
            Ok(Credential::Bearer("abc"))
        ));
        headers.insert(X_API_KEY, HeaderValue::from_static("k"));
        assert!(credential(&headers).is_err(), "two kinds at once");
        headers.remove(AUTHORIZATION);
        assert!(matches!(credential(&headers), Ok(Credential::Key("k"))));
        headers.insert(X_API_KEY, HeaderValue::from_static(" "));
        assert!(credential(&headers).is_err(), "an empty key");
        headers.remove(X_API_KEY);
        for bad in ["Bearer", "Bearer ", "Negotiate x", "abc"] {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(bad));
            assert!(credential(&headers).is_err(), "{bad}");
        }
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        assert!(credential(&headers).is_err(), "two fields");
    }
}
