//! The users node when the gateway owns the users (`directory = "gateway"`): login, logout and users
//! calls, answered in the format of the upstream's users node.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde::Deserialize;

use crate::config::{OnPasswordChange, UsersCall};
use crate::identity::{
    ChangeError, ChangedBy, Client, CreateError, LoginDenied, RemoveError, UserDirectory,
};
use crate::metrics::{ClientLoginOutcome, Metrics};
use crate::pipeline::body::client_response_body::ResponseBody;
use crate::pipeline::body::request_body::RequestBody;
use crate::pipeline::limit::{Limiter, LoginAttempt, LoginLimited, RateAdmission, RateSubject};
use crate::pipeline::reject::Rejection;
use crate::pipeline::route_table::RouteEntry;
use crate::pipeline::stages::credential::basic;
use crate::profiles::{self, EnvelopeMeta, LoginBody, Role, UserEntry};
use crate::secret::Secret;
use crate::token::{
    GrantRequest, InsertRefused, RevokeCause, Token, TokenDigest, TokenOrigin, TokenStore,
};

/// The users node, as one request sees it.
#[derive(Debug)]
pub(super) struct UsersNode<'a> {
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
pub(super) struct UsersNodeCall<'a> {
    pub kind: UsersCall,
    pub client: &'a Client,
    /// Digest of the client's token, if it presented a token.
    pub token: Option<TokenDigest>,
    pub origin: std::net::IpAddr,
    pub route: &'a RouteEntry,
    pub path: &'a str,
    pub headers: &'a HeaderMap,
}

impl UsersNode<'_> {
    pub(super) async fn answer(
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
        let outcome = self.try_login(call, body).await;
        self.metrics.client_logins.add(match &outcome {
            Ok(_) => ClientLoginOutcome::Ok,
            Err(Rejection::LoginRefused(_) | Rejection::BadLogin(_)) => ClientLoginOutcome::Refused,
            Err(Rejection::PasswordChangeRequired) => ClientLoginOutcome::PasswordChange,
            Err(Rejection::TooMany(_) | Rejection::TooManyTokens(..)) => {
                ClientLoginOutcome::Limited
            }
            Err(_) => ClientLoginOutcome::Failed,
        });
        outcome
    }

    async fn try_login(
        &self,
        call: &UsersNodeCall<'_>,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let basic = basic(call.headers).map_err(Rejection::BadLogin)?;
        // Read first, so that a slow client takes no slot among the logins.
        let bytes = body.read_whole().await?;
        let admitted = admit_login(self.limiter, call, &basic.username).await?;
        // Read before the password is checked: a login that started before its user was deleted must
        // not create a token afterwards.
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
        admitted.attempt.succeeded();
        match profiles::login_body(&bytes).map_err(|_| Rejection::NotJson)? {
            LoginBody::NewPassword(password) => {
                let by = ChangedBy::User(&verified);
                self.set_password(&basic.username, password, by).await?;
                verified = verified.with_new_password();
                // The token of this login does not exist yet.
                let ended = self.tokens.revoke_user(&basic.username).await;
                ended.map_err(Rejection::Unavailable)?;
            }
            _ if verified.must_change => return Err(Rejection::PasswordChangeRequired),
            LoginBody::Nothing | LoginBody::Other => {}
        }
        let token = Token::mint();
        let grant = GrantRequest {
            user: &basic.username,
            role: Some(verified.role),
            lifetime: self.settings.token_lifetime,
            origin: TokenOrigin::Minted,
            epoch,
            revision: self.users.stored_revision(&verified),
        };
        let ends = self
            .tokens
            .insert(token.digest(), grant)
            .await
            .map_err(token_refused)?;
        // A change of the password since its check has ended the tokens that existed then, perhaps
        // before this one was inserted.
        if !self.users.is_current(&basic.username, &verified) {
            self.tokens.revoke(&token.digest()).await;
            return Err(Rejection::LoginRefused("password was changed meanwhile"));
        }
        let text = profiles::login_reply(token.secret(), ends.unix_seconds(), self.meta);
        let mut response = json(StatusCode::OK, text);
        admitted.rate.put(response.headers_mut());
        Ok(response)
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

    /// Ends all tokens of the user.
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
        let bytes = body.read_whole().await?;
        let request: NewUserBody =
            serde_json::from_slice(&bytes).map_err(|_| Rejection::NotJson)?;
        let name = request.username.ok_or(Rejection::Missing("username"))?;
        let password = request.password.ok_or(Rejection::Missing("password"))?;
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
        Ok(json(StatusCode::CREATED, self.user_entry(&name, None)))
    }

    fn show(&self, call: &UsersNodeCall<'_>) -> Result<Response<ResponseBody>, Rejection> {
        let name = self.own_or_admin(call)?;
        let role = self.users.show(&name).ok_or(Rejection::NoSuchUser)?;
        Ok(json(StatusCode::OK, self.user_entry(&name, Some(role))))
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
        let bytes = body.read_whole().await?;
        let request: NewPasswordBody =
            serde_json::from_slice(&bytes).map_err(|_| Rejection::NotJson)?;
        let password = request.password.ok_or(Rejection::Missing("password"))?;
        self.set_password(&name, Secret::new(password), ChangedBy::Admin)
            .await?;
        let cause = revoke_cause(call, &name, self.settings.on_password_change);
        let ended = self.tokens.end_tokens(&name, cause).await;
        ended.map_err(Rejection::Unavailable)?;
        Ok(json(StatusCode::OK, self.user_entry(&name, None)))
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
        Ok(json(StatusCode::OK, self.user_entry(&name, None)))
    }

    fn user_entry(&self, username: &str, role: Option<Role>) -> String {
        profiles::user_reply(UserEntry { username, role }, self.meta)
    }

    /// The user that a call is about. An admin may name any user, a user only itself.
    fn own_or_admin(&self, call: &UsersNodeCall<'_>) -> Result<String, Rejection> {
        let name = user_in(call.path)?;
        let allowed = match call.client {
            Client::User {
                role: Some(Role::Admin),
                ..
            } => true,
            Client::User { name: own, .. } => **own == *name,
            // The route has accepted the key by its role; a key has no user of its own.
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

/// Which tokens of a user end when this call sets a new password.
pub(super) fn revoke_cause(
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

/// A login that has passed the rate limits.
pub(super) struct AdmittedLogin {
    pub(super) attempt: LoginAttempt,
    pub(super) rate: RateAdmission,
}

/// Applies the limits of the sender first: refused attempts must not use up the limit that all
/// clients of the route share.
pub(super) async fn admit_login(
    limiter: &Limiter,
    call: &UsersNodeCall<'_>,
    username: &str,
) -> Result<AdmittedLogin, Rejection> {
    let too_many = |limit| Rejection::TooMany(Box::new(limit));
    let attempt = limiter.admit_login(call.origin, username).await;
    let attempt = attempt.map_err(|limited| match limited {
        LoginLimited::TooMany(limit) => too_many(limit),
        LoginLimited::Overloaded => Rejection::Overloaded,
    })?;
    let subject = RateSubject {
        client: call.client,
        peer: call.origin,
        class: &call.route.class,
        class_bucket: &call.route.class_bucket,
        upstream: call.route.destination(),
    };
    let rate = limiter.admit(subject, call.route.max_wait).await;
    Ok(AdmittedLogin {
        attempt,
        rate: rate.map_err(too_many)?,
    })
}

/// The rejection of a valid login that gets no token.
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

/// The user name in the path of a users call. It is not checked against the rules for new names, so
/// that every existing user can be shown, changed and deleted.
pub(super) fn user_in(path: &str) -> Result<String, Rejection> {
    profiles::name_in_path(path).ok_or(Rejection::BadRequest("the user name is not UTF-8"))
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
