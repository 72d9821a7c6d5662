//! Checks request targets. The path that is matched is forwarded byte for byte; a target that two
//! parsers could read differently is rejected, not repaired.

use http::Uri;
use percent_encoding::percent_decode_str;

use crate::config::{AllowedFields, METHOD_PARAMETER};
use crate::pipeline::reject::Rejection;
use crate::profiles;

/// The path of a request target that has one meaning only.
pub(in crate::pipeline) fn checked(uri: &Uri) -> Result<&str, Rejection> {
    let path = uri.path();
    if !path.starts_with('/') {
        return Err(Rejection::BadRequest("the request target must be a path"));
    }
    if path.len() > 8 * 1024 {
        return Err(Rejection::BadRequest("the path is too long"));
    }
    let bytes = path.as_bytes();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() | (*byte == b'_') | (*byte == b'-');
    let mut after_slash = false;
    let mut beyond_ascii = false;
    for (index, byte) in bytes.iter().enumerate() {
        match byte {
            b'/' if after_slash => {
                return Err(Rejection::BadRequest("the path has an empty segment"));
            }
            b'.' if after_slash && is_dot_segment(&bytes[index..]) => {
                return Err(Rejection::BadRequest("the path has a dot segment"));
            }
            b';' if after_slash => {
                return Err(Rejection::BadRequest("the path has an empty segment"));
            }
            b'%' if after_slash && is_semicolon(&bytes[index..]) => {
                return Err(Rejection::BadRequest("the path has an empty segment"));
            }
            b'%' => beyond_ascii |= check_escape(&bytes[index + 1..])? >= 0x80,
            byte if is_plain(byte) => {}
            b'\\' | ..=b' ' | 0x7f.. => {
                return Err(Rejection::BadRequest(
                    "the path has a character that must be encoded",
                ));
            }
            _ => {}
        }
        after_slash = *byte == b'/';
    }
    // Overlong encodings of a dot or a slash are not UTF-8, and neither are legacy code pages.
    if beyond_ascii && percent_decode_str(path).decode_utf8().is_err() {
        return Err(Rejection::BadRequest("the path is not UTF-8"));
    }
    Ok(path)
}

/// Rejects a query with the parameter by which frameworks replace the method: the route was chosen
/// by the method of the request line. The parameter is not removed, since the query may be signed.
/// Forms in the content are not checked.
pub(super) fn check_query(uri: &Uri, allowed: &AllowedFields) -> Result<(), Rejection> {
    let Some(query) = uri.query() else {
        return Ok(());
    };
    let names = || query.split(['&', ';']).map(|pair| pair.split('=').next());
    if names().flatten().any(is_method_parameter) && !allowed.contains(METHOD_PARAMETER) {
        return Err(Rejection::BadRequest(
            "the query has a parameter _method; allow_fields lets it pass",
        ));
    }
    Ok(())
}

/// Compares as PHP and other parsers do: they skip leading white space and brackets, take `.` and
/// space for `_`, stop at a bracket or NUL, and ignore case.
fn is_method_parameter(name: &str) -> bool {
    let decoded = percent_decode_str(name).map(|byte| if byte == b'+' { b' ' } else { byte });
    let mut bytes = decoded.skip_while(|byte| matches!(byte, 0..=b' ' | b'['));
    let mut is_next = |wanted: u8| match bytes.next() {
        Some(b'.' | b' ') => wanted == b'_',
        Some(byte) => byte.eq_ignore_ascii_case(&wanted),
        None => false,
    };
    METHOD_PARAMETER.bytes().all(&mut is_next)
        && matches!(bytes.next(), None | Some(0 | b' ' | b'[' | b']'))
}

/// Whether `rest`, which starts with a dot, starts with a dot segment. Servers that support path
/// parameters remove them before they resolve dot segments, so a segment with parameters counts.
fn is_dot_segment(rest: &[u8]) -> bool {
    let ([b'.', b'.', after @ ..] | [b'.', after @ ..]) = rest else {
        return false;
    };
    matches!(after, [] | [b'/' | b';', ..]) || is_semicolon(after)
}

fn is_semicolon(escaped: &[u8]) -> bool {
    matches!(escaped, [b'%', b'3', b'b' | b'B', ..])
}

/// The byte that an escape stands for. `after`: what follows the percent sign.
fn check_escape(after: &[u8]) -> Result<u8, Rejection> {
    let digit = |index: usize| char::from(*after.get(index)?).to_digit(16);
    let (Some(high), Some(low)) = (digit(0), digit(1)) else {
        return Err(Rejection::BadRequest("the path has a broken escape"));
    };
    match u8::try_from(high * 16 + low).unwrap_or(0) {
        b'/' | b'\\' | b'.' => Err(Rejection::BadRequest(
            "the path has an escaped slash, dot or backslash",
        )),
        b'%' if profiles::is_escaped_twice(&after[2..]) => {
            Err(Rejection::BadRequest("the path is escaped twice"))
        }
        0..=0x1f | 0x7f => Err(Rejection::BadRequest(
            "the path has an escaped control character",
        )),
        byte => Ok(byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_two_parsers_could_read_differently_are_rejected() {
        let refused = [
            "/v1/../v1/users",
            "/v1/./users",
            "/..",
            "/.",
            "/v1//users",
            "//host/v1",
            "/v1%2fusers",
            "/v1%2Fusers",
            "/%2e%2e/v1",
            "/v1/%2E/x",
            "/v1\\users",
            "/v1%5cusers",
            "/v1%00",
            "/v1%0a",
            "/v1%",
            "/v1%2",
            "/v1%zz",
            "/v1%252f",
            "/v1%25%32f",
            "/v1%25u002f",
            "/health/..;/v1/users",
            "/health/..;a=b/v1/users",
            "/health/.;/v1/users",
            "/health/..;",
            "/health/..%3b/v1/users",
            "/health/..%3Bx/v1/users",
            "/health/;/v1/users",
            "/health/;x=y/v1/users",
            "/;/v1",
            "/health/%3b/v1/users",
            "/health/%c0%ae%c0%ae/v1/users",
            "/health/%C0%AF/v1",
            "/health/%e0%80%ae%e0%80%ae/v1",
            "/health/%f0%80%80%ae/v1",
            "/health/%ae%ae/v1",
            "/health/%ff",
            "/health/%ed%a0%80",
            "/caf%e9",
        ];
        for path in refused {
            if let Ok(uri) = path.parse::<Uri>() {
                assert!(checked(&uri).is_err(), "{path}");
            }
        }
    }

    #[test]
    fn unusual_paths_with_one_meaning_pass() {
        for path in [
            "/",
            "/v1/users",
            "/v1/users/",
            "/v1/a..b",
            "/v1/.hidden",
            "/v1/a%20b",
            "/v1/a@b;c=d",
            "/v1/100%25",
            "/v1/100%25sure",
            "/v1/..a;b",
            "/v1/...;b",
            "/caf%c3%a9",
            "/%F0%9F%98%80",
        ] {
            assert!(checked(&path.parse().unwrap()).is_ok(), "{path}");
        }
    }

    #[test]
    fn a_query_that_replaces_the_method_is_rejected_unless_it_is_allowed() {
        let allowed = AllowedFields::new(vec![METHOD_PARAMETER.to_owned()]);
        for query in [
            "_method=DELETE",
            "a=b&_method=DELETE",
            "a=b;_method=PUT",
            "%5fmethod=DELETE",
            "_%6Dethod=DELETE",
            "_METHOD=DELETE",
            ".method=DELETE",
            "%20_method=DELETE",
            "+_method=DELETE",
            "_method%00x=DELETE",
            "[_method]=DELETE",
            "%5b_method%5d=DELETE",
            "_method[]=DELETE",
            "%2emethod=x",
            "_method",
        ] {
            let uri: Uri = format!("/v1/users?{query}").parse().unwrap();
            assert!(
                check_query(&uri, &AllowedFields::default()).is_err(),
                "{query}"
            );
            assert!(check_query(&uri, &allowed).is_ok(), "{query}");
        }
        for query in [
            "",
            "a=_method",
            "method=DELETE",
            "_methods=x",
            "x_method=y",
            "_metho",
        ] {
            let uri: Uri = format!("/v1/users?{query}").parse().unwrap();
            assert!(
                check_query(&uri, &AllowedFields::default()).is_ok(),
                "{query}"
            );
        }
    }
}
