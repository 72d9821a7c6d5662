//! What a profile decides about the responses by which the gateway refuses a request.

use bytes::Bytes;
use http::StatusCode;

/// What kind of error a refusal is, in no service's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    InvalidRequest,
    /// No credential, or one that is not valid; every cause gets the same detail text.
    InvalidCredentials,
    AccessDenied,
    PasswordChangeRequired,
    NotFound,
    ParameterMissing,
    ParameterInvalid,
    TooManyRequests,
    NotReady,
    Overloaded,
    Internal,
}

/// One refusal, as its body states it.
#[derive(Clone, Copy, Debug)]
pub struct ErrorReport<'a> {
    pub kind: ErrorKind,
    pub status: StatusCode,
    pub detail: &'a str,
    /// 32 hexadecimal digits, as in `X-Request-ID` and the access log.
    pub request_id: &'a str,
}

/// How refusals are written.
#[derive(Clone, Copy, Debug)]
pub struct ErrorFormat {
    pub content_type: &'static str,
    /// `WWW-Authenticate` of a refused login (RFC 7617).
    pub basic_challenge: &'static str,
    /// What detail texts call the service behind the gateway.
    pub service: &'static str,
    pub body: fn(&ErrorReport<'_>) -> Bytes,
}
