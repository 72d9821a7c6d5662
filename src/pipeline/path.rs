//! Which request targets are routed at all. The path that is matched is the path
//! that is forwarded, byte for byte; whatever two parsers could read differently
//! is refused, not repaired.

use http::Uri;

use super::reject::Rejection;

/// The path of a request that may be routed.
pub(super) fn checked(uri: &Uri) -> Result<&str, Rejection> {
    let path = uri.path();
    if !path.starts_with('/') {
        return Err(Rejection::BadRequest("the request target must be a path"));
    }
    if path.len() > 8 * 1024 {
        return Err(Rejection::BadRequest("the path is too long"));
    }
    if path.contains("//") {
        return Err(Rejection::BadRequest("the path has an empty segment"));
    }
    let bytes = path.as_bytes();
    if bytes
        .iter()
        .any(|b| *b == b'\\' || *b <= b' ' || *b >= 0x7f)
    {
        return Err(Rejection::BadRequest(
            "the path has a character that must be encoded",
        ));
    }
    check_escapes(bytes)?;
    if path
        .split('/')
        .any(|segment| segment == "." || segment == "..")
    {
        return Err(Rejection::BadRequest("the path has a dot segment"));
    }
    Ok(path)
}

fn check_escapes(bytes: &[u8]) -> Result<(), Rejection> {
    for (at, _) in bytes.iter().enumerate().filter(|(_, b)| **b == b'%') {
        let pair = bytes.get(at + 1..at + 3).unwrap_or_default();
        let value = std::str::from_utf8(pair)
            .ok()
            .filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()) && pair.len() == 2)
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or(Rejection::BadRequest("the path has a broken escape"))?;
        match value {
            b'/' | b'\\' | b'.' | b'%' => {
                return Err(Rejection::BadRequest(
                    "the path has an escaped slash, dot, backslash or percent sign",
                ));
            }
            0..=0x1f | 0x7f => {
                return Err(Rejection::BadRequest(
                    "the path has an escaped control character",
                ));
            }
            _ => {}
        }
    }
    Ok(())
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
        ] {
            assert!(checked(&path.parse().unwrap()).is_ok(), "{path}");
        }
    }
}
