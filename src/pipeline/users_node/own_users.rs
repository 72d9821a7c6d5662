//! The other end when the gate owns the users (`directory = "gateway"`): login,
//! logout and users calls, answered here in the Webapp's own words.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;

use crate::config::{OnPasswordChange, Route, UsersCall};
use crate::identity::{
    ChangeError, ChangedBy, Client, CreateError, LoginDenied, RemoveError, UserDirectory,
};
use crate::metrics::{ClientLoginOutcome, Metrics};
use crate::pipeline::body::request_body::{BodyFailure, BodyHandle, RequestBody};
use crate::pipeline::body::response_body::ResponseBody;
use crate::pipeline::limit::{Limiter, LoginHeld, LoginTry, RateAdmission, RateSubject};
use crate::pipeline::reject::Rejection;
use crate::pipeline::stages::credential::basic;
use crate::profiles::{self, EnvelopeMeta, LoginBody, Role, UserEntry};
use crate::secret::Secret;
use crate::token::{
    GrantRequest, InsertRefused, RevokeCause, Token, TokenDigest, TokenOrigin, TokenStore,
};

/// A users call has no business with a body larger than this.
pub(in crate::pipeline) const MOST_BODY: usize = 16 * 1024;

/// The node, as one request sees it.
#[derive(Debug)]
pub(in crate::pipeline) struct UsersNode<'a> {
    pub users: &'a UserDirectory,
    pub tokens: &'a TokenStore,
    pub limiter: &'a Limiter,
    pub metrics: &'a Arc<Metrics>,
    pub settings: &'a crate::config::UsersConfig,
    /// The profile's `meta` member of responses.
    pub meta: Option<EnvelopeMeta>,
}

/// One call to the node.
#[derive(Debug)]
pub(in crate::pipeline) struct UsersNodeCall<'a> {
    pub kind: UsersCall,
    pub client: &'a Client,
    /// The token that was shown, if it was one.
    pub token: Option<TokenDigest>,
    pub peer: std::net::IpAddr,
    pub route: &'a Route,
    pub path: &'a str,
    pub headers: &'a HeaderMap,
}

impl UsersNode<'_> {
    pub(in crate::pipeline) async fn answer(
        &self,
        call: &UsersNodeCall<'_>,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Rejection> {
        match call.kind {
            UsersCall::Login => self.login(call, body).await,
            UsersCall::Logout => self.logout(call.client).await,
            UsersCall::Create => self.create(body).await,
            UsersCall::Show => self.show(call),
            UsersCall::Change => self.change(call, body).await,
            UsersCall::Delete => self.delete(call).await,
        }
    }

    async fn login(
        &self,
        call: &UsersNodeCall<'_>,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let answer = self.try_login(call, body).await;
        self.metrics.client_logins.add(match &answer {
            Ok(_) => ClientLoginOutcome::Ok,
            Err(Rejection::LoginRefused(_) | Rejection::BadLogin(_)) => ClientLoginOutcome::Refused,
            Err(Rejection::PasswordChangeRequired) => ClientLoginOutcome::PasswordChange,
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
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let basic = basic(call.headers).map_err(Rejection::BadLogin)?;
        // First: a slow client takes no place among those that log in.
        let bytes = read(body).await?;
        let (attempt, admitted) = admit_login(self.limiter, call, &basic.username).await?;
        // Taken before the password is looked at: a user who is deleted meanwhile
        // must not come back to life through a login that began earlier.
        let epoch = self.tokens.epoch(&basic.username);
        let mut verified = match self.users.verify(&basic.username, basic.password).await {
            Ok(verified) => verified,
            Err(LoginDenied::Unknown) => return Err(Rejection::LoginRefused("no such user")),
            Err(LoginDenied::WrongPassword) => {
                return Err(Rejection::LoginRefused("wrong password"));
            }
            Err(LoginDenied::Busy(_)) => return Err(Rejection::Overloaded),
            Err(LoginDenied::Failed(_)) => {
                return Err(Rejection::Internal("a password check failed"));
            }
        };
        attempt.succeeded();
        match profiles::login_body(&bytes).map_err(|_| Rejection::NotJson)? {
            LoginBody::NewPassword(password) => {
                let by = ChangedBy::User(&verified);
                self.set_password(&basic.username, password, by).await?;
                verified = verified.with_new_password();
                // The token that this login is about to get is not there yet.
                let ended = self.tokens.revoke_user(&basic.username).await;
                ended.map_err(Rejection::Unavailable)?;
            }
            _ if verified.must_change => return Err(Rejection::PasswordChangeRequired),
            LoginBody::Nothing | LoginBody::Other => {}
        }
        let token = Token::mint();
        let wanted = GrantRequest {
            user: &basic.username,
            role: Some(verified.role),
            lifetime: self.settings.token_lifetime,
            origin: TokenOrigin::Minted,
            epoch,
            revision: self.users.stored_revision(&verified),
        };
        let ends = self
            .tokens
            .insert(token.digest(), wanted)
            .await
            .map_err(token_refused)?;
        // A password that was changed after it was checked has ended the tokens that there
        // were, perhaps before this one was.
        if !self.users.is_current(&basic.username, &verified) {
            self.tokens.revoke(&token.digest()).await;
            return Err(Rejection::LoginRefused("password was changed meanwhile"));
        }
        let text = profiles::login_reply(token.secret(), ends.unix_seconds(), self.meta);
        let mut answer = json(StatusCode::OK, text);
        admitted.put(answer.headers_mut());
        Ok(answer)
    }

    async fn set_password(
        &self,
        name: &str,
        password: Secret,
        by: ChangedBy<'_>,
    ) -> Result<(), Rejection> {
        self.users
            .change_password(name, password, by)
            .await
            .map_err(|error| match error {
                ChangeError::BadPassword(rule) => Rejection::Invalid(Cow::Owned(rule.to_string())),
                ChangeError::Superseded => {
                    Rejection::LoginRefused("password was changed meanwhile")
                }
                ChangeError::Busy(_) => Rejection::Overloaded,
                ChangeError::Failed(_) => Rejection::Internal("a password could not be hashed"),
                ChangeError::Unknown => Rejection::NoSuchUser,
                ChangeError::Unavailable(why) => Rejection::Unavailable(why),
            })
    }

    /// Ends all tokens of the user, at once (DESIGN: "logging a user out").
    async fn logout(&self, client: &Client) -> Result<Response<ResponseBody>, Rejection> {
        let ended = self.tokens.revoke_user(client.name()).await;
        ended.map_err(Rejection::Unavailable)?;
        Ok(json(StatusCode::OK, profiles::meta_reply(self.meta)))
    }

    async fn create(&self, body: RequestBody) -> Result<Response<ResponseBody>, Rejection> {
        #[derive(Deserialize)]
        struct NewUserBody {
            username: Option<String>,
            password: Option<String>,
        }
        let bytes = read(body).await?;
        let wanted: NewUserBody = serde_json::from_slice(&bytes).map_err(|_| Rejection::NotJson)?;
        let name = wanted.username.ok_or(Rejection::Missing("username"))?;
        let password = wanted.password.ok_or(Rejection::Missing("password"))?;
        self.users
            .create(&name, Secret::new(password), Role::User)
            .await
            .map_err(|error| match error {
                CreateError::Exists => Rejection::UserExists,
                CreateError::BadName(rule) => Rejection::Invalid(Cow::Owned(rule.to_string())),
                CreateError::BadPassword(rule) => Rejection::Invalid(Cow::Owned(rule.to_string())),
                CreateError::Busy(_) => Rejection::Overloaded,
                CreateError::Unavailable(why) => Rejection::Unavailable(why),
                CreateError::Failed(_) => Rejection::Internal("a password could not be hashed"),
            })?;
        Ok(json(StatusCode::CREATED, self.shown(&name, None)))
    }

    fn show(&self, call: &UsersNodeCall<'_>) -> Result<Response<ResponseBody>, Rejection> {
        let name = self.own_or_admin(call)?;
        let role = self.users.show(&name).ok_or(Rejection::NoSuchUser)?;
        Ok(json(StatusCode::OK, self.shown(&name, Some(role))))
    }

    async fn change(
        &self,
        call: &UsersNodeCall<'_>,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Rejection> {
        #[derive(Deserialize)]
        struct NewPasswordBody {
            password: Option<String>,
        }
        let name = self.own_or_admin(call)?;
        let bytes = read(body).await?;
        let wanted: NewPasswordBody =
            serde_json::from_slice(&bytes).map_err(|_| Rejection::NotJson)?;
        let password = wanted.password.ok_or(Rejection::Missing("password"))?;
        self.set_password(&name, Secret::new(password), ChangedBy::Admin)
            .await?;
        let ending = ending_of_change(call, &name, self.settings.on_password_change);
        let ended = self.tokens.end_tokens(&name, ending).await;
        ended.map_err(Rejection::Unavailable)?;
        Ok(json(StatusCode::OK, self.shown(&name, None)))
    }

    async fn delete(&self, call: &UsersNodeCall<'_>) -> Result<Response<ResponseBody>, Rejection> {
        let name = user_in(call.path)?;
        self.users
            .remove(&name)
            .await
            .map_err(|error| match error {
                RemoveError::Unknown => Rejection::NoSuchUser,
                RemoveError::FirstAdmin => {
                    Rejection::Forbidden("The first admin cannot be deleted")
                }
                RemoveError::Unavailable(why) => Rejection::Unavailable(why),
            })?;
        self.tokens.end_user(&name).await;
        Ok(json(StatusCode::OK, self.shown(&name, None)))
    }

    fn shown(&self, username: &str, role: Option<Role>) -> String {
        profiles::user_reply(UserEntry { username, role }, self.meta)
    }

    /// The user a call is about: an admin may name any, a user only itself.
    fn own_or_admin(&self, call: &UsersNodeCall<'_>) -> Result<String, Rejection> {
        let name = user_in(call.path)?;
        let allowed = match call.client {
            Client::User {
                role: Some(Role::Admin),
                ..
            } => true,
            Client::User { name: own, .. } => **own == *name,
            // Its route has let it in by its role; it has no user of its own.
            Client::Key(key) => key.role == Role::Admin,
            Client::Open => false,
        };
        if allowed {
            Ok(name)
        } else {
            Err(Rejection::Forbidden("Only an admin may do this"))
        }
    }
}

/// Which tokens of a user a new password ends, set by this call.
pub(super) fn ending_of_change(
    call: &UsersNodeCall<'_>,
    user: &str,
    rule: OnPasswordChange,
) -> RevokeCause {
    match (call.client, call.token) {
        (Client::User { name, .. }, Some(own))
            if **name == *user && rule == OnPasswordChange::EndOthers =>
        {
            RevokeCause::AllBut(own)
        }
        _ => RevokeCause::Logout,
    }
}

/// The limits of a login. Its sender's come first: refused attempts must not use up what all
/// clients share at this route.
pub(in crate::pipeline) async fn admit_login(
    limiter: &Limiter,
    call: &UsersNodeCall<'_>,
    username: &str,
) -> Result<(LoginTry, RateAdmission), Rejection> {
    let too_many = |limit| Rejection::TooMany(Box::new(limit));
    let attempt = limiter.admit_login(call.peer, username).await;
    let attempt = attempt.map_err(|held| match held {
        LoginHeld::TooMany(limit) => too_many(limit),
        LoginHeld::Overloaded => Rejection::Overloaded,
    })?;
    let subject = RateSubject {
        client: call.client,
        peer: call.peer,
        class: &call.route.class,
    };
    let admitted = limiter.admit(subject, call.route.max_wait).await;
    Ok((attempt, admitted.map_err(too_many)?))
}

/// Why a good login still gets no token.
pub(super) fn token_refused(refused: InsertRefused) -> Rejection {
    match refused {
        InsertRefused::UserFull(next) => {
            Rejection::TooManyTokens("the user has too many live tokens", next)
        }
        InsertRefused::Full(next) => {
            Rejection::TooManyTokens("there are too many live tokens", next)
        }
        InsertRefused::Ended => {
            Rejection::LoginRefused("user was deleted, or its password changed, during the login")
        }
        InsertRefused::Unavailable(why) => Rejection::Unavailable(why),
    }
}

/// The user that `/v1/users/{name}` is about. It need not be a name that could be made
/// today: every user there is can be shown, changed and deleted.
pub(super) fn user_in(path: &str) -> Result<String, Rejection> {
    profiles::name_in_path(path).ok_or(Rejection::BadRequest("the user name is not UTF-8"))
}

pub(in crate::pipeline) async fn read(body: RequestBody) -> Result<Bytes, Rejection> {
    let handle: BodyHandle = body.handle();
    match Limited::new(body, MOST_BODY).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(_) => Err(match handle.failure() {
            Some(BodyFailure::TooSlow) => Rejection::TooSlow,
            Some(BodyFailure::Gone) => Rejection::BadRequest("the body broke off"),
            Some(BodyFailure::NoTurn) => Rejection::Overloaded,
            Some(BodyFailure::TooLarge) | None => Rejection::TooLarge,
        }),
    }
}

fn json(status: StatusCode, text: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert(http::header::SERVER, HeaderValue::from_static("Server"));
    response
}
