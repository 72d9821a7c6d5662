//! The users node when the upstream owns the users (`directory = "upstream"`): calls are relayed, and
//! the tokens here are changed according to the responses.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_ENCODING, DATE};
use http::{HeaderMap, Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use tracing::warn;

use super::own_users::{UsersNodeCall, admit_login, revoke_cause, token_refused, user_in};
use crate::clock;
use crate::config::UsersCall;
use crate::identity::Client;
use crate::metrics::{ClientLoginOutcome, LabelSet as _, UnreadableLogin};
use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::body::client_response_body::ResponseBody;
use crate::pipeline::body::request_body::RequestBody;
use crate::pipeline::reject::Rejection;
use crate::pipeline::stages::authenticate::AuthenticatedClient;
use crate::pipeline::stages::credential::basic;
use crate::pipeline::stages::inject::{CredentialSource, Inbound, UpstreamCredential};
use crate::pipeline::stages::upstream_exchange::Forwarder;
use crate::pipeline::{AppState, LiveRules};
use crate::profiles::{self, LoginBody};
use crate::secret::Secret;
use crate::token::{GrantRequest, RevokeCause, TokenDigest, TokenOrigin};

/// Largest response to a login that is read, in bytes; usual ones have a few hundred.
const MAX_LOGIN_RESPONSE: usize = 64 * 1024;

/// Time between two log lines about unreadable responses to logins, by reason.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A call that is relayed to the upstream.
#[derive(Debug)]
pub(super) struct RelayedCall<'a> {
    pub forwarder: &'a Forwarder<'a>,
    pub app: &'a AppState,
    pub live: &'a LiveRules,
    pub call: UsersNodeCall<'a>,
}

/// What the gateway learns from the response to a login.
#[derive(Debug)]
struct MintedToken {
    token: Secret,
    /// Remaining lifetime, by the upstream's own clock.
    lifetime: Duration,
}

/// A response to a login that has been read; the body still has all of its content.
struct LoginReading {
    minted: Result<MintedToken, UnreadableLogin>,
    body: ResponseBody,
}

impl RelayedCall<'_> {
    pub(super) async fn answer(
        &self,
        client: &AuthenticatedClient,
        inbound: Inbound<'_>,
        body: RequestBody,
        entry: &mut AccessLogEntry,
    ) -> Result<Response<ResponseBody>, Rejection> {
        if self.call.kind == UsersCall::Login {
            let inbound = inbound.with_readable_response();
            return self.login(&inbound, body, entry).await;
        }
        let body = match self.call.kind {
            UsersCall::Create => check_new_name(&inbound, body).await?,
            _ => body,
        };
        // A call by API key carries the gateway's own login, as on any other route.
        let source = self.forwarder.credential_source(client);
        let response = self
            .forwarder
            .forward(&inbound, body, source, entry)
            .await?;
        self.follow(client, response.status()).await?;
        Ok(response)
    }

    /// Changes the tokens here as the upstream has changed its own.
    async fn follow(
        &self,
        client: &AuthenticatedClient,
        status: StatusCode,
    ) -> Result<(), Rejection> {
        let tokens = &self.app.tokens;
        if status == StatusCode::UNAUTHORIZED
            && let Some(digest) = &client.digest
        {
            tokens.revoke(digest).await;
        }
        if !status.is_success() {
            return Ok(());
        }
        let call = &self.call;
        match (call.kind, call.client) {
            (UsersCall::Logout, Client::User { name, .. }) => {
                // The upstream has ended the tokens: they end here even if the store fails.
                tokens.end_at_once(name, RevokeCause::Logout).await;
            }
            (UsersCall::Delete, _) => {
                tokens.end_user(&user_in(call.path)?).await;
            }
            (UsersCall::Change, _) => {
                let user = user_in(call.path)?;
                let rule = self.live.config.users.on_password_change;
                let cause = revoke_cause(call, &user, rule);
                tokens.end_at_once(&user, cause).await;
            }
            _ => {}
        }
        Ok(())
    }

    async fn login(
        &self,
        inbound: &Inbound<'_>,
        body: RequestBody,
        entry: &mut AccessLogEntry,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let outcome = self.try_login(inbound, body, entry).await;
        self.app.metrics.client_logins.add(match &outcome {
            Ok(response) if response.status().is_success() => ClientLoginOutcome::Ok,
            Ok(_) | Err(Rejection::LoginRefused(_) | Rejection::BadLogin(_)) => {
                ClientLoginOutcome::Refused
            }
            Err(Rejection::TooMany(_) | Rejection::TooManyTokens(..)) => {
                ClientLoginOutcome::Limited
            }
            Err(_) => ClientLoginOutcome::Failed,
        });
        outcome
    }

    async fn try_login(
        &self,
        inbound: &Inbound<'_>,
        body: RequestBody,
        entry: &mut AccessLogEntry,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let tokens = &self.app.tokens;
        let headers = self.call.headers;
        let username = basic(headers).map_err(Rejection::BadLogin)?.username;
        // Read first, so that a slow client takes no slot among the logins.
        let bytes = Box::pin(body.read_whole()).await?;
        let body = inbound.body().again().ok_or(Rejection::TooLarge)?;
        let is_change = matches!(profiles::login_body(&bytes), Ok(LoginBody::NewPassword(_)));
        let admitted = admit_login(&self.live.limiter, &self.call, &username).await?;
        let epoch = tokens.epoch(&username);
        let mut field = headers[AUTHORIZATION].clone();
        field.set_sensitive(true);
        let basic = CredentialSource::Ready(UpstreamCredential::Client(field));
        let mut response = self.forwarder.forward(inbound, body, basic, entry).await?;
        admitted.rate.put(response.headers_mut());
        if !response.status().is_success() {
            return Ok(response);
        }
        if is_change {
            // The token of this login has not been added yet.
            tokens.end_at_once(&username, RevokeCause::Logout).await;
        }
        let (head, body) = response.into_parts();
        let LoginReading { minted, body } = read_login(&head.headers, body).await?;
        let minted = match minted {
            Ok(minted) => minted,
            Err(reason) => {
                // Passed on: the client may be able to read it.
                self.note_unread(reason);
                return Ok(Response::from_parts(head, body));
            }
        };
        admitted.attempt.succeeded();
        let digest = TokenDigest::of(minted.token.expose());
        let grant = GrantRequest {
            user: &username,
            role: None,
            lifetime: minted.lifetime,
            origin: TokenOrigin::Learned,
            epoch,
            revision: None,
        };
        tokens.insert(digest, grant).await.map_err(token_refused)?;
        Ok(Response::from_parts(head, body))
    }

    fn note_unread(&self, reason: UnreadableLogin) {
        self.app.metrics.unreadable_login_responses.add(reason);
        let advice = advice(reason);
        let route = &*self.forwarder.route.name;
        if self.app.introspection.unread_logins[reason.index()].may_log(LOG_INTERVAL) {
            warn!(
                route,
                reason = reason.text(),
                "cannot read the upstream's response to a login; it was passed on and its token \
                 was not learned, so the token will be unknown here; {advice}"
            );
        }
    }
}

/// Reads the token from the response to a login.
async fn read_login(headers: &HeaderMap, body: ResponseBody) -> Result<LoginReading, Rejection> {
    if is_encoded(headers) {
        return Ok(LoginReading {
            minted: Err(UnreadableLogin::ContentEncoding),
            body,
        });
    }
    let read = body.read_ahead(MAX_LOGIN_RESPONSE).await;
    let read = read.map_err(|_| Rejection::BadUpstreamResponse("login's response broke off"))?;
    let content = read.content.ok_or(UnreadableLogin::TooLong);
    Ok(LoginReading {
        minted: content.and_then(|bytes| minted(&bytes, headers)),
        body: read.body,
    })
}

/// Rejects a new user whose name no path through this gateway can carry, and a body in which the
/// upstream could read another name: invalid JSON, or two names. The upstream checks the rest.
async fn check_new_name(
    request: &Inbound<'_>,
    body: RequestBody,
) -> Result<RequestBody, Rejection> {
    #[derive(Deserialize)]
    struct NewUserName {
        #[serde(default)]
        username: Value,
    }
    let bytes = body.read_whole().await?;
    let named: NewUserName = serde_json::from_slice(&bytes).map_err(|_| Rejection::NotJson)?;
    if let Value::String(username) = named.username {
        let rule = profiles::check_addressable(&username);
        rule.map_err(|rule| Rejection::Invalid(rule.to_string().into()))?;
    }
    request.body().again().ok_or(Rejection::TooLarge)
}

/// Whether the content is encoded, although the gateway asked for `identity`.
fn is_encoded(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(CONTENT_ENCODING).iter();
    let plain = |item: &str| item.is_empty() || item.eq_ignore_ascii_case("identity");
    codings
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|item| !str::from_utf8(item).is_ok_and(|item| plain(item.trim())))
}

fn advice(why: UnreadableLogin) -> &'static str {
    match why {
        UnreadableLogin::ContentEncoding => {
            "the upstream encoded it, although the request asked for Accept-Encoding: identity"
        }
        UnreadableLogin::TooLong => "a response to a login may have at most 64 KiB",
        UnreadableLogin::NotJson => "it is not JSON: check that the route is the upstream's login",
        UnreadableLogin::NoToken => "it lacks users[0].token or users[0].expires_after",
        UnreadableLogin::Expired => "by the upstream's own clock the token has expired",
    }
}

/// The token in the content of a login's response.
fn minted(bytes: &[u8], headers: &HeaderMap) -> Result<MintedToken, UnreadableLogin> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let response: Value = serde_json::from_slice(text).map_err(|_| UnreadableLogin::NotJson)?;
    let text = |pointer| response.pointer(pointer).and_then(Value::as_str);
    let token = text("/users/0/token").filter(|token| !token.is_empty());
    let expiry = text("/users/0/expires_after").and_then(profiles::parse_expiry);
    let (Some(token), Some(expiry)) = (token, expiry) else {
        return Err(UnreadableLogin::NoToken);
    };
    let now = headers
        .get(DATE)
        .and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok())
        .and_then(clock::seconds_of)
        .unwrap_or_else(clock::unix_seconds);
    match u64::try_from(expiry.saturating_sub(now)) {
        Ok(seconds @ 1..) => Ok(MintedToken {
            token: Secret::new(token),
            lifetime: Duration::from_secs(seconds),
        }),
        _ => Err(UnreadableLogin::Expired),
    }
}
