//! Stage 5, continued: the beginning of an answer's body. The head waits for it a moment, so
//! that an answer that breaks off before its first byte is a 502 and no empty 200.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout, timeout_at};

use super::forward::Forwarder;
use crate::pipeline::body::streaming::ArrivingBody;
use crate::pipeline::reject::Rejection;
use crate::upstream::UpstreamResponseBody;

/// Answers up to this length are read whole before they go down: their upstream
/// connection is free at once, however slowly the client reads.
pub(super) const SMALL: u64 = 16 * 1024;
/// One that has begun and takes longer goes down as it comes.
const SMALL_WITHIN: Duration = Duration::from_secs(1);
/// How long the head of a larger answer waits for the first piece of its body.
const FIRST_PIECE: Duration = Duration::from_millis(30);
const BROKE_OFF: Rejection = Rejection::BadAnswer("upstream's answer broke off");

/// A body of known length that is small.
pub(super) enum SmallBody {
    Whole(Bytes),
    /// The upstream takes its time over it.
    Arriving(Box<ArrivingBody>),
}

impl Forwarder<'_> {
    /// Reads a body of `length` bytes; most have come with their head, in one piece.
    pub(super) async fn read_small(
        &self,
        mut body: UpstreamResponseBody,
        length: u64,
    ) -> Result<SmallBody, Rejection> {
        let first = match now(&mut body).await {
            Poll::Ready(frame) => piece(frame)?,
            Poll::Pending => Bytes::new(),
        };
        if first.len() as u64 == length {
            return Ok(SmallBody::Whole(first));
        }
        Box::pin(self.read_slow(body, first, length)).await
    }

    async fn read_slow(
        &self,
        mut body: UpstreamResponseBody,
        first: Bytes,
        length: u64,
    ) -> Result<SmallBody, Rejection> {
        let first = match first.is_empty() {
            false => first,
            true => {
                let pause = Instant::now() + self.settings.body_idle_timeout;
                let first = timeout_at(self.deadline.min(pause), body.frame()).await;
                piece(first.map_err(|_| Rejection::UpstreamTimeout)?)?
            }
        };
        let until = Instant::now() + SMALL_WITHIN;
        let mut read = BytesMut::from(&first[..]);
        while (read.len() as u64) < length {
            match timeout_at(self.deadline.min(until), body.frame()).await {
                Ok(frame) => read.extend_from_slice(&piece(frame)?),
                Err(_) => {
                    return Ok(SmallBody::Arriving(Box::new(ArrivingBody {
                        body,
                        length: SizeHint::with_exact(length),
                        first: Some(Frame::data(read.freeze())),
                    })));
                }
            }
        }
        Ok(SmallBody::Whole(read.freeze()))
    }

    /// Reads the first piece if it comes soon. None: the body is empty.
    pub(super) async fn read_first(
        &self,
        mut body: UpstreamResponseBody,
        headers: &HeaderMap,
    ) -> Result<Option<ArrivingBody>, Rejection> {
        let length = body.size_hint();
        let first = match now(&mut body).await {
            Poll::Ready(frame) => Some(frame),
            Poll::Pending if is_event_stream(headers) => None,
            Poll::Pending => {
                let soon = Box::pin(timeout(FIRST_PIECE, body.frame()));
                soon.await.ok()
            }
        };
        let first = match first {
            None => None,
            Some(None) => return Ok(None),
            Some(Some(frame)) => Some(frame.map_err(|_| BROKE_OFF)?),
        };
        Ok(Some(ArrivingBody {
            body,
            length,
            first,
        }))
    }
}

type NextFrame = Option<hyper::Result<Frame<Bytes>>>;

/// What has come already.
async fn now(body: &mut UpstreamResponseBody) -> Poll<NextFrame> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await
}

/// A piece of a body whose length says that there is one.
fn piece(frame: NextFrame) -> Result<Bytes, Rejection> {
    match frame {
        Some(Ok(frame)) => Ok(frame.into_data().unwrap_or_default()),
        Some(Err(_)) | None => Err(BROKE_OFF),
    }
}

/// Its head is an event of its own: the client waits for it.
fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind.len() >= EVENTS.len() && kind[..EVENTS.len()].eq_ignore_ascii_case(EVENTS)
    })
}
