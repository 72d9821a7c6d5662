//! Stage 5, the first bytes of a response's body. The head waits for them briefly, so that a response
//! that breaks off before its first byte becomes a 502 and not an empty 200.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::{timeout, timeout_at};

use super::upstream_exchange::Forwarder;
use crate::clock;
use crate::pipeline::body::response_stream::ArrivingBody;
use crate::pipeline::reject::Rejection;
use crate::upstream::{ResponseError, UpstreamResponseBody};

/// Bodies up to this length are read completely before they are sent: the upstream connection is
/// free at once, however slowly the client reads.
pub(super) const MAX_SMALL_BODY: u64 = 16 * 1024;
/// A small body that takes longer than this is streamed after all.
const SMALL_BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the head of a larger response waits for the first chunk of its body.
const FIRST_CHUNK_TIMEOUT: Duration = Duration::from_millis(30);
const BROKE_OFF: Rejection = Rejection::BadUpstreamResponse("upstream's response broke off");

/// A small body of known length.
pub(super) enum SmallBody {
    Whole(Bytes),
    /// The upstream has not sent all of it yet.
    Arriving(Box<ArrivingBody>),
}

impl Forwarder<'_> {
    /// Reads a body of `length` bytes. Most arrive together with their head, in one chunk.
    pub(super) async fn read_small(
        &self,
        mut body: UpstreamResponseBody,
        length: u64,
    ) -> Result<SmallBody, Rejection> {
        let first = match poll_now(&mut body).await {
            Poll::Ready(frame) => chunk_of(frame)?,
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
                let idle_end = clock::now() + self.settings().body_idle_timeout;
                let first = timeout_at(self.deadline.min(idle_end), body.frame()).await;
                chunk_of(first.map_err(|_| Rejection::UpstreamTimeout)?)?
            }
        };
        let until = clock::now() + SMALL_BODY_TIMEOUT;
        let mut read = BytesMut::from(&first[..]);
        while (read.len() as u64) < length {
            match timeout_at(self.deadline.min(until), body.frame()).await {
                Ok(frame) => read.extend_from_slice(&chunk_of(frame)?),
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

    /// Reads the first chunk if it arrives soon. None: the body is empty.
    pub(super) async fn read_first(
        &self,
        mut body: UpstreamResponseBody,
        headers: &HeaderMap,
    ) -> Result<Option<ArrivingBody>, Rejection> {
        let length = body.size_hint();
        let first = match poll_now(&mut body).await {
            Poll::Ready(frame) => Some(frame),
            Poll::Pending if self.is_call || is_event_stream(headers) => None,
            Poll::Pending => {
                let first = Box::pin(timeout(FIRST_CHUNK_TIMEOUT, body.frame()));
                first.await.ok()
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

type NextFrame = Option<Result<Frame<Bytes>, ResponseError>>;

/// The next frame, if it has arrived already.
async fn poll_now(body: &mut UpstreamResponseBody) -> Poll<NextFrame> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await
}

/// The next chunk of a body that, by its length, has one.
fn chunk_of(frame: NextFrame) -> Result<Bytes, Rejection> {
    match frame {
        Some(Ok(frame)) => Ok(frame.into_data().unwrap_or_default()),
        Some(Err(_)) | None => Err(BROKE_OFF),
    }
}

/// The client of an event stream waits for the head, which may precede the first event by long.
fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind.len() >= EVENTS.len() && kind[..EVENTS.len()].eq_ignore_ascii_case(EVENTS)
    })
}
