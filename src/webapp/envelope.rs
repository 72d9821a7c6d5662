//! The envelope around every answer, and the error codes.

use serde::Serialize;
use serde_json::{Value, json};

/// Error codes the gate and the emulator use (protocol sheet, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    Generic,
    MessageTooLong,
    AccessDenied,
    NotFound,
    ParameterMissing,
    ParameterInvalid,
    NotReady,
    UserInvalid,
    Internal,
    TooManyRequests,
    Overloaded,
    PasswordChangeRequired,
    InvalidRequest,
}

impl ErrorCode {
    pub fn number(self) -> u32 {
        self.row().0
    }

    pub fn title(self) -> &'static str {
        self.row().1
    }

    fn row(self) -> (u32, &'static str) {
        match self {
            Self::Generic => (1000, "Generic error"),
            Self::MessageTooLong => (1001, "Message too long"),
            Self::AccessDenied => (1005, "Access denied"),
            Self::NotFound => (1006, "Resource not found"),
            Self::ParameterMissing => (1008, "Required parameter is missing"),
            Self::ParameterInvalid => (1009, "Parameter value is not valid"),
            Self::NotReady => (1011, "Service not ready"),
            Self::UserInvalid => (1013, "User is not valid"),
            Self::Internal => (1014, "Internal error"),
            Self::TooManyRequests => (1015, "Too many requests"),
            Self::Overloaded => (1016, "System overloaded"),
            Self::PasswordChangeRequired => (1024, "Password change required"),
            Self::InvalidRequest => (1025, "Request is not valid"),
        }
    }
}

/// The `meta` member of every answer.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EnvelopeMeta {
    pub version: &'static str,
    pub api_status: &'static str,
}

impl EnvelopeMeta {
    /// As the Webapp answers for itself; Coreapp's answers have no leading `v`.
    pub const WEBAPP: Self = Self {
        version: "v2.53.0",
        api_status: "stable",
    };
    pub const COREAPP: Self = Self {
        version: "2.53.0",
        api_status: "stable",
    };
}

/// `payload`'s members followed by `meta`, compact, escaped as the Webapp does.
pub fn body(payload: Value, meta: EnvelopeMeta) -> String {
    let mut members = match payload {
        Value::Object(members) => members,
        _ => serde_json::Map::new(),
    };
    members.insert("meta".to_owned(), json!(meta));
    escape(&Value::Object(members).to_string())
}

#[derive(Serialize)]
struct ErrorEnvelope<'a> {
    errors: [OneError<'a>; 1],
    meta: EnvelopeMeta,
}

#[derive(Serialize)]
struct OneError<'a> {
    code: u32,
    title: &'a str,
    details: &'a str,
}

/// `{"errors":[{code,title,details}],"meta":{...}}`; clients index `errors[0]` unchecked.
pub fn error_body(code: ErrorCode, details: &str, meta: EnvelopeMeta) -> String {
    let error = OneError {
        code: code.number(),
        title: code.title(),
        details,
    };
    let errors = ErrorEnvelope {
        errors: [error],
        meta,
    };
    // Text and numbers always serialize.
    escape(&serde_json::to_string(&errors).unwrap_or_default())
}

/// PHP's JSON_HEX_* escapes and `\/`, as captured. Outside strings none of these
/// characters occurs, so the text can be walked without knowing where strings are.
fn escape(json: &str) -> String {
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
            meta,
        );
        assert_eq!(
            text,
            r#"{"errors":[{"code":1,"details":"it\u0027s"}],"meta":{"version":"2.33.4","api_status":"stable"}}"#
        );
    }

    #[test]
    fn escapes_survive_a_round_trip() {
        let hard = "quote \" slash / back \\ both \\\" tag <a href='x'>& end \\";
        let text = error_body(ErrorCode::Internal, hard, EnvelopeMeta::WEBAPP);
        let back: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["errors"][0]["details"], hard);
    }
}
