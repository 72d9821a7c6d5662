//! Stage 2: the credential of a request leads to its client. Does not concern the gateway's own login
//! at the upstream. On all routes, a credential that is missing or unknown gets 401, and a known one
//! without the necessary right 403.

use std::sync::Arc;

use super::credential::{PresentedCredential, credential};
use super::introspect::{introspect, is_enabled};
use crate::config::{Access, ApiKey, Route};
use crate::identity::{self, Client, KeyRefused};
use crate::pipeline::LiveRules;
use crate::pipeline::credential_fault::CredentialFault;
use crate::pipeline::reject::Rejection;
use crate::pipeline::request_context::RequestContext;
use crate::pipeline::route_table::RouteEntry;
use crate::profiles::Role;
use crate::secret::Secret;
use crate::token::{Grant, TokenDigest};

/// The client of a request, and what it presented.
#[derive(Debug)]
pub(in crate::pipeline) struct AuthenticatedClient {
    pub client: Client,
    /// The digest of the token, if the client presented a token.
    pub digest: Option<TokenDigest>,
    /// The client's own bearer token, forwarded when the upstream owns the users.
    pub bearer: Option<Secret>,
}

impl AuthenticatedClient {
    fn without_token(client: Client) -> Self {
        Self {
            client,
            digest: None,
            bearer: None,
        }
    }
}

/// Identifies the client.
pub(in crate::pipeline) async fn authenticate(
    request: &RequestContext<'_>,
) -> Result<AuthenticatedClient, Rejection> {
    if request.route.access.contains(&Access::Open) {
        return Ok(AuthenticatedClient::without_token(Client::Open));
    }
    let presented = credential(&request.head.headers).map_err(Rejection::BadCredential)?;
    match presented {
        PresentedCredential::Nothing => Err(Rejection::Unauthenticated("no credential")),
        PresentedCredential::Basic => Err(Rejection::BadCredential(CredentialFault::PasswordHere)),
        PresentedCredential::Key(text) => key_client(request, text),
        PresentedCredential::Bearer(text) => {
            let last_token = &request.peer.last_token;
            let digest = last_token.digest_of(text);
            let grant = find_grant(request, text, digest).await?;
            let role = role_at(request, &grant)?;
            check_role(request.route, role)?;
            let is_relayed = request.route.takes_client_tokens;
            Ok(AuthenticatedClient {
                client: Client::User {
                    name: grant.user,
                    role,
                },
                digest: Some(digest),
                bearer: is_relayed.then(|| Secret::new(text)),
            })
        }
    }
}

async fn find_grant(
    request: &RequestContext<'_>,
    text: &str,
    digest: TokenDigest,
) -> Result<Grant, Rejection> {
    let tokens = &request.worker.app.tokens;
    if let Some(grant) = tokens.find(&digest) {
        return Ok(grant);
    }
    let found = tokens.look_up(&digest).await;
    if let Some(grant) = found.map_err(Rejection::TokenUnsure)? {
        return Ok(grant);
    }
    // On a route that takes no token, the upstream is not asked about one.
    if takes_tokens(request.route) && is_enabled(request.live()) {
        let grant = Box::pin(introspect(request, Secret::new(text), digest)).await?;
        return grant.ok_or(Rejection::Unauthenticated("unknown token"));
    }
    Err(Rejection::Unauthenticated(
        "unknown, expired or revoked token",
    ))
}

/// Looks in the config file's keys first, then in those made at run time. A run-time key whose name
/// is also in the file is not accepted.
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

fn key_client(request: &RequestContext<'_>, text: &str) -> Result<AuthenticatedClient, Rejection> {
    let key = find_key(request.live(), text)
        .map_err(|refused| Rejection::Unauthenticated(refused.reason()))?;
    let route = request.route;
    let by_role = Access::Role(key.role);
    let is_taken = route.access.contains(&Access::ApiKey)
        || (!key.paths.is_empty() && route.access.contains(&by_role));
    if !is_taken {
        return Err(Rejection::Forbidden(
            "This path takes no API key like this one",
        ));
    }
    if !key.upstreams.is_empty() && !route.destination().is_some_and(is_listed(&key.upstreams)) {
        return Err(Rejection::Forbidden(
            "This API key is not for this upstream",
        ));
    }
    if !identity::permits(&key, route.monitoring, &request.head.method, request.path) {
        return Err(Rejection::Forbidden(
            "This API key is not for this path or method",
        ));
    }
    Ok(AuthenticatedClient::without_token(Client::Key(key)))
}

fn is_listed(upstreams: &[Arc<str>]) -> impl Fn(&str) -> bool {
    |name| upstreams.iter().any(|upstream| **upstream == *name)
}

/// The user's role on this route. The users that the gate has itself concern every upstream: a user that is
/// restricted to some is no admin of them, and keeps what each user may do to itself.
fn role_at(request: &RequestContext<'_>, grant: &Grant) -> Result<Option<Role>, Rejection> {
    let upstreams = request.live().config.users.upstreams_of(&grant.user);
    if upstreams.is_empty() {
        return Ok(grant.role);
    }
    match request.route.destination() {
        None => Ok(grant.role.map(|_| Role::User)),
        Some(name) if is_listed(upstreams)(name) => Ok(grant.role),
        Some(_) => Err(Rejection::Forbidden("This user is not for this upstream")),
    }
}

/// A grant without a role is judged by the upstream, which owns its users. At every other upstream the
/// gateway's own login would stand for the user, so that no role is assumed.
fn check_role(route: &RouteEntry, role: Option<Role>) -> Result<(), Rejection> {
    let fits = |access: &Access| match (access, role) {
        (Access::Token, _) => true,
        (Access::Role(_), None) => route.takes_client_tokens,
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
