//! The client's body as it comes off the connection. One that is given up before its end,
//! because the answer came first, is read on for a moment and thrown away: the answer must
//! reach the client before its stream is reset.
//!
//! Over HTTP/2 hyper would send RST_STREAM(NO_ERROR) in the same write as the answer
//! (RFC 9113, 8.1), and clients such as curl 7.88 read the reset before the status. Over
//! HTTP/1 the connection lingers as a whole (`listener::stream`).

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

/// As long as an HTTP/1 connection lingers.
const LINGER: Duration = Duration::from_secs(2);
/// Thrown away at most; after so much the answer has long been read.
const MOST: u64 = 16 << 20;

/// A request's body. Given up early, it keeps its stream open for `LINGER` and `MOST` at
/// most; as long as that it counts among the streams that the connection may have, which
/// bounds what a client gets by it.
#[derive(Debug)]
pub struct ClientBody {
    /// None once it was given up.
    incoming: Option<Incoming>,
    /// Where what is left is read; None: nowhere.
    tasks: Option<Arc<TaskSet>>,
}

impl ClientBody {
    /// `tasks` run on the connection's runtime.
    pub fn new(incoming: Incoming, version: Version, tasks: &Arc<TaskSet>) -> Self {
        // Most requests have no body, and those of HTTP/1 need nothing.
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
            tasks.spawn("rest of a body", throw_away(incoming));
        }
    }
}

/// Reads until the end, an error, `LINGER` or `MOST`, whichever is first.
async fn throw_away(mut incoming: Incoming) {
    let rest = async {
        let mut left = MOST;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            let Some(less) = left.checked_sub(bytes) else {
                return;
            };
            left = less;
        }
    };
    // A client that is slower has its answer by now.
    let _ = timeout(LINGER, rest).await;
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
