//! The users node when the Webapp owns the users (`directory = "webapp"`): calls are
//! passed on, and what their answers mean for tokens is done here in the same step.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, DATE};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;
use tracing::warn;

use super::answer_body::Body;
use super::authenticate::Authenticated;
use super::forward::Way;
use super::inject::{Carried, CredentialSource, Inbound};
use super::limit::Limiter;
use super::record::Record;
use super::reject::Rejection;
use super::request_body::RequestBody;
use super::users_node::{Call, basic, token_refused, user_in};
use crate::clock;
use crate::config::UsersCall;
use crate::identity::Client;
use crate::metrics::{ClientLogin, Metrics};
use crate::secret::Secret;
use crate::token::{Ending, Origin, TokenDigest, TokenStore, Wanted};
use crate::webapp;

/// A login's answer is a few hundred bytes; what is longer is none.
const MOST_ANSWER: usize = 64 * 1024;

/// What a relayed call needs besides the request.
#[derive(Debug)]
pub(super) struct Relay<'a> {
    pub way: &'a Way<'a>,
    pub tokens: &'a TokenStore,
    pub limiter: &'a Limiter,
    pub metrics: &'a Metrics,
}

impl Relay<'_> {
    pub(super) async fn answer(
        &self,
        call: &Call<'_>,
        who: &Authenticated,
        (request, body): (&Inbound<'_>, RequestBody),
        record: &mut Record,
    ) -> Result<Response<Body>, Rejection> {
        if call.kind == UsersCall::Login {
            return self.login(call, (request, body), record).await;
        }
        let bearer = who
            .bearer
            .as_ref()
            .ok_or(Rejection::Unauthenticated("a token is needed"))?;
        let bearer = CredentialSource::Ready(Carried::bearer(bearer));
        let answer = self.way.forward(request, body, bearer, record).await?;
        self.follow(call, who, answer.status()).await?;
        Ok(answer)
    }

    /// What the Webapp has done, the gate does in the same step.
    async fn follow(
        &self,
        call: &Call<'_>,
        who: &Authenticated,
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
                self.tokens.end_at_once(name, Ending::Logout).await;
            }
            (UsersCall::Delete, _) => {
                self.tokens.end_user(&user_in(call.path)?).await;
            }
            _ => {}
        }
        Ok(())
    }

    async fn login(
        &self,
        call: &Call<'_>,
        sent: (&Inbound<'_>, RequestBody),
        record: &mut Record,
    ) -> Result<Response<Body>, Rejection> {
        let answer = self.try_login(call, sent, record).await;
        self.metrics.client_logins.add(match &answer {
            Ok(answer) if answer.status().is_success() => ClientLogin::Ok,
            Ok(_) | Err(Rejection::LoginRefused(_)) => ClientLogin::Refused,
            Err(Rejection::TooMany(_) | Rejection::TooManyTokens(_)) => ClientLogin::Limited,
            Err(_) => ClientLogin::Failed,
        });
        answer
    }

    async fn try_login(
        &self,
        call: &Call<'_>,
        (request, body): (&Inbound<'_>, RequestBody),
        record: &mut Record,
    ) -> Result<Response<Body>, Rejection> {
        let username = basic(call.headers)?.username;
        let attempt = self
            .limiter
            .admit_login(call.peer, &username)
            .await
            .map_err(|limit| Rejection::TooMany(Box::new(limit)))?;
        let epoch = self.tokens.epoch(&username);
        let mut field = call.headers[AUTHORIZATION].clone();
        field.set_sensitive(true);
        let basic = CredentialSource::Ready(Carried::Client(field));
        let answer = self.way.forward(request, body, basic, record).await?;
        if !answer.status().is_success() {
            return Ok(answer);
        }
        attempt.succeeded();
        let (head, body) = answer.into_parts();
        let bytes = Limited::new(body, MOST_ANSWER)
            .collect()
            .await
            .map_err(|_| Rejection::BadAnswer("login's answer broke off or is too long"))?
            .to_bytes();
        let Some((token, left)) = minted(&bytes, &head.headers) else {
            warn!("the Webapp answered a login in a form nobody knows; its token was not learned");
            return Err(Rejection::BadAnswer(
                "login's answer has no token with a future end",
            ));
        };
        let digest = TokenDigest::of(token.expose());
        let wanted = Wanted {
            user: &username,
            role: None,
            lifetime: left,
            origin: Origin::Learned,
            epoch,
            revision: None,
        };
        self.tokens
            .insert(digest, wanted)
            .await
            .map_err(token_refused)?;
        Ok(Response::from_parts(head, Body::full(bytes)))
    }
}

/// The token of a login's answer and how long it lasts, by the upstream's own clock.
fn minted(bytes: &Bytes, headers: &HeaderMap) -> Option<(Secret, Duration)> {
    let answer: Value = serde_json::from_slice(bytes).ok()?;
    let token = answer.pointer("/users/0/token")?.as_str()?;
    let ends = webapp::parse_expiry(answer.pointer("/users/0/expires_after")?.as_str()?)?;
    let now = headers
        .get(DATE)
        .and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok())
        .and_then(clock::seconds_of)
        .unwrap_or_else(clock::unix_seconds);
    let left = u64::try_from(ends - now).ok().filter(|left| *left > 0)?;
    Some((Secret::new(token), Duration::from_secs(left)))
}
