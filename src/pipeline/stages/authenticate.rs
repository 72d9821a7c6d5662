//! Stage 2: credential -> `Client`. Knows nothing of the upstream's login. The rule for all
//! routes: a credential that is missing or unknown gets 401, a known one without the right 403.

use std::sync::Arc;

use http::{HeaderMap, Method};

use super::credential::{CredentialFault, PresentedCredential, credential};
use super::introspect::Introspected;
use crate::config::{Access, ApiKey, DirectoryKind, Route, UnknownTokens};
use crate::identity::{self, Client, KeyRefused};
use crate::pipeline::LiveRules;
use crate::pipeline::peer::LastToken;
use crate::pipeline::reject::Rejection;
use crate::secret::Secret;
use crate::token::{Grant, TokenDigest, TokenStore};

/// What a client presented, and who that makes it.
#[derive(Debug)]
pub(in crate::pipeline) struct AuthenticatedClient {
    pub client: Client,
    /// The token's digest, when it was a token.
    pub digest: Option<TokenDigest>,
    /// The client's own bearer, which goes up again when the Webapp owns the users.
    pub bearer: Option<Secret>,
}

/// Decides who calls. `ask` puts an unknown token to the Webapp, where that is wanted.
pub(in crate::pipeline) async fn authenticate<F>(
    live: &LiveRules,
    tokens: &TokenStore,
    route: &Route,
    request: (&Method, &str, &HeaderMap),
    last_token: &LastToken,
    ask: impl FnOnce(Secret, TokenDigest) -> F,
) -> Result<AuthenticatedClient, Rejection>
where
    F: Future<Output = Result<Introspected, Rejection>>,
{
    let (method, path, headers) = request;
    if route.access.contains(&Access::Open) {
        return Ok(AuthenticatedClient {
            client: Client::Open,
            digest: None,
            bearer: None,
        });
    }
    match credential(headers).map_err(Rejection::BadCredential)? {
        PresentedCredential::Nothing => Err(Rejection::Unauthenticated("no credential")),
        PresentedCredential::Basic => Err(Rejection::BadCredential(CredentialFault::PasswordHere)),
        PresentedCredential::Key(text) => key_client(live, route, method, path, text),
        PresentedCredential::Bearer(text) => {
            let noted = last_token.digest(text);
            let digest = noted.unwrap_or_else(|| TokenDigest::of(text));
            let found = match tokens.find(&digest) {
                Some(grant) => Some(grant),
                None => tokens
                    .look_up(&digest)
                    .await
                    .map_err(Rejection::TokenUnsure)?,
            };
            let grant = match found {
                Some(grant) => grant,
                // A route that takes no token costs the upstream no question about one.
                None if takes_tokens(route) && asks(live) => {
                    match ask(Secret::new(text), digest).await? {
                        Introspected::Known(grant) => grant,
                        Introspected::Unknown => {
                            return Err(Rejection::Unauthenticated("unknown token"));
                        }
                    }
                }
                None => {
                    return Err(Rejection::Unauthenticated(
                        "unknown, expired or revoked token",
                    ));
                }
            };
            if noted.is_none() {
                last_token.note(text, digest);
            }
            check_role(route, &grant)?;
            let relayed = live.config.users.directory == DirectoryKind::Upstream;
            Ok(AuthenticatedClient {
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

pub(in crate::pipeline) fn asks(live: &LiveRules) -> bool {
    let users = &live.config.users;
    users.directory == DirectoryKind::Upstream && users.unknown_tokens == UnknownTokens::Ask
}

/// The config file's keys, then those made at run time. A name in the file is the
/// file's: a run-time key of that name is good for nothing.
fn find_key(live: &LiveRules, text: &str) -> Result<Arc<ApiKey>, KeyRefused> {
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
    live: &LiveRules,
    route: &Route,
    method: &Method,
    path: &str,
    text: &str,
) -> Result<AuthenticatedClient, Rejection> {
    let key = find_key(live, text);
    let key = key.map_err(|refused| Rejection::Unauthenticated(refused.reason()))?;
    let by_role = Access::Role(key.role);
    let taken = route.access.contains(&Access::ApiKey)
        || (!key.paths.is_empty() && route.access.contains(&by_role));
    if !taken {
        return Err(Rejection::Forbidden(
            "This path takes no API key like this one",
        ));
    }
    if !identity::permits(&key, route.monitoring, method, path) {
        return Err(Rejection::Forbidden(
            "This API key is not for this path or method",
        ));
    }
    Ok(AuthenticatedClient {
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
    Err(Rejection::Forbidden(match takes_tokens(route) {
        true => "Only an admin may do this",
        false => "This path takes no tokens",
    }))
}

fn takes_tokens(route: &Route) -> bool {
    let takes = |access: &Access| matches!(access, Access::Token | Access::Role(_));
    route.access.iter().any(takes)
}
