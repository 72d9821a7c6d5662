//! The users node when the Webapp owns the users (`directory = "webapp"`): calls are
//! passed on, and what their answers mean for tokens is done here in the same step.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_ENCODING, DATE};
use http::{HeaderMap, Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use tracing::warn;

use super::own_users::{
    self, UsersNodeCall, admit_login, ending_of_change, token_refused, user_in,
};
use crate::clock;
use crate::config::{self, UsersCall};
use crate::identity::Client;
use crate::metrics::{ClientLoginOutcome, LabelSet as _, Metrics, UnreadableLogin};
use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::body::request_body::RequestBody;
use crate::pipeline::body::response_body::ResponseBody;
use crate::pipeline::limit::Limiter;
use crate::pipeline::reject::Rejection;
use crate::pipeline::stages::authenticate::AuthenticatedClient;
use crate::pipeline::stages::credential::basic;
use crate::pipeline::stages::forward::Forwarder;
use crate::pipeline::stages::inject::{CredentialSource, Inbound, UpstreamCredential};
use crate::pipeline::stages::introspect::TokenIntrospection;
use crate::pipeline::stages::respond::credential_source;
use crate::profiles::{self, LoginBody};
use crate::secret::Secret;
use crate::token::{GrantRequest, RevokeCause, TokenDigest, TokenOrigin, TokenStore};

/// A login's answer is a few hundred bytes; what is longer is none.
const MOST_ANSWER: usize = 64 * 1024;

/// An answer that cannot be read is told of once in so long, by reason.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What a relayed call needs besides the request.
#[derive(Debug)]
pub(super) struct RelayedCall<'a> {
    pub way: &'a Forwarder<'a>,
    pub tokens: &'a TokenStore,
    pub limiter: &'a Limiter,
    pub questions: &'a TokenIntrospection,
    pub metrics: &'a Metrics,
    pub settings: &'a config::UsersConfig,
}

impl RelayedCall<'_> {
    pub(in crate::pipeline) async fn answer(
        &self,
        call: &UsersNodeCall<'_>,
        who: &AuthenticatedClient,
        (request, body): (Inbound<'_>, RequestBody),
        record: &mut AccessLogEntry,
    ) -> Result<Response<ResponseBody>, Rejection> {
        if call.kind == UsersCall::Login {
            let request = request.answer_read();
            return self.login(call, (&request, body), record).await;
        }
        let body = match call.kind {
            UsersCall::Create => judge_name(&request, body).await?,
            _ => body,
        };
        // A key that its route takes goes up as on any other route: by the gate's own login.
        let source = credential_source(self.way, who);
        let answer = self.way.forward(&request, body, source, record).await?;
        self.follow(call, who, answer.status()).await?;
        Ok(answer)
    }

    /// What the Webapp has done, the gate does in the same step.
    async fn follow(
        &self,
        call: &UsersNodeCall<'_>,
        who: &AuthenticatedClient,
        status: StatusCode,
    ) -> Result<(), Rejection> {
        if status == StatusCode::UNAUTHORIZED
            && let Some(digest) = &who.digest
        {
            self.tokens.revoke(digest).await;
        }
        if !status.is_success() {
            return Ok(());
        }
        match (call.kind, call.client) {
            (UsersCall::Logout, Client::User { name, .. }) => {
                // The Webapp has ended them: here they end whatever our own store says.
                self.tokens.end_at_once(name, RevokeCause::Logout).await;
            }
            (UsersCall::Delete, _) => {
                self.tokens.end_user(&user_in(call.path)?).await;
            }
            (UsersCall::Change, _) => {
                let user = user_in(call.path)?;
                let ending = ending_of_change(call, &user, self.settings.on_password_change);
                self.tokens.end_at_once(&user, ending).await;
            }
            _ => {}
        }
        Ok(())
    }

    async fn login(
        &self,
        call: &UsersNodeCall<'_>,
        sent: (&Inbound<'_>, RequestBody),
        record: &mut AccessLogEntry,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let answer = self.try_login(call, sent, record).await;
        self.metrics.client_logins.add(match &answer {
            Ok(answer) if answer.status().is_success() => ClientLoginOutcome::Ok,
            Ok(_) | Err(Rejection::LoginRefused(_) | Rejection::BadLogin(_)) => {
                ClientLoginOutcome::Refused
            }
            Err(Rejection::TooMany(_) | Rejection::TooManyTokens(..)) => {
                ClientLoginOutcome::Limited
            }
            Err(_) => ClientLoginOutcome::Failed,
        });
        answer
    }

    async fn try_login(
        &self,
        call: &UsersNodeCall<'_>,
        (request, body): (&Inbound<'_>, RequestBody),
        record: &mut AccessLogEntry,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let username = basic(call.headers).map_err(Rejection::BadLogin)?.username;
        // A slow client takes no place among those that log in.
        let bytes = Box::pin(own_users::read(body)).await?;
        let body = request.body().again().ok_or(Rejection::TooLarge)?;
        let is_change = matches!(profiles::login_body(&bytes), Ok(LoginBody::NewPassword(_)));
        let (attempt, admitted) = admit_login(self.limiter, call, &username).await?;
        let epoch = self.tokens.epoch(&username);
        let mut field = call.headers[AUTHORIZATION].clone();
        field.set_sensitive(true);
        let basic = CredentialSource::Ready(UpstreamCredential::Client(field));
        let mut answer = self.way.forward(request, body, basic, record).await?;
        admitted.put(answer.headers_mut());
        if !answer.status().is_success() {
            return Ok(answer);
        }
        if is_change {
            // The token of this login is not taken in yet.
            self.tokens
                .end_at_once(&username, RevokeCause::Logout)
                .await;
        }
        let (head, body) = answer.into_parts();
        let (minted, body) = read(&head.headers, body).await?;
        let (token, left) = match minted {
            Ok(minted) => minted,
            Err(why) => {
                // Not ours to refuse: the client may be able to read it.
                self.tell_unread(why);
                return Ok(Response::from_parts(head, body));
            }
        };
        attempt.succeeded();
        let digest = TokenDigest::of(token.expose());
        let wanted = GrantRequest {
            user: &username,
            role: None,
            lifetime: left,
            origin: TokenOrigin::Learned,
            epoch,
            revision: None,
        };
        self.tokens
            .insert(digest, wanted)
            .await
            .map_err(token_refused)?;
        Ok(Response::from_parts(head, body))
    }

    fn tell_unread(&self, why: UnreadableLogin) {
        self.metrics.unreadable_login_responses.add(why);
        let (advice, route) = (advice(why), &*self.way.route.name);
        if self.questions.unread_logins[why.index()].may_log(TOLD_EVERY) {
            warn!(
                route,
                reason = why.text(),
                "cannot read the upstream's answer to a login; it was passed on and its token \
                 was not learned, so the token will be unknown here; {advice}"
            );
        }
    }
}

/// Reads the token out of a login's answer; gives a body with everything that came.
async fn read(
    headers: &HeaderMap,
    body: ResponseBody,
) -> Result<(Result<(Secret, Duration), UnreadableLogin>, ResponseBody), Rejection> {
    if is_coded(headers) {
        return Ok((Err(UnreadableLogin::ContentEncoding), body));
    }
    let (bytes, body) = body
        .read_ahead(MOST_ANSWER)
        .await
        .map_err(|_| Rejection::BadAnswer("login's answer broke off"))?;
    let minted = bytes.map_or(Err(UnreadableLogin::TooLong), |bytes| {
        minted(&bytes, headers)
    });
    Ok((minted, body))
}

/// Refuses to make a user whom no path through this gate could name, and a body in which
/// the upstream could read another name: no JSON, or two of them. All else about it is the
/// upstream's to judge.
async fn judge_name(request: &Inbound<'_>, body: RequestBody) -> Result<RequestBody, Rejection> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        username: Value,
    }
    let bytes = own_users::read(body).await?;
    let named: Named = serde_json::from_slice(&bytes).map_err(|_| Rejection::NotJson)?;
    if let Value::String(username) = named.username {
        let rule = profiles::check_addressable(&username);
        rule.map_err(|rule| Rejection::Invalid(rule.to_string().into()))?;
    }
    request.body().again().ok_or(Rejection::TooLarge)
}

/// Whether the content is coded, although the gate asked for it plain.
fn is_coded(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(CONTENT_ENCODING).iter();
    let plain = |item: &str| item.is_empty() || item.eq_ignore_ascii_case("identity");
    codings
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|item| !str::from_utf8(item).is_ok_and(|item| plain(item.trim())))
}

fn advice(why: UnreadableLogin) -> &'static str {
    match why {
        UnreadableLogin::ContentEncoding => {
            "the upstream coded it although asked not to (Accept-Encoding: identity)"
        }
        UnreadableLogin::TooLong => "an answer to a login has 64 KiB at most",
        UnreadableLogin::NotJson => "it is not JSON: is the route the upstream's login?",
        UnreadableLogin::NoToken => "it lacks users[0].token or users[0].expires_after",
        UnreadableLogin::Expired => "the token's end has passed by the upstream's own clock",
    }
}

/// The token of a login's answer and how long it lasts, by the upstream's own clock.
fn minted(bytes: &[u8], headers: &HeaderMap) -> Result<(Secret, Duration), UnreadableLogin> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let answer: Value = serde_json::from_slice(text).map_err(|_| UnreadableLogin::NotJson)?;
    let text = |pointer| answer.pointer(pointer).and_then(Value::as_str);
    let token = text("/users/0/token").filter(|token| !token.is_empty());
    let ends = text("/users/0/expires_after").and_then(profiles::parse_expiry);
    let (Some(token), Some(ends)) = (token, ends) else {
        return Err(UnreadableLogin::NoToken);
    };
    let now = headers
        .get(DATE)
        .and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok())
        .and_then(clock::seconds_of)
        .unwrap_or_else(clock::unix_seconds);
    let left = u64::try_from(ends.saturating_sub(now)).ok();
    let left = left
        .filter(|left| *left > 0)
        .ok_or(UnreadableLogin::Expired)?;
    Ok((Secret::new(token), Duration::from_secs(left)))
}
