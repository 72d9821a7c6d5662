//! What `fuzz/` calls: the parsers of the request target and of the credential.

use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::headers;
use super::stages::{credential, request_target};

/// A path that passes must mean the same to every parser.
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
    // Also for parsers that remove the parameters of a segment.
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

/// At most one credential is found, whatever the fields are.
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
