//! Why a request got no response, and how far it came.

use std::error::Error;
use std::fmt;

use http::Request;
use hyper::client::conn::TrySendError;

use super::connection::UpstreamConnection;
use super::framing::FramingError;
use super::upload_progress::SentBody;

type BoxError = Box<dyn Error + Send + Sync>;

/// A request that got no response.
pub struct SendError<B> {
    pub kind: SendErrorKind,
    /// The request, if no byte of it was sent.
    pub unsent: Option<Box<Request<B>>>,
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

impl<B> SendError<B> {
    pub(super) fn unsent(kind: SendErrorKind, request: Request<B>, source: BoxError) -> Self {
        Self {
            kind,
            unsent: Some(Box::new(request)),
            source: Some(source),
        }
    }

    pub(super) fn classify(
        mut failure: TrySendError<Request<SentBody<B>>>,
        connection: &UpstreamConnection<B>,
        is_reused: bool,
    ) -> Self {
        let unsent = failure.take_message();
        let has_received = connection.has_received();
        let kind = if connection.progress().has_failed() {
            SendErrorKind::BodyFailed
        } else if is_reused && (unsent.is_some() || !has_received) {
            SendErrorKind::DeadConnection
        } else if has_received {
            SendErrorKind::Protocol
        } else {
            SendErrorKind::Closed
        };
        Self {
            kind,
            unsent: unsent.map(|request| Box::new(request.map(SentBody::into_inner))),
            source: Some(failure.into_error().into()),
        }
    }
}

impl<B> From<SendErrorKind> for SendError<B> {
    fn from(kind: SendErrorKind) -> Self {
        Self {
            kind,
            unsent: None,
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
            Self::Closed => "the upstream closed the connection without an answer",
            Self::FirstByteTimeout => "no answer from the upstream in time",
            Self::Protocol | Self::Framing(_) => "the upstream's answer is not usable HTTP",
            Self::BodyFailed => "the request's body broke off",
        })
    }
}

impl<B> fmt::Display for SendError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

// Not derived: the headers of the unsent request contain credentials.
impl<B> fmt::Debug for SendError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError")
            .field("kind", &self.kind)
            .field("is_unsent", &self.unsent.is_some())
            .field("source", &self.source)
            .finish()
    }
}

impl<B> Error for SendError<B> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
