//! The users node: login and its answer, names, passwords, Basic credentials.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::fmt::temporal::Pieces;
use serde_json::{Value, json};

use super::Role;
use super::envelope::{EnvelopeMeta, body};
use crate::secret::Secret;

/// Date and time with a space, whole seconds, always `+00:00`. Not RFC 3339, and
/// real parsers want exactly this (protocol sheet, section 1.1).
const EXPIRY_FORMAT: &str = "%Y-%m-%d %H:%M:%S+00:00";

/// `2021-07-25 08:50:48+00:00` for seconds since 1970.
pub fn format_expiry(unix_seconds: i64) -> String {
    let time = Timestamp::from_second(unix_seconds).unwrap_or(Timestamp::MAX);
    time.strftime(EXPIRY_FORMAT).to_string()
}

/// Seconds since 1970; any offset and a fraction are understood, as are RFC 3339's `T` and `Z`.
/// The last day of the year 9999, which services write for "never", is past what [`Timestamp`]
/// holds: it is read as the last moment that there is.
pub fn parse_expiry(text: &str) -> Option<i64> {
    let text = text.trim();
    let time = text
        .parse()
        .or_else(|_| Timestamp::strptime("%Y-%m-%d %H:%M:%S%.f%:z", text));
    match time {
        Ok(time) => Some(time.as_second()),
        Err(_) => {
            let pieces = Pieces::parse(text).ok()?;
            let is_complete = pieces.time().is_some() && pieces.offset().is_some();
            (is_complete && pieces.date().year() == 9999).then_some(Timestamp::MAX.as_second())
        }
    }
}

/// A user name and password from `Authorization: Basic`.
#[derive(Debug)]
pub struct BasicCredentials {
    pub username: String,
    pub password: Secret,
}

/// Why what follows `Basic` is no credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBasic {
    #[error("not base64")]
    NotBase64,
    /// RFC 7617, 2.1: a server that wants UTF-8 says so in its challenge.
    #[error("not UTF-8")]
    NotUtf8,
    #[error("no colon between name and password")]
    NoColon,
}

impl BasicCredentials {
    /// Reads the part after the scheme. Split at the first colon only (RFC 7617, 2):
    /// a password may contain more of them.
    pub fn parse(encoded: &str) -> Result<Self, BadBasic> {
        let bytes = STANDARD.decode(encoded.trim());
        let bytes = zeroize::Zeroizing::new(bytes.map_err(|_| BadBasic::NotBase64)?);
        let text = std::str::from_utf8(&bytes).map_err(|_| BadBasic::NotUtf8)?;
        let (username, password) = text.split_once(':').ok_or(BadBasic::NoColon)?;
        Ok(Self {
            username: username.to_owned(),
            password: Secret::new(password),
        })
    }

    /// The whole header value, `Basic ...`.
    pub fn header(username: &str, password: &Secret) -> Secret {
        let pair = zeroize::Zeroizing::new(format!("{username}:{}", password.expose()));
        Secret::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
    }
}

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "Password doesn't meet complexity requirements: length between 8 and 64 characters, \
     and at least one digit, one uppercase letter, one lowercase letter and one special character"
)]
pub struct BadPassword;

/// 8 to 64 characters with a digit, an upper, a lower and a special one.
pub fn check_password(password: &Secret) -> Result<(), BadPassword> {
    let text = password.expose();
    let has = |kind: fn(&char) -> bool| text.chars().any(|letter| kind(&letter));
    let good = (8..=64).contains(&text.chars().count())
        && has(char::is_ascii_digit)
        && has(char::is_ascii_uppercase)
        && has(char::is_ascii_lowercase)
        && has(char::is_ascii_punctuation);
    if good { Ok(()) } else { Err(BadPassword) }
}

/// The answer to a good login. The token stands in it: treat the text as a secret.
pub fn login_reply(token: &Secret, expires: i64, meta: EnvelopeMeta) -> String {
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
pub fn user_reply(entry: UserEntry<'_>, meta: EnvelopeMeta) -> String {
    let user = match entry.role {
        Some(role) => json!({ "ROLES": role.text(), "username": entry.username }),
        None => json!({ "username": entry.username }),
    };
    body(json!({ "users": [user] }), meta)
}

/// `{"meta":{...}}`, the answer to logout.
pub fn meta_reply(meta: EnvelopeMeta) -> String {
    body(json!({}), meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_has_the_captured_form_and_reads_back() {
        let text = format_expiry(1_627_203_048);
        assert_eq!(text, "2021-07-25 08:50:48+00:00");
        assert_eq!(parse_expiry(&text), Some(1_627_203_048));
        assert_eq!(parse_expiry("2021-07-25T08:50:48Z"), Some(1_627_203_048));
        assert_eq!(
            parse_expiry("2021-07-25 10:50:48.25+02:00"),
            Some(1_627_203_048)
        );
        for never in ["9999-12-31 23:59:59+00:00", "9999-12-31T23:59:59.999Z"] {
            assert_eq!(parse_expiry(never), Some(253_402_207_200), "{never}");
        }
        for bad in [
            "",
            "null",
            "tomorrow",
            "2021-07-25",
            "9999-12-31",
            "9999-12-32T00:00:00Z",
            "2021-13-25 08:50:48+00:00",
            "1627203048",
        ] {
            assert_eq!(parse_expiry(bad), None, "{bad}");
        }
    }

    #[test]
    fn basic_is_split_at_the_first_colon_only() {
        let header = BasicCredentials::header("admin", &Secret::new("a:b:c"));
        let basic =
            BasicCredentials::parse(header.expose().strip_prefix("Basic ").unwrap()).unwrap();
        assert_eq!(basic.username, "admin");
        assert_eq!(basic.password.expose(), "a:b:c");
        assert_eq!(
            BasicCredentials::parse("not base64!").unwrap_err(),
            BadBasic::NotBase64
        );
        let parsed = BasicCredentials::parse(&STANDARD.encode("nocolon"));
        assert_eq!(parsed.unwrap_err(), BadBasic::NoColon);
        let parsed = BasicCredentials::parse(&STANDARD.encode(b"gr\xf6\xdfe:x"));
        assert_eq!(parsed.unwrap_err(), BadBasic::NotUtf8);
    }

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

    #[test]
    fn the_password_rule_wants_all_four_kinds() {
        for good in ["Passw0rd!", "aB3~aB3~"] {
            assert!(check_password(&Secret::new(good)).is_ok(), "{good}");
        }
        let long = format!("aB3~{}", "x".repeat(61));
        for bad in [
            "aB3~",
            "password1!",
            "PASSWORD1!",
            "Password!",
            "Password1",
            long.as_str(),
        ] {
            assert!(check_password(&Secret::new(bad)).is_err(), "{bad}");
        }
    }
}
