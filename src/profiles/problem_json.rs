//! Refusals as RFC 9457 problem details, for services that have no format of their own.

use bytes::Bytes;
use serde::Serialize;

use super::error_format::{ErrorFormat, ErrorReport};

pub(super) const PROBLEM_JSON: ErrorFormat = ErrorFormat {
    content_type: "application/problem+json",
    basic_challenge: "Basic realm=\"tollgate\", charset=\"UTF-8\"",
    service: "upstream",
    body: problem,
};

/// RFC 9457, 3.1.
#[derive(Serialize)]
struct ProblemDetails<'a> {
    /// `about:blank` (RFC 9457, 4.2.1): the problem has no meaning beyond its status.
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    /// The request's id, as in `X-Request-ID` and the access log.
    instance: &'a str,
}

fn problem(report: &ErrorReport<'_>) -> Bytes {
    let problem = ProblemDetails {
        r#type: "about:blank",
        title: report.status.canonical_reason().unwrap_or("Error"),
        status: report.status.as_u16(),
        detail: report.detail,
        instance: report.request_id,
    };
    // Text and numbers always serialize.
    serde_json::to_vec(&problem).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profiles::ErrorKind;

    #[test]
    fn a_problem_has_the_members_of_rfc_9457_and_escapes_its_detail() {
        let report = ErrorReport {
            kind: ErrorKind::InvalidRequest,
            status: http::StatusCode::BAD_REQUEST,
            detail: "a \"quoted\" word",
            request_id: "0123456789abcdef0123456789abcdef",
        };
        assert_eq!(
            problem(&report),
            r#"{"type":"about:blank","title":"Bad Request","status":400,"detail":"a \"quoted\" word","instance":"0123456789abcdef0123456789abcdef"}"#
        );
    }
}
