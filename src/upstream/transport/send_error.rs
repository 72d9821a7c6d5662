//! Why a request got no response, and how far it came.

use std::error::Error;
use std::fmt;

use super::framing::FramingError;
use super::http1::connection::{HeadFailure, UpstreamConnection};

type BoxError = Box<dyn Error + Send + Sync>;

/// A request that got no response.
#[derive(Debug)]
pub struct SendError {
    pub kind: SendErrorKind,
    /// No byte of the request was sent, or the upstream says that it has not processed it.
    pub is_unsent: bool,
    source: Option<BoxError>,
}

/// How far a request got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendErrorKind {
    ConnectFailed,
    ConnectTimeout,
    /// A kept-alive connection was closed before a byte of the response: most likely the upstream closed
    /// it while the request was on its way.
    DeadConnection,
    /// The upstream says that it has not processed the request (RFC 9113, 8.7).
    NotProcessed,
    /// A new connection was closed before a byte of the response.
    Closed,
    FirstByteTimeout,
    /// The response is not HTTP/1.1, or ended within its head.
    Protocol,
    /// The body of the response cannot be forwarded.
    Framing(FramingError),
    /// The request's body failed; the client caused it.
    BodyFailed,
}

impl SendError {
    pub(in crate::upstream) fn new(
        kind: SendErrorKind,
        is_unsent: bool,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind,
            is_unsent,
            source: Some(Box::new(source)),
        }
    }

    pub(in crate::upstream) fn unsent(kind: SendErrorKind, source: BoxError) -> Self {
        Self {
            kind,
            is_unsent: true,
            source: Some(source),
        }
    }

    /// `is_reused`: the connection has served a request before.
    pub(in crate::upstream) fn classify<B>(
        failure: HeadFailure,
        connection: &UpstreamConnection<B>,
        is_reused: bool,
    ) -> Self {
        let error = match failure {
            HeadFailure::Late => return SendErrorKind::FirstByteTimeout.into(),
            HeadFailure::Framing(error) => return SendErrorKind::Framing(error).into(),
            HeadFailure::Broken(error) => error,
        };
        let is_unsent = connection.is_unsent();
        let has_received = connection.has_received();
        let kind = if error.is_request_body() {
            SendErrorKind::BodyFailed
        } else if is_reused && (is_unsent || !has_received) {
            SendErrorKind::DeadConnection
        } else if has_received {
            SendErrorKind::Protocol
        } else {
            SendErrorKind::Closed
        };
        Self {
            kind,
            is_unsent,
            source: Some(error.into()),
        }
    }
}

impl From<SendErrorKind> for SendError {
    fn from(kind: SendErrorKind) -> Self {
        Self {
            kind,
            is_unsent: false,
            source: None,
        }
    }
}

impl fmt::Display for SendErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectFailed => "cannot connect to the upstream",
            Self::ConnectTimeout => "no connection to the upstream in time",
            Self::DeadConnection => "a kept-alive connection to the upstream was dead",
            Self::NotProcessed => "the upstream did not take the request",
            Self::Closed => "the upstream closed the connection without a response",
            Self::FirstByteTimeout => "no response from the upstream in time",
            Self::Protocol | Self::Framing(_) => "the upstream's response is not usable HTTP",
            Self::BodyFailed => "the request's body broke off",
        })
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl Error for SendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
