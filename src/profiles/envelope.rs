//! JSON of responses from the users node: the `meta` member, and the escapes of the service that
//! the gateway stands in for.

use serde::Serialize;
use serde_json::{Value, json};

/// The `meta` member of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EnvelopeMeta {
    pub version: &'static str,
    pub api_status: &'static str,
}

/// The members of `payload`, followed by `meta` where the profile has one: compact and escaped.
pub fn body(payload: Value, meta: Option<EnvelopeMeta>) -> String {
    let mut members = match payload {
        Value::Object(members) => members,
        _ => serde_json::Map::new(),
    };
    if let Some(meta) = meta {
        members.insert("meta".to_owned(), json!(meta));
    }
    escape(&Value::Object(members).to_string())
}

/// PHP's `JSON_HEX_*` escapes and `\/`, as captured. Outside strings none of these
/// characters occurs, so strings need not be told from the rest.
pub(super) fn escape(json: &str) -> String {
    let mut text = String::with_capacity(json.len() + 16);
    let mut rest = json;
    let is_special = |letter: u8| matches!(letter, b'\'' | b'<' | b'>' | b'&' | b'/' | b'\\');
    while let Some(at) = rest.bytes().position(is_special) {
        text.push_str(&rest[..at]);
        let letter = &rest[at..=at];
        rest = &rest[at + 1..];
        match letter {
            "'" => text.push_str("\\u0027"),
            "<" => text.push_str("\\u003C"),
            ">" => text.push_str("\\u003E"),
            "&" => text.push_str("\\u0026"),
            "/" => text.push_str("\\/"),
            _ => {
                // A backslash, which takes the letter behind it along.
                let escaped = rest.chars().next();
                rest = &rest[escaped.map_or(0, char::len_utf8)..];
                match escaped {
                    Some('"') => text.push_str("\\u0022"),
                    escaped => {
                        text.push('\\');
                        text.extend(escaped);
                    }
                }
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_as_long_as_the_captured_one() {
        let meta = EnvelopeMeta {
            version: "2.33.4",
            api_status: "stable",
        };
        let text = body(
            json!({ "errors": [{ "code": 1, "details": "it's" }] }),
            Some(meta),
        );
        assert_eq!(
            text,
            r#"{"errors":[{"code":1,"details":"it\u0027s"}],"meta":{"version":"2.33.4","api_status":"stable"}}"#
        );
    }
}
