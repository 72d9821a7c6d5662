//! The body of an upstream's response. Its connection goes back to the pool at its end.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// An answer's body. At its end the connection goes back to its worker's pool;
/// dropped before that, the connection is closed.
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

    /// The empty body of an answer that ends HTTP on its connection.
    pub(super) fn without_connection(incoming: Incoming) -> Self {
        Self {
            incoming,
            connection: None,
        }
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

/// What an answer's body needs of its connection, whatever goes up on it.
pub(in crate::upstream) trait ConnectionHandle: Send + Sync {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Incoming,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>>;

    /// Something has happened on the connection since it was last polled.
    fn has_news(&self) -> bool;

    /// The answer has ended. An answer that came before the request was sent to its end
    /// costs the connection: what is left of the request would stand before the next.
    fn give_back(self: Box<Self>);
}
