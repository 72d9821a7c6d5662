//! Login, logout, users (protocol sheet, section 1).

use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{HeaderValue, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::super::counts::add;
use super::super::directory::PasswordVerdict;
use super::super::faults::{ExpiryForm, LoginResponse, LogoutScope, Switches, TokenForm};
use super::super::issued_tokens::MintedToken;
use super::super::node_call::{DroppedConnection, NodeCall, bearer};
use super::super::node_reply::{Origin, Reply, forbidden, overloaded, too_many, unauthorized};
use super::super::reply_body::Body;
use super::super::webapp_state::WebappState;
use super::{either, not_json, object, read, text};
use crate::profiles::whatsapp::{BASIC_CHALLENGE, ErrorCode, WEBAPP_META};
use crate::profiles::{
    BasicCredentials, LoginBody, UserEntry, check_name, check_password, format_expiry, login_body,
    meta_reply, user_reply,
};
use crate::secret::Secret;

const ORIGIN: Origin = Origin::Webapp;

pub(in super::super) async fn login(
    webapp: &WebappState,
    headers: &HeaderMap,
    incoming: Incoming,
    switches: &Switches,
) -> Result<Reply, DroppedConnection> {
    let html = "<!DOCTYPE html><html><body><h1>Welcome</h1></body></html>";
    let reply = match switches.login_response {
        LoginResponse::Never => return pending().await,
        LoginResponse::Status(status) => refusal(status),
        LoginResponse::PasswordChangeRequired => change_required(),
        LoginResponse::Html => Reply::typed(ORIGIN, StatusCode::OK, "text/html", Body::whole(html)),
        LoginResponse::EmptyBody => Reply::text(ORIGIN, StatusCode::OK, String::new()),
        LoginResponse::Normal => grant(webapp, headers, incoming, switches).await,
        LoginResponse::CutInMiddle => {
            let mut reply = grant(webapp, headers, incoming, switches).await;
            reply.body = reply.body.cut();
            reply
        }
        LoginResponse::TenMegabytes => padded(grant(webapp, headers, incoming, switches).await),
    };
    if reply.status == StatusCode::OK {
        add(&webapp.counts.logins_granted);
    }
    // The pause is after the token was created, so that changes in the meantime (a new password, all
    // tokens removed) apply to it.
    sleep(Duration::from_millis(switches.login_takes_ms)).await;
    if reply.status == StatusCode::UNAUTHORIZED {
        return Ok(reply.header(header::WWW_AUTHENTICATE, BASIC_CHALLENGE));
    }
    Ok(reply)
}

async fn grant(
    webapp: &WebappState,
    headers: &HeaderMap,
    incoming: Incoming,
    switches: &Switches,
) -> Reply {
    let Some(basic) = headers.get(header::AUTHORIZATION).and_then(basic) else {
        return unauthorized();
    };
    let verdict = webapp.directory.check(&basic.username, &basic.password);
    if verdict == PasswordVerdict::Wrong {
        return unauthorized();
    }
    let bytes = match read(incoming, ORIGIN).await {
        Ok(bytes) => bytes,
        Err(reply) => return reply,
    };
    match login_body(&bytes) {
        Err(_) => return not_json(ORIGIN),
        Ok(LoginBody::NewPassword(new)) => {
            if let Err(bad) = check_password(&new) {
                return Reply::bad(ORIGIN, ErrorCode::ParameterInvalid, &bad.to_string());
            }
            webapp.directory.change_password(&basic.username, new);
        }
        Ok(_) if verdict == PasswordVerdict::MustChange => return change_required(),
        Ok(_) => {}
    }
    if switches.single_token {
        webapp.tokens.revoke_user(&basic.username);
    }
    let (now, lifetime) = (webapp.now(switches), switches.token_lifetime_seconds);
    match webapp.tokens.mint(&basic.username, now, lifetime) {
        Some(minted) => granted(&minted, now, switches),
        None => overloaded(),
    }
}

fn basic(value: &HeaderValue) -> Option<BasicCredentials> {
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("basic")
        .then(|| BasicCredentials::parse(rest).ok())?
}

fn granted(minted: &MintedToken, now: i64, switches: &Switches) -> Reply {
    let mut user = serde_json::Map::new();
    let token = match switches.token_form {
        TokenForm::Normal => Some(minted.token.expose().to_owned()),
        TokenForm::Missing => None,
        TokenForm::Empty => Some(String::new()),
        TokenForm::LineBreak => Some(format!("{}\r\nX-Smuggled: 1", minted.token.expose())),
    };
    let expiry = match switches.expiry_form {
        ExpiryForm::Normal => json!(format_expiry(minted.expires)),
        ExpiryForm::Past => json!(format_expiry(now - 86_400)),
        ExpiryForm::Garbage => json!("the day after tomorrow"),
        ExpiryForm::FarFuture => json!("9998-12-31 23:59:59+00:00"),
        ExpiryForm::Null | ExpiryForm::Missing => Value::Null,
    };
    user.extend(token.map(|token| ("token".to_owned(), json!(token))));
    if switches.expiry_form != ExpiryForm::Missing {
        user.insert("expires_after".to_owned(), expiry);
    }
    Reply::ok(ORIGIN, json!({ "users": [user] }))
}

/// The reply with ten megabytes before its first member.
fn padded(mut reply: Reply) -> Reply {
    if let Body::Whole(Some(bytes)) = &reply.body {
        let mut text = b"{\"padding\":\"".to_vec();
        text.resize(10_000_000, b'x');
        text.extend_from_slice(b"\",");
        text.extend_from_slice(bytes.get(1..).unwrap_or_default());
        reply.body = Body::whole(Bytes::from(text));
    }
    reply
}

fn change_required() -> Reply {
    Reply::error(
        ORIGIN,
        StatusCode::UNAUTHORIZED,
        ErrorCode::PasswordChangeRequired,
        "Password must be changed",
    )
}

fn refusal(status: u16) -> Reply {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match status {
        StatusCode::UNAUTHORIZED => unauthorized(),
        StatusCode::FORBIDDEN => forbidden("Access is denied"),
        StatusCode::NOT_FOUND => Reply::not_found(ORIGIN, "No such node"),
        StatusCode::TOO_MANY_REQUESTS => too_many(),
        StatusCode::SERVICE_UNAVAILABLE => overloaded(),
        StatusCode::OK => Reply::ok(ORIGIN, json!({})),
        other => Reply::error(ORIGIN, other, ErrorCode::Internal, "Failing on purpose"),
    }
}

pub(in super::super) async fn users(webapp: &WebappState, call: NodeCall) -> Reply {
    let path = call.segments();
    let verb = call.verb();
    match (verb, path.as_slice()) {
        (_, [_, _, "logout"]) => logout(webapp, &call),
        ("POST", _) => either(create(webapp, call.body).await),
        ("GET", [_, _, name]) => show(webapp, name),
        ("DELETE", [_, _, name]) => delete(webapp, name),
        (_, [_, _, name]) => {
            let name = (*name).to_owned();
            either(change(webapp, &name, call.body).await)
        }
        _ => unknown(),
    }
}

fn logout(webapp: &WebappState, call: &NodeCall) -> Reply {
    match call.switches.logout_scope {
        LogoutScope::User => {
            webapp.tokens.revoke_user(&call.user);
        }
        LogoutScope::Token => {
            webapp
                .tokens
                .revoke(bearer(&call.headers).unwrap_or_default());
        }
    }
    Reply::text(ORIGIN, StatusCode::OK, meta_reply(Some(WEBAPP_META)))
}

async fn create(webapp: &WebappState, incoming: Incoming) -> Result<Reply, Reply> {
    let members = object(incoming, ORIGIN).await?;
    let name = text(&members, "username", ORIGIN)?;
    let password = Secret::new(text(&members, "password", ORIGIN)?);
    let invalid = |details: String| Reply::bad(ORIGIN, ErrorCode::ParameterInvalid, &details);
    check_name(name).map_err(|bad| invalid(bad.to_string()))?;
    check_password(&password).map_err(|bad| invalid(bad.to_string()))?;
    if !webapp.directory.create(name, password) {
        return Err(Reply::error(
            ORIGIN,
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Internal,
            "Unable to create user. Already exist?",
        ));
    }
    Ok(entry(name, StatusCode::CREATED))
}

fn show(webapp: &WebappState, name: &str) -> Reply {
    let Some(role) = webapp.directory.role(name) else {
        return unknown();
    };
    let role = Some(role);
    let entry = UserEntry {
        username: name,
        role,
    };
    Reply::text(ORIGIN, StatusCode::OK, user_reply(entry, Some(WEBAPP_META)))
}

async fn change(webapp: &WebappState, name: &str, incoming: Incoming) -> Result<Reply, Reply> {
    let members = object(incoming, ORIGIN).await?;
    let password = Secret::new(text(&members, "password", ORIGIN)?);
    check_password(&password)
        .map_err(|bad| Reply::bad(ORIGIN, ErrorCode::ParameterInvalid, &bad.to_string()))?;
    if !webapp.directory.change_password(name, password) {
        return Err(unknown());
    }
    Ok(entry(name, StatusCode::OK))
}

fn delete(webapp: &WebappState, name: &str) -> Reply {
    if name == webapp.directory.first() {
        return forbidden("This user cannot be deleted");
    }
    if !webapp.directory.delete(name) {
        return unknown();
    }
    webapp.tokens.revoke_user(name);
    entry(name, StatusCode::OK)
}

fn entry(username: &str, status: StatusCode) -> Reply {
    let entry = UserEntry {
        username,
        role: None,
    };
    Reply::text(ORIGIN, status, user_reply(entry, Some(WEBAPP_META)))
}

fn unknown() -> Reply {
    Reply::not_found(ORIGIN, "User not found")
}
