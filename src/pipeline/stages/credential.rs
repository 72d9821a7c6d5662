//! Reads the credential of a request, and finds what is wrong with its form.

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

use crate::pipeline::credential_fault::CredentialFault;
use crate::pipeline::headers::X_API_KEY;
use crate::profiles::{BadBasic, BasicCredentials};

/// A credential as presented, not verified.
#[derive(Debug)]
pub(super) enum PresentedCredential<'a> {
    Nothing,
    Bearer(&'a str),
    Key(&'a str),
    Basic,
}

/// The field that carries the credential.
enum CredentialField<'a> {
    Absent,
    Authorization(&'a HeaderValue),
    ApiKey(&'a HeaderValue),
}

/// A request may have one credential field (RFC 6750, 2).
fn credential_field(headers: &HeaderMap) -> Result<CredentialField<'_>, CredentialFault> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let mut keys = headers.get_all(X_API_KEY).iter();
    let found = match (fields.next(), keys.next()) {
        (None, None) => return Ok(CredentialField::Absent),
        (Some(_), Some(_)) => return Err(CredentialFault::Several),
        (Some(field), None) => CredentialField::Authorization(field),
        (None, Some(key)) => CredentialField::ApiKey(key),
    };
    if fields.next().is_some() || keys.next().is_some() {
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
pub(super) fn credential(headers: &HeaderMap) -> Result<PresentedCredential<'_>, CredentialFault> {
    let field = match credential_field(headers)? {
        CredentialField::Absent => return Ok(PresentedCredential::Nothing),
        CredentialField::ApiKey(key) => {
            let key = text(key)?;
            return match key.is_empty() {
                true => Err(CredentialFault::Empty),
                false => Ok(PresentedCredential::Key(key)),
            };
        }
        CredentialField::Authorization(field) => field,
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

/// The name and password of a login. An API key beside them is ignored; it is not forwarded.
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

/// Whether the request presents a credential.
pub(in crate::pipeline) fn is_presented(headers: &HeaderMap) -> Result<bool, CredentialFault> {
    credential(headers).map(|found| !matches!(found, PresentedCredential::Nothing))
}

/// The text of the credential, for `fuzz/`.
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
    fn a_request_has_at_most_one_credential() {
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
    fn a_malformed_login_names_its_fault() {
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
