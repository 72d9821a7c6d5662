//! The body of an upstream's response. Its connection goes back to the pool at its end.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::response_error::ResponseError;

/// The body of a response. At its end the connection goes back to the worker's pool; if it is dropped
/// earlier, the connection is closed.
pub struct UpstreamResponseBody {
    /// None: the body has ended, or broke off.
    connection: Option<Box<dyn ConnectionHandle>>,
}

impl UpstreamResponseBody {
    pub(in crate::upstream) fn new(connection: Box<dyn ConnectionHandle>) -> Self {
        let mut body = Self {
            connection: Some(connection),
        };
        body.give_back_at_end();
        body
    }

    /// Whether something was received since the body was last polled. Until the body is polled
    /// the upstream may wait.
    pub fn has_news(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| connection.has_news())
    }

    fn give_back_at_end(&mut self) {
        if let Some(connection) = self
            .connection
            .take_if(|connection| connection.is_end_stream())
        {
            connection.give_back();
        }
    }
}

impl Body for UpstreamResponseBody {
    type Data = Bytes;
    type Error = ResponseError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        let Some(connection) = &mut self.connection else {
            return Poll::Ready(None);
        };
        let polled = ready!(connection.poll_frame(cx));
        match &polled {
            Some(Err(_)) => self.connection = None,
            Some(Ok(_)) | None => self.give_back_at_end(),
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let connection = self.connection.as_ref();
        connection.map_or_else(
            || SizeHint::with_exact(0),
            |connection| connection.size_hint(),
        )
    }
}

impl fmt::Debug for UpstreamResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamResponseBody")
            .field("holds_connection", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}

/// What a response body needs of its connection, independent of the request body's type.
pub(in crate::upstream) trait ConnectionHandle: Send + Sync {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>>;

    fn is_end_stream(&self) -> bool;

    fn size_hint(&self) -> SizeHint;

    /// Whether something was received since it was last polled.
    fn has_news(&self) -> bool;

    /// The response has ended. If the request was not sent completely, the connection is closed: the rest
    /// of that request would precede the next one.
    fn give_back(self: Box<Self>);
}
