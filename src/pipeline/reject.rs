//! Refusals, and their only mapping to responses.

use std::borrow::Cow;
use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

use super::credential_fault::CredentialFault;
use super::grpc;
use super::limit::TooMany;
use crate::error_chain::chain;
use crate::metrics::{Blame, Reason};
use crate::profiles::{ErrorFormat, ErrorKind, ErrorReport};
use crate::store::StoreUnavailable;
use crate::upstream::{NoLease, PermitTimeout};

/// The shortest `Retry-After` after a failure of the upstream.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why the gateway refuses a request. One variant per reason that a client can act on.
#[derive(Debug)]
pub enum Rejection {
    /// The request breaks a rule of HTTP, or one of the gateway's.
    BadRequest(&'static str),
    NoRoute,
    MethodNotAllowed(String),
    /// No credential, or an invalid one; the text is for the access log only.
    Unauthenticated(&'static str),
    /// A malformed credential.
    BadCredential(CredentialFault),
    /// A malformed credential of a login.
    BadLogin(CredentialFault),
    Forbidden(&'static str),
    TooMany(Box<TooMany>),
    /// The number of live tokens is at its cap; time until the next one expires.
    TooManyTokens(&'static str, Option<Duration>),
    TooLarge,
    TooSlow,
    /// Heads that the listener refused before their end.
    TargetTooLong,
    HeadTooLarge,
    HeadTooSlow,
    Overloaded,
    /// The request has passed this gateway before.
    Loop,
    /// The upstream does not answer; time until the gateway probes it again.
    UpstreamDown(Duration),
    /// The client has as many requests in flight as its share allows.
    ShareTaken,
    /// The request got no upstream permit in time.
    UpstreamQueueTimeout(PermitTimeout),
    /// There is no valid lease.
    NoLease(NoLease),
    /// The store could not save the change, so it has not been made.
    Unavailable(StoreUnavailable),
    /// The shared store could not be asked about this token.
    TokenUnsure(StoreUnavailable),
    /// The upstream could not be asked about this token.
    CannotAsk,
    /// The upstream refuses the gateway's token even after a new login.
    UpstreamLogin,
    /// The lease was refused and the body cannot be sent twice; the client may retry.
    RetryLater,
    Unreachable(Box<dyn Error + Send + Sync>),
    /// The connection ended while the request body was being sent.
    BrokeOff(Box<dyn Error + Send + Sync>),
    UpstreamTimeout,
    BadUpstreamResponse(&'static str),
    /// Refusals of the users node.
    LoginRefused(&'static str),
    PasswordChangeRequired,
    NotJson,
    Missing(&'static str),
    Invalid(Cow<'static, str>),
    UserExists,
    NoSuchUser,
    Internal(&'static str),
}

/// What the client sees, and what is counted.
#[derive(Clone, Copy, Debug)]
pub struct ErrorMapping {
    pub status: StatusCode,
    pub kind: ErrorKind,
    pub blame: Blame,
    pub reason: Reason,
}

impl Rejection {
    /// The whole mapping: no other code picks the status of a refusal.
    pub fn mapping(&self) -> ErrorMapping {
        use Blame::{Client, Gateway, Upstream};
        use ErrorKind::{AccessDenied, Internal, InvalidCredentials};
        let (status, kind, blame, reason) = match self {
            Self::BadRequest(_) => (400, ErrorKind::InvalidRequest, Client, Reason::BadRequest),
            Self::NoRoute => (404, ErrorKind::NotFound, Client, Reason::NoRoute),
            Self::MethodNotAllowed(_) => (405, ErrorKind::NotFound, Client, Reason::Method),
            Self::Unauthenticated(_) | Self::LoginRefused(_) => {
                (401, InvalidCredentials, Client, Reason::Unauthenticated)
            }
            Self::BadCredential(_) | Self::BadLogin(_) => {
                (401, AccessDenied, Client, Reason::Unauthenticated)
            }
            Self::Forbidden(_) => (403, AccessDenied, Client, Reason::Forbidden),
            Self::TooMany(_) | Self::TooManyTokens(..) => {
                (429, ErrorKind::TooManyRequests, Client, Reason::TooMany)
            }
            Self::TooLarge => (413, ErrorKind::ParameterInvalid, Client, Reason::TooLarge),
            Self::TooSlow | Self::HeadTooSlow => {
                (408, ErrorKind::InvalidRequest, Client, Reason::Timeout)
            }
            Self::TargetTooLong => (414, ErrorKind::InvalidRequest, Client, Reason::TooLarge),
            Self::HeadTooLarge => (431, ErrorKind::InvalidRequest, Client, Reason::TooLarge),
            Self::Loop => (508, Internal, Gateway, Reason::Loop),
            Self::UpstreamDown(_) => (503, ErrorKind::NotReady, Upstream, Reason::UpstreamDown),
            Self::Overloaded | Self::ShareTaken | Self::UpstreamQueueTimeout(_) => {
                (503, ErrorKind::Overloaded, Gateway, Reason::Overloaded)
            }
            Self::NoLease(_) | Self::CannotAsk => {
                (503, ErrorKind::NotReady, Upstream, Reason::NotReady)
            }
            Self::Unavailable(_) | Self::TokenUnsure(_) => {
                (503, ErrorKind::NotReady, Gateway, Reason::Store)
            }
            Self::UpstreamLogin => (502, Internal, Upstream, Reason::UpstreamLogin),
            Self::RetryLater => (503, ErrorKind::NotReady, Upstream, Reason::RetryLater),
            Self::Unreachable(_) | Self::BrokeOff(_) => {
                (502, Internal, Upstream, Reason::Unreachable)
            }
            Self::UpstreamTimeout => (504, Internal, Upstream, Reason::Timeout),
            Self::BadUpstreamResponse(_) => (502, Internal, Upstream, Reason::BadResponse),
            Self::PasswordChangeRequired => (
                401,
                ErrorKind::PasswordChangeRequired,
                Client,
                Reason::UsersNode,
            ),
            Self::NotJson => (400, ErrorKind::InvalidRequest, Client, Reason::UsersNode),
            Self::Missing(_) => (400, ErrorKind::ParameterMissing, Client, Reason::UsersNode),
            Self::Invalid(_) => (400, ErrorKind::ParameterInvalid, Client, Reason::UsersNode),
            Self::UserExists => (500, Internal, Client, Reason::UsersNode),
            Self::NoSuchUser => (404, ErrorKind::NotFound, Client, Reason::UsersNode),
            Self::Internal(_) => (500, Internal, Gateway, Reason::Internal),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        ErrorMapping {
            status,
            kind,
            blame,
            reason,
        }
    }

    /// The text about this refusal for the client. `service`: what the profile calls the upstream.
    fn detail(&self, service: &str) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::BadRequest(why) | Self::Forbidden(why) => why,
            Self::UpstreamDown(_)
            | Self::NoLease(_)
            | Self::UpstreamLogin
            | Self::Unreachable(_)
            | Self::BrokeOff(_)
            | Self::UpstreamTimeout
            | Self::BadUpstreamResponse(_) => return Cow::Owned(self.upstream_detail(service)),
            Self::NoRoute => "No such path on this gateway",
            Self::MethodNotAllowed(_) => "This path does not take this method",
            // One text for unknown, wrong, expired and revoked; the access log has the cause.
            Self::Unauthenticated(_) | Self::LoginRefused(_) => "Invalid credentials",
            Self::BadCredential(fault) | Self::BadLogin(fault) => {
                return Cow::Owned(fault.to_string());
            }
            Self::TooMany(_) => "Too many requests, slow down",
            Self::TooManyTokens(..) => "Too many live tokens, log out first",
            Self::TooLarge => "The body is larger than this path takes",
            Self::TooSlow => "The body came too slowly",
            Self::TargetTooLong => "The request target is larger than this port takes",
            Self::HeadTooLarge => "The header section is larger than this port takes",
            Self::HeadTooSlow => "The header section came too slowly",
            Self::Loop => "This request has come back to this gateway: its upstream leads here",
            Self::Overloaded | Self::UpstreamQueueTimeout(_) => {
                "The gateway has too many requests in hand"
            }
            Self::ShareTaken => "The gateway has too many requests of this client in hand",
            Self::Unavailable(_) => "The gateway cannot keep this change at the moment",
            Self::CannotAsk | Self::TokenUnsure(_) => {
                "The token could not be checked at the moment"
            }
            Self::RetryLater => "The gateway's login was renewed, send the request again",
            Self::PasswordChangeRequired => "Password must be changed",
            Self::NotJson => "Unable to decode json from the request: Syntax error",
            Self::Missing(what) => return Cow::Owned(format!("Parameter {what} is required")),
            Self::Invalid(why) => return why.clone(),
            Self::UserExists => "Unable to create user. Already exist?",
            Self::NoSuchUser => "User not found",
            Self::Internal(_) => "The gateway failed to answer",
        })
    }

    /// The text of refusals that the upstream has caused.
    fn upstream_detail(&self, service: &str) -> String {
        match self {
            Self::NoLease(_) => {
                format!("The gateway has no valid login at the {service} at the moment")
            }
            Self::UpstreamLogin => format!("The {service} refuses the gateway's login"),
            Self::Unreachable(_) => format!("The {service} cannot be reached"),
            Self::BrokeOff(_) => {
                format!("The {service} ended the connection before it answered")
            }
            Self::UpstreamTimeout => format!("The {service} did not answer in time"),
            Self::BadUpstreamResponse(_) => {
                format!("The {service}'s answer could not be understood")
            }
            _ => format!("The {service} does not answer at the moment"),
        }
    }

    /// The true reason for the access log; never a secret.
    pub fn cause(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Unauthenticated(why)
            | Self::LoginRefused(why)
            | Self::BadUpstreamResponse(why)
            | Self::BadRequest(why)
            | Self::Forbidden(why)
            | Self::Internal(why)
            | Self::TooManyTokens(why, _) => Cow::Borrowed(*why),
            Self::BadCredential(fault) | Self::BadLogin(fault) => Cow::Owned(fault.to_string()),
            Self::TooMany(limit) => Cow::Owned(format!("limit {}", limit.policy)),
            Self::ShareTaken => Cow::Borrowed("client has its share of the requests in flight"),
            Self::UpstreamQueueTimeout(timeout) => Cow::Owned(timeout.to_string()),
            Self::NoLease(no_lease) => Cow::Owned(no_lease.to_string()),
            Self::Unavailable(why) | Self::TokenUnsure(why) => Cow::Owned(why.to_string()),
            Self::Loop => Cow::Borrowed("the request's Via names this gate"),
            Self::TargetTooLong => Cow::Borrowed("request target over the limit"),
            Self::HeadTooLarge => Cow::Borrowed("header section over the limit"),
            Self::HeadTooSlow => Cow::Borrowed("header section over its time"),
            Self::Unreachable(error) | Self::BrokeOff(error) => Cow::Owned(chain(error.as_ref())),
            _ => return None,
        })
    }

    /// `pause`: time until the gateway probes an upstream that is down; zero: it is not down.
    fn retry_after(&self, pause: Duration) -> Option<Duration> {
        match self {
            Self::UpstreamDown(pause) => Some((*pause).max(MIN_RETRY_AFTER)),
            // The failure may concern this request only; otherwise the gateway will know by then.
            Self::Unreachable(_) | Self::BrokeOff(_) | Self::UpstreamTimeout => {
                Some(pause.max(MIN_RETRY_AFTER))
            }
            Self::TooMany(limit) => Some(limit.retry_after),
            Self::NoLease(no_lease) => Some(no_lease.retry_after),
            Self::Unavailable(why) | Self::TokenUnsure(why) => Some(why.retry_after()),
            Self::UpstreamQueueTimeout(timeout) => Some(timeout.retry_after),
            Self::Overloaded | Self::ShareTaken | Self::CannotAsk => Some(Duration::from_secs(1)),
            Self::TooManyTokens(_, next) => *next,
            Self::RetryLater => Some(Duration::ZERO),
            _ => None,
        }
    }

    /// With every 401, and only there: RFC 6750, 3 for bearers; for logins the profile's challenge,
    /// which also says how to encode what is not ASCII (RFC 7617, 2.1).
    fn challenge(&self, format: &ErrorFormat) -> Option<&'static str> {
        match self {
            Self::Unauthenticated("no credential") => Some("Bearer realm=\"tollgate\""),
            Self::Unauthenticated(_) => Some("Bearer realm=\"tollgate\", error=\"invalid_token\""),
            Self::BadCredential(_) => Some("Bearer realm=\"tollgate\", error=\"invalid_request\""),
            Self::BadLogin(_) | Self::LoginRefused(_) | Self::PasswordChangeRequired => {
                Some(format.basic_challenge)
            }
            _ => None,
        }
    }

    /// `pause`: as for `retry_after`. `request_id`: of the access log entry.
    pub fn into_response(
        self,
        format: &ErrorFormat,
        request_id: &str,
        pause: Duration,
    ) -> Response<Bytes> {
        let mapping = self.mapping();
        let report = ErrorReport {
            kind: mapping.kind,
            status: mapping.status,
            detail: &self.detail(format.service),
            request_id,
        };
        let mut response = Response::new((format.body)(&report));
        *response.status_mut() = mapping.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        if let Some(span) = self.retry_after(pause) {
            let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(challenge) = self.challenge(format) {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        match &self {
            Self::TooMany(limit) => limit.headers.put(headers),
            Self::MethodNotAllowed(allowed) => {
                if let Ok(value) = HeaderValue::from_str(allowed) {
                    headers.insert(ALLOW, value);
                }
            }
            // The following bytes on this connection may not be a request.
            Self::TooLarge | Self::TooSlow => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
    /// The same for a call of gRPC.
    pub fn into_call_response(
        self,
        format: &ErrorFormat,
        request_id: &str,
        pause: Duration,
    ) -> Response<Bytes> {
        let detail = self.detail(format.service);
        grpc::into_refused_call(self.into_response(format, request_id, pause), &detail)
    }
}
