//! The client's body as it arrives on the connection. When a response precedes the end of the body,
//! the rest of the body is read and discarded for a moment, so that the response reaches the client
//! before its stream is reset.
//!
//! Over HTTP/2 hyper would send RST_STREAM(NO_ERROR) in the same write as the response
//! (RFC 9113, 8.1), and clients such as curl 7.88 read the reset before the status. Over HTTP/1 the
//! listener lingers on the whole connection instead.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::lifecycle::TaskSet;

/// How long the rest of a body is read; the same as for an HTTP/1 connection.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes that are discarded at most; by then the client has read the response.
const MAX_DISCARDED: u64 = 16 << 20;

/// A request's body. Dropped before its end, it keeps its stream open until `LINGER_TIMEOUT` or
/// `MAX_DISCARDED` is reached. The stream counts against the connection's stream limit until then,
/// which bounds what a client gains from it.
#[derive(Debug)]
pub struct ClientBody {
    /// None while it is being dropped.
    incoming: Option<Incoming>,
    /// Run the task that discards the rest; None: the rest is not read.
    tasks: Option<Arc<TaskSet>>,
}

impl ClientBody {
    /// `tasks` run on the connection's runtime.
    pub fn new(incoming: Incoming, version: Version, tasks: &Arc<TaskSet>) -> Self {
        // Requests without a body, and those over HTTP/1, do not linger.
        let lingers = version == Version::HTTP_2 && !incoming.is_end_stream();
        Self {
            incoming: Some(incoming),
            tasks: lingers.then(|| Arc::clone(tasks)),
        }
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        let (Some(incoming), Some(tasks)) = (self.incoming.take(), self.tasks.take()) else {
            return;
        };
        if !incoming.is_end_stream() {
            tasks.spawn("discard rest of body", discard(incoming));
        }
    }
}

/// Reads until the end, an error, `LINGER_TIMEOUT` or `MAX_DISCARDED`, whichever is first.
async fn discard(mut incoming: Incoming) {
    let rest = async {
        let mut remaining = MAX_DISCARDED;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            remaining = match remaining.checked_sub(bytes) {
                Some(remaining) => remaining,
                None => return,
            };
        }
    };
    // After the timeout the client has had time to read the response.
    let _ = timeout(LINGER_TIMEOUT, rest).await;
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.incoming {
            Some(incoming) => Pin::new(incoming).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(SizeHint::default, Incoming::size_hint)
    }
}
