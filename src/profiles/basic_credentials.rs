//! User name and password as HTTP Basic carries them (RFC 7617).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::secret::Secret;

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
