//! Bodies of the users node: what a login asks for, and what the gateway replies.

use serde_json::{Value, json};

use super::envelope::{EnvelopeMeta, body};
use super::expiry::format_expiry;
use super::role::Role;
use crate::secret::Secret;

/// What a login's body asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum LoginBody {
    /// Empty, `null`, or `{}`.
    Nothing,
    /// A JSON body without `new_password`.
    Other,
    NewPassword(Secret),
}

#[derive(Debug, thiserror::Error)]
#[error("login body is not JSON")]
pub struct NotJson(#[source] serde_json::Error);

/// Reads a login's body; clients send it empty, as `{}`, as `null`, or with `new_password`.
pub fn login_body(bytes: &[u8]) -> Result<LoginBody, NotJson> {
    if bytes.trim_ascii().is_empty() {
        return Ok(LoginBody::Nothing);
    }
    let value: Value = serde_json::from_slice(bytes).map_err(NotJson)?;
    Ok(match &value {
        Value::Null => LoginBody::Nothing,
        Value::Object(members) if members.is_empty() => LoginBody::Nothing,
        Value::Object(members) => match members.get("new_password") {
            Some(Value::String(password)) => LoginBody::NewPassword(Secret::new(password.as_str())),
            _ => LoginBody::Other,
        },
        _ => LoginBody::Other,
    })
}

/// The body that answers a good login. It contains the token: treat it as a secret.
pub fn login_reply(token: &Secret, expires: i64, meta: Option<EnvelopeMeta>) -> String {
    let user = json!({ "token": token.expose(), "expires_after": format_expiry(expires) });
    body(json!({ "users": [user] }), meta)
}

/// One user as the users node shows it.
#[derive(Clone, Copy, Debug)]
pub struct UserEntry<'a> {
    pub username: &'a str,
    /// Shown by GET only, as a string under `ROLES`.
    pub role: Option<Role>,
}

/// `{"users":[{...}],"meta":{...}}`.
pub fn user_reply(entry: UserEntry<'_>, meta: Option<EnvelopeMeta>) -> String {
    let user = match entry.role {
        Some(role) => json!({ "ROLES": role.text(), "username": entry.username }),
        None => json!({ "username": entry.username }),
    };
    body(json!({ "users": [user] }), meta)
}

/// `{"meta":{...}}`, the body that answers a logout.
pub fn meta_reply(meta: Option<EnvelopeMeta>) -> String {
    body(json!({}), meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_body_may_be_empty_null_or_an_object() {
        for nothing in ["", "  \r\n", "null", "{}"] {
            assert_eq!(
                login_body(nothing.as_bytes()).unwrap(),
                LoginBody::Nothing,
                "{nothing}"
            );
        }
        assert_eq!(login_body(b"{\"a\":1}").unwrap(), LoginBody::Other);
        assert_eq!(
            login_body(b"{\"new_password\":7}").unwrap(),
            LoginBody::Other
        );
        assert_eq!(
            login_body(b"{\"new_password\":\"x\"}").unwrap(),
            LoginBody::NewPassword(Secret::new("x"))
        );
        assert!(login_body(b"{").is_err());
    }
}
