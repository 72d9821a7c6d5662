//! Doors for `fuzz/`: what reads a request's line and credential.

use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::headers;
use super::stages::{credential, request_target};

/// A path that passes means the same to whoever reads it after us.
pub fn request_target(bytes: &[u8]) {
    let Ok(uri) = Uri::try_from(bytes) else {
        return;
    };
    let _ = headers::host(&uri, &HeaderMap::new());
    let Ok(path) = request_target::checked(&uri) else {
        return;
    };
    let decoded: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
    let text = String::from_utf8(decoded).expect("a path is UTF-8");
    assert!(path.starts_with('/'));
    // Also for who takes parameters off a segment.
    let is_odd = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    assert!(!text.split('/').any(is_odd), "{path:?} climbs");
    assert_eq!(
        text.matches('/').count(),
        path.matches('/').count(),
        "{path:?} hides a slash"
    );
    assert!(!text.contains("//") && !text.contains('\\'), "{path:?}");
    assert!(!text.contains(|c: char| c.is_ascii_control()), "{path:?}");
}

/// At most one credential is found, whatever stands in the fields.
pub fn credential(bytes: &[u8]) {
    let mut fields = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(8) {
        let (name, value) = match line.first() {
            Some(b'k') => ("x-api-key", &line[1..]),
            _ => ("authorization", line),
        };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            fields.append(HeaderName::from_static(name), value);
        }
    }
    let count = fields.len();
    let found = credential::credential_of(&fields);
    assert!(found.is_err() || count <= 1, "one of {count} was chosen");
    if let Ok(Some(text)) = found {
        assert!(!text.is_empty());
    }
}
