//! The body on its way down: one type for all answers, so that nothing is boxed.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::record::Record;
use super::streaming::{StreamError, Streaming};

/// What the listener sends. Carries the access record, which closes with it.
#[derive(Debug)]
pub struct Body {
    kind: Kind,
    record: Option<Box<Record>>,
}

#[derive(Debug)]
enum Kind {
    Empty,
    Full(Bytes),
    Streaming(Streaming),
}

impl Body {
    pub fn empty() -> Self {
        Self::of(Kind::Empty)
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Self::empty();
        }
        Self::of(Kind::Full(bytes))
    }

    pub fn streaming(body: Streaming) -> Self {
        Self::of(Kind::Streaming(body))
    }

    fn of(kind: Kind) -> Self {
        Self { kind, record: None }
    }

    /// The record closes when this body has been sent, or dropped half-way.
    pub(super) fn watched_by(mut self, record: Box<Record>) -> Self {
        self.record = Some(record);
        self
    }

    fn ended(&mut self) {
        if let Some(record) = &mut self.record {
            record.completed();
        }
        self.record = None;
    }

    fn sent(&mut self, bytes: usize) {
        if let Some(record) = &mut self.record {
            record.sent(bytes);
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let next = match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                self.sent(bytes.len());
                self.ended();
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Kind::Streaming(body) => Pin::new(body).poll_frame(cx),
        };
        match &next {
            Poll::Ready(None) => self.ended(),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(piece) = frame.data_ref() {
                    self.sent(piece.len());
                } else {
                    self.ended(); // trailers come last
                }
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(record) = &mut self.record {
                    record.broke_off(error);
                }
            }
            Poll::Pending => {}
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Streaming(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Streaming(body) => body.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // hyper does not poll a body that says it is at its end (HEAD, 204, 304).
        if self.is_end_stream() {
            self.ended();
        }
    }
}

/// For bodies that cannot fail.
impl From<Infallible> for StreamError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
