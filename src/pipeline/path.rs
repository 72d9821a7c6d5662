//! Which request targets are routed at all. The path that is matched is the path
//! that is forwarded, byte for byte; whatever two parsers could read differently
//! is refused, not repaired.

use http::Uri;

use super::reject::Rejection;
use crate::webapp;

/// The path of a request that may be routed.
pub(super) fn checked(uri: &Uri) -> Result<&str, Rejection> {
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
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'/' if after_slash => {
                return Err(Rejection::BadRequest("the path has an empty segment"));
            }
            b'.' if after_slash && is_dot_segment(&bytes[at..]) => {
                return Err(Rejection::BadRequest("the path has a dot segment"));
            }
            b'%' => check_escape(&bytes[at + 1..])?,
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
    Ok(path)
}

/// Whether `rest`, which begins with a dot, begins with a segment of one or two.
fn is_dot_segment(rest: &[u8]) -> bool {
    matches!(
        rest,
        [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..]
    )
}

fn check_escape(after: &[u8]) -> Result<(), Rejection> {
    let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
    let (Some(high), Some(low)) = (digit(0), digit(1)) else {
        return Err(Rejection::BadRequest("the path has a broken escape"));
    };
    match u8::try_from(high * 16 + low).unwrap_or(0) {
        b'/' | b'\\' | b'.' => Err(Rejection::BadRequest(
            "the path has an escaped slash, dot or backslash",
        )),
        b'%' if webapp::is_escaped_twice(&after[2..]) => {
            Err(Rejection::BadRequest("the path is escaped twice"))
        }
        0..=0x1f | 0x7f => Err(Rejection::BadRequest(
            "the path has an escaped control character",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
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
        ];
        for path in refused {
            if let Ok(uri) = path.parse::<Uri>() {
                assert!(checked(&uri).is_err(), "{path}");
            }
        }
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
        ] {
            assert!(checked(&path.parse().unwrap()).is_ok(), "{path}");
        }
    }
}
