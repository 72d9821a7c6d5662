//! The body on its way down: one type for all answers, so that nothing is boxed.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::streaming::{StreamError, StreamingBody};
use crate::pipeline::access_log::entry::AccessLogEntry;

/// What the listener sends. Carries the access record, which closes with it.
#[derive(Debug)]
pub struct ResponseBody {
    kind: BodyKind,
    record: Option<Box<AccessLogEntry>>,
}

#[derive(Debug)]
enum BodyKind {
    Empty,
    Full(Bytes),
    Streaming(StreamingBody),
    Replayed(Box<ReplayedBody>),
}

/// A body of which the gate has read the beginning, or all.
#[derive(Debug)]
struct ReplayedBody {
    read: Bytes,
    rest: Option<ResponseBody>,
    trailers: Option<HeaderMap>,
    /// Of the whole, as it was stated before any of it was read.
    length: SizeHint,
}

impl ReplayedBody {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if !self.read.is_empty() {
            let read = std::mem::take(&mut self.read);
            return Poll::Ready(Some(Ok(Frame::data(read))));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(
                self.trailers
                    .take()
                    .map(|fields| Ok(Frame::trailers(fields))),
            ),
        }
    }

    fn is_over(&self) -> bool {
        let is_rest_over = self.rest.as_ref().is_none_or(HttpBody::is_end_stream);
        self.read.is_empty() && is_rest_over && self.trailers.is_none()
    }
}

impl ResponseBody {
    pub fn empty() -> Self {
        Self::of(BodyKind::Empty)
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Self::empty();
        }
        Self::of(BodyKind::Full(bytes))
    }

    pub fn streaming(body: StreamingBody) -> Self {
        Self::of(BodyKind::Streaming(body))
    }

    /// Reads up to `most` bytes ahead. Gives the content, if that is all there is, and a
    /// body with everything in it that this one had.
    pub(in crate::pipeline) async fn read_ahead(
        mut self,
        most: usize,
    ) -> Result<(Option<Bytes>, Self), StreamError> {
        let length = self.size_hint();
        let mut read = BytesMut::new();
        let mut trailers = None;
        while let Some(frame) = self.frame().await {
            match frame?.into_data() {
                Ok(piece) => read.extend_from_slice(&piece),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
            if read.len() > most {
                return Ok((
                    None,
                    Self::replayed(read.freeze(), Some(self), None, length),
                ));
            }
        }
        let read = read.freeze();
        let whole = match trailers {
            None => Self::full(read.clone()),
            some => Self::replayed(read.clone(), None, some, length),
        };
        Ok((Some(read), whole))
    }

    fn replayed(
        read: Bytes,
        rest: Option<Self>,
        trailers: Option<HeaderMap>,
        length: SizeHint,
    ) -> Self {
        Self::of(BodyKind::Replayed(Box::new(ReplayedBody {
            read,
            rest,
            trailers,
            length,
        })))
    }

    fn of(kind: BodyKind) -> Self {
        Self { kind, record: None }
    }

    /// The record closes when this body has been sent, or dropped half-way.
    pub(in crate::pipeline) fn watched_by(mut self, record: Box<AccessLogEntry>) -> Self {
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

/// Leaves the body out of an answer to HEAD, and says how long it would be (RFC 9110 9.3.2).
/// Over HTTP/2 hyper would send it.
pub(in crate::pipeline) fn omit(response: &mut Response<ResponseBody>) {
    let body = std::mem::replace(response.body_mut(), ResponseBody::empty());
    if !body.is_end_stream()
        && let Some(length) = body.size_hint().exact()
    {
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let next = match &mut self.kind {
            BodyKind::Empty => Poll::Ready(None),
            BodyKind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = BodyKind::Empty;
                self.sent(bytes.len());
                self.ended();
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            BodyKind::Streaming(body) => Pin::new(body).poll_frame(cx),
            BodyKind::Replayed(body) => body.poll_next(cx),
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
            BodyKind::Empty => true,
            BodyKind::Full(_) => false,
            BodyKind::Streaming(body) => body.is_end_stream(),
            BodyKind::Replayed(body) => body.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::Empty => SizeHint::with_exact(0),
            BodyKind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            BodyKind::Streaming(body) => body.size_hint(),
            BodyKind::Replayed(body) => body.length,
        }
    }
}

impl Drop for ResponseBody {
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
