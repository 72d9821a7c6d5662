//! The body of an upstream's response. Its connection goes back to the pool at its end.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// The body of a response. At its end the connection goes back to the worker's pool; if it is dropped
/// earlier, the connection is closed.
pub struct UpstreamResponseBody {
    incoming: Incoming,
    connection: Option<Box<dyn ConnectionHandle>>,
}

impl UpstreamResponseBody {
    pub(in crate::upstream) fn new(
        incoming: Incoming,
        connection: Box<dyn ConnectionHandle>,
    ) -> Self {
        let mut body = Self {
            incoming,
            connection: Some(connection),
        };
        body.give_back_at_end();
        body
    }

    /// Whether the connection was woken since the body was last polled. Until the body is polled
    /// the upstream may wait.
    pub fn has_news(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| connection.has_news())
    }

    fn give_back_at_end(&mut self) {
        if self.incoming.is_end_stream() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.give_back();
        }
    }
}

impl Body for UpstreamResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let body = &mut *self;
        let polled = match &mut body.connection {
            Some(connection) => connection.poll_frame(cx, &mut body.incoming),
            None => Pin::new(&mut body.incoming).poll_frame(cx),
        };
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(_))) => self.give_back_at_end(),
            Poll::Ready(Some(Err(_))) => self.connection = None,
            Poll::Ready(None) => self.give_back(),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
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
        body: &mut Incoming,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>>;

    /// Whether the connection was woken since it was last polled.
    fn has_news(&self) -> bool;

    /// The response has ended. If the request was not sent completely, the connection is closed: the rest
    /// of that request would precede the next one.
    fn give_back(self: Box<Self>);
}
