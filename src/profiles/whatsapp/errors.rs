//! The Webapp's error codes and the envelope around its errors (protocol sheet, section 4).

use std::sync::LazyLock;

use bytes::Bytes;
use serde::Serialize;

use crate::profiles::envelope::{EnvelopeMeta, escape};
use crate::profiles::error_format::{ErrorFormat, ErrorKind, ErrorReport};

/// As the Webapp writes it for itself; Coreapp's version has no leading `v`.
pub const WEBAPP_META: EnvelopeMeta = EnvelopeMeta {
    version: "v2.53.0",
    api_status: "stable",
};
pub const COREAPP_META: EnvelopeMeta = EnvelopeMeta {
    version: "2.53.0",
    api_status: "stable",
};

pub(super) const ENVELOPE: ErrorFormat = ErrorFormat {
    content_type: "application/json",
    basic_challenge: "Basic realm=\"Secured\", charset=\"UTF-8\"",
    service: "Webapp",
    body: envelope,
};

/// The refusal that clients without a token can ask for as often as they like: written once.
static INVALID_CREDENTIALS: LazyLock<Bytes> = LazyLock::new(|| {
    let text = error_body(ErrorCode::AccessDenied, "Invalid credentials", WEBAPP_META);
    Bytes::from(text)
});

fn envelope(report: &ErrorReport<'_>) -> Bytes {
    match report.kind {
        ErrorKind::InvalidCredentials => INVALID_CREDENTIALS.clone(),
        kind => error_body(ErrorCode::of(kind), report.detail, WEBAPP_META).into(),
    }
}

/// Error codes of the Webapp (protocol sheet, section 4).
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
    fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidRequest => Self::InvalidRequest,
            ErrorKind::InvalidCredentials | ErrorKind::AccessDenied => Self::AccessDenied,
            ErrorKind::PasswordChangeRequired => Self::PasswordChangeRequired,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::ParameterMissing => Self::ParameterMissing,
            ErrorKind::ParameterInvalid => Self::ParameterInvalid,
            ErrorKind::TooManyRequests => Self::TooManyRequests,
            ErrorKind::NotReady => Self::NotReady,
            ErrorKind::Overloaded => Self::Overloaded,
            ErrorKind::Internal => Self::Internal,
        }
    }

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

/// `{"errors":[{code,title,details}],"meta":{...}}`; clients read `errors[0]` unchecked.
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn escapes_survive_a_round_trip() {
        let hard = "quote \" slash / back \\ both \\\" tag <a href='x'>& end \\";
        let text = error_body(ErrorCode::Internal, hard, WEBAPP_META);
        let back: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["errors"][0]["details"], hard);
    }

    #[test]
    fn the_prepared_refusal_equals_the_generated_one() {
        let report = |kind| ErrorReport {
            kind,
            status: http::StatusCode::UNAUTHORIZED,
            detail: "Invalid credentials",
            request_id: "",
        };
        let prepared = envelope(&report(ErrorKind::InvalidCredentials));
        assert_eq!(prepared, envelope(&report(ErrorKind::AccessDenied)));
    }
}
