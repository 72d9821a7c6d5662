//! The body of a request on its stream: as fast as the client supplies it and the peer's windows allow.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;
use tokio::time::Instant;

use crate::clock;
use crate::upstream::transport::response_error::ResponseError;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that is being sent.
pub(super) struct StreamUpload<B> {
    stream: SendStream<Bytes>,
    state: UnsentBody<B>,
    /// Read from the body, and not sent yet.
    piece: Bytes,
    /// When the upload moved last.
    moved_at: Instant,
    /// The client owes the next piece.
    is_starved: bool,
    has_failed: bool,
    /// The peer has ended the stream first.
    is_stopped: bool,
}

enum UnsentBody<B> {
    /// The rest of the body; `left`: its declared length.
    Body { body: B, left: Option<u64> },
    /// Only `piece` is left.
    LastPiece,
    /// The end was sent, or the peer wants no more.
    Over,
}

impl<B> StreamUpload<B> {
    /// Nothing is sent but the head.
    pub(super) fn none(stream: SendStream<Bytes>) -> Self {
        Self::new(stream, UnsentBody::Over)
    }

    /// `length`: the declared one.
    pub(super) fn of(stream: SendStream<Bytes>, body: B, length: Option<u64>) -> Self {
        Self::new(stream, UnsentBody::Body { body, left: length })
    }

    fn new(stream: SendStream<Bytes>, state: UnsentBody<B>) -> Self {
        Self {
            stream,
            state,
            piece: Bytes::new(),
            moved_at: clock::now(),
            is_starved: false,
            has_failed: false,
            is_stopped: false,
        }
    }

    /// Whether the whole request was handed over.
    pub(super) fn is_sent(&self) -> bool {
        matches!(self.state, UnsentBody::Over) && !self.is_stopped
    }

    /// When the response is late, `first_byte` after the last step of the request. The time of a slow
    /// client does not count.
    pub(super) fn deadline(&self, first_byte: Duration) -> Instant {
        let from = match self.is_starved {
            true => clock::now(),
            false => self.moved_at,
        };
        from.checked_add(first_byte)
            .unwrap_or_else(|| from + Duration::from_secs(365 * 86_400))
    }

    /// How long the exchange has waited for the upstream; None while it waits for the client.
    pub(super) fn owed_for(&self) -> Option<Duration> {
        (!self.is_starved && !self.has_failed).then(|| self.moved_at.elapsed())
    }

    pub(super) fn reset(&mut self) {
        self.state = UnsentBody::Over;
        self.stream.send_reset(Reason::CANCEL);
    }
}

impl<B> StreamUpload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// Sends what can be sent now. Fails only with the client's body; what the peer does is the
    /// response's to tell.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), ResponseError> {
        loop {
            if !self.piece.is_empty() {
                if self.send_piece(cx).is_pending() {
                    return Ok(());
                }
                continue;
            }
            let UnsentBody::Body { body, .. } = &mut self.state else {
                return Ok(());
            };
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
                self.is_starved = true;
                return Ok(());
            };
            self.is_starved = false;
            self.moved_at = clock::now();
            let taken = match frame {
                None => self.end(None),
                Some(Err(error)) => Err(ResponseError::RequestBody(error.into())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.take(data),
                    Err(frame) => self.end(frame.into_trailers().ok()),
                },
            };
            if taken.is_err() {
                self.has_failed = true;
                // The peer must not take the part for the whole.
                self.reset();
            }
            taken?;
        }
    }

    fn take(&mut self, data: Bytes) -> Result<(), ResponseError> {
        if let UnsentBody::Body {
            left: Some(left), ..
        } = &mut self.state
        {
            let length = data.len() as u64;
            *left = left
                .checked_sub(length)
                .ok_or(ResponseError::RequestLength)?;
            if *left == 0 {
                self.state = UnsentBody::LastPiece;
            }
        }
        self.piece = data;
        Ok(())
    }

    fn end(&mut self, trailers: Option<http::HeaderMap>) -> Result<(), ResponseError> {
        if let UnsentBody::Body {
            left: Some(1..), ..
        } = &self.state
        {
            return Err(ResponseError::RequestLength);
        }
        self.state = UnsentBody::Over;
        // An error here means that the stream has ended, which the response tells.
        let _ = match trailers.filter(|trailers| !trailers.is_empty()) {
            Some(trailers) => self.stream.send_trailers(trailers),
            None => self.stream.send_data(Bytes::new(), true),
        };
        Ok(())
    }

    /// Sends as much of the piece as the windows allow; pending: nothing.
    fn send_piece(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.reserve_capacity(self.piece.len());
        let capacity = match self.stream.capacity() {
            0 => match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(capacity))) => capacity,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Err(_)) | None) => {
                    self.stop();
                    return Poll::Ready(());
                }
            },
            capacity => capacity,
        };
        let part = self.piece.split_to(capacity.min(self.piece.len()));
        if part.is_empty() {
            return Poll::Ready(());
        }
        self.moved_at = clock::now();
        let is_last = self.piece.is_empty() && matches!(self.state, UnsentBody::LastPiece);
        if self.stream.send_data(part, is_last).is_err() {
            self.stop();
        } else if is_last {
            self.state = UnsentBody::Over;
        }
        Poll::Ready(())
    }

    /// The peer takes no more.
    fn stop(&mut self) {
        self.piece = Bytes::new();
        self.state = UnsentBody::Over;
        self.is_stopped = true;
    }
}
