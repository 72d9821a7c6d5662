//! What a request shows to say who it is, read in one place; and what is wrong with its
//! form. That much is told to the client, which sent it and can mend it; whether a
//! credential of good form is known is never told here.

use std::fmt;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

use crate::pipeline::headers::X_API_KEY;
use crate::profiles::{BadBasic, BasicCredentials};

/// A credential as presented, unchecked.
#[derive(Debug)]
pub(in crate::pipeline) enum PresentedCredential<'a> {
    Nothing,
    Bearer(&'a str),
    Key(&'a str),
    Basic,
}

/// Why a credential cannot even be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialFault {
    /// Two of them, of whatever kind: which one counts is not guessed.
    Several,
    Empty,
    NotText,
    UnknownScheme,
    /// A password where a token or key is wanted.
    PasswordHere,
    /// A login shows no password.
    NoPassword,
    NotBasic,
    NotUtf8,
}

/// For the client. Nothing of what it sent is repeated.
impl fmt::Display for CredentialFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Several => {
                "More than one credential: send one Authorization field or one X-Api-Key field"
            }
            Self::Empty => "The credential is empty",
            Self::NotText => "The credential has a character that is not printable ASCII",
            Self::UnknownScheme => "Authorization must be Bearer or Apikey here",
            Self::PasswordHere => "Basic is for the login: send its token as Bearer",
            Self::NoPassword => "A login needs Authorization: Basic with name and password",
            Self::NotBasic => "What follows Basic is not the base64 of name:password",
            Self::NotUtf8 => "Name and password must be UTF-8 before they are base64 (RFC 7617)",
        })
    }
}

/// At most one field of each of these, and one in all (RFC 6750, 2: one method).
fn the_one(
    headers: &HeaderMap,
) -> Result<(Option<&HeaderValue>, Option<&HeaderValue>), CredentialFault> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let mut keys = headers.get_all(X_API_KEY).iter();
    let found = (fields.next(), keys.next());
    if fields.next().is_some() || keys.next().is_some() || matches!(found, (Some(_), Some(_))) {
        return Err(CredentialFault::Several);
    }
    Ok(found)
}

fn text(field: &HeaderValue) -> Result<&str, CredentialFault> {
    let text = field.to_str().map_err(|_| CredentialFault::NotText)?;
    Ok(text.trim())
}

/// Scheme names are case-insensitive (RFC 9110, 11.1).
fn scheme_and_rest(text: &str) -> (&str, &str) {
    let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
    (scheme, rest.trim_start())
}

/// The one credential of a request.
pub(in crate::pipeline) fn credential(
    headers: &HeaderMap,
) -> Result<PresentedCredential<'_>, CredentialFault> {
    let field = match the_one(headers)? {
        (None, None) => return Ok(PresentedCredential::Nothing),
        (_, Some(key)) => {
            let key = text(key)?;
            return match key.is_empty() {
                true => Err(CredentialFault::Empty),
                false => Ok(PresentedCredential::Key(key)),
            };
        }
        (Some(field), None) => field,
    };
    let (scheme, rest) = scheme_and_rest(text(field)?);
    match scheme {
        _ if rest.is_empty() => Err(CredentialFault::Empty),
        _ if scheme.eq_ignore_ascii_case("bearer") => Ok(PresentedCredential::Bearer(rest)),
        _ if scheme.eq_ignore_ascii_case("apikey") => Ok(PresentedCredential::Key(rest)),
        _ if scheme.eq_ignore_ascii_case("basic") => Ok(PresentedCredential::Basic),
        _ => Err(CredentialFault::UnknownScheme),
    }
}

/// The name and password of a login. A key beside them says nothing: it goes nowhere.
pub(in crate::pipeline) fn basic(headers: &HeaderMap) -> Result<BasicCredentials, CredentialFault> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let field = fields.next().ok_or(CredentialFault::NoPassword)?;
    if fields.next().is_some() {
        return Err(CredentialFault::Several);
    }
    let (scheme, encoded) = scheme_and_rest(text(field)?);
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(CredentialFault::NoPassword);
    }
    BasicCredentials::parse(encoded).map_err(|bad| match bad {
        BadBasic::NotUtf8 => CredentialFault::NotUtf8,
        BadBasic::NotBase64 | BadBasic::NoColon => CredentialFault::NotBasic,
    })
}

/// Whether there is a credential, read as `authenticate` reads it.
pub(in crate::pipeline) fn is_presented(headers: &HeaderMap) -> Result<bool, CredentialFault> {
    credential(headers).map(|found| !matches!(found, PresentedCredential::Nothing))
}

/// The text of the one credential, for `fuzz/`.
#[cfg(fuzzing)]
pub(in crate::pipeline) fn credential_of(
    headers: &HeaderMap,
) -> Result<Option<&str>, CredentialFault> {
    Ok(match credential(headers)? {
        PresentedCredential::Nothing | PresentedCredential::Basic => None,
        PresentedCredential::Bearer(text) | PresentedCredential::Key(text) => Some(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_read_once_and_only_once() {
        let mut headers = HeaderMap::new();
        assert!(matches!(
            credential(&headers),
            Ok(PresentedCredential::Nothing)
        ));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("bEaReR  abc "));
        assert!(matches!(
            credential(&headers),
            Ok(PresentedCredential::Bearer("abc"))
        ));
        headers.insert(X_API_KEY, HeaderValue::from_static("k"));
        assert_eq!(credential(&headers).unwrap_err(), CredentialFault::Several);
        headers.remove(AUTHORIZATION);
        assert!(matches!(
            credential(&headers),
            Ok(PresentedCredential::Key("k"))
        ));
        headers.insert(X_API_KEY, HeaderValue::from_static(" "));
        assert_eq!(credential(&headers).unwrap_err(), CredentialFault::Empty);
        headers.remove(X_API_KEY);
        for (bad, fault) in [
            ("Bearer", CredentialFault::Empty),
            ("Bearer ", CredentialFault::Empty),
            ("Negotiate x", CredentialFault::UnknownScheme),
            ("abc", CredentialFault::Empty),
        ] {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(bad));
            assert_eq!(credential(&headers).unwrap_err(), fault, "{bad}");
        }
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        assert_eq!(credential(&headers).unwrap_err(), CredentialFault::Several);
    }

    #[test]
    fn a_login_that_cannot_be_read_says_what_is_wrong_with_it() {
        for (field, fault) in [
            ("Bearer x", CredentialFault::NoPassword),
            ("Basic", CredentialFault::NotBasic),
            ("Basic !!", CredentialFault::NotBasic),
            ("Basic bm9jb2xvbg==", CredentialFault::NotBasic),
            (
                "Basic YWRtaW46eA==, charset=\"UTF-8\"",
                CredentialFault::NotBasic,
            ),
            // admin:größe in Latin-1.
            ("Basic YWRtaW46Z3L232U=", CredentialFault::NotUtf8),
        ] {
            let mut headers = HeaderMap::new();
            assert_eq!(basic(&headers).unwrap_err(), CredentialFault::NoPassword);
            headers.insert(AUTHORIZATION, HeaderValue::from_static(field));
            assert_eq!(basic(&headers).unwrap_err(), fault, "{field}");
        }
    }
}
