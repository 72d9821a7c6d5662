//! The body of a response on its way to the client: one type for all responses, so that no body is
//! boxed.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::response_stream::StreamError;
use super::streaming_body::StreamingBody;

#[derive(Debug)]
pub struct ResponseBody {
    kind: BodyKind,
}

#[derive(Debug)]
enum BodyKind {
    Empty,
    Full(Bytes),
    Streaming(StreamingBody),
    Replayed(Box<ReplayedBody>),
}

/// A body of which the gateway has read the first bytes, or all.
#[derive(Debug)]
struct ReplayedBody {
    read: Bytes,
    rest: Option<ResponseBody>,
    trailers: Option<HeaderMap>,
    /// Of the whole body, as declared before any of it was read.
    length: SizeHint,
}

/// The outcome of `ResponseBody::read_ahead`.
pub(in crate::pipeline) struct ReadAhead {
    /// The whole content; None when it is longer than the limit.
    pub(in crate::pipeline) content: Option<Bytes>,
    /// A body with everything that the original had.
    pub(in crate::pipeline) body: ResponseBody,
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

    fn is_end_stream(&self) -> bool {
        let is_rest_over = self.rest.as_ref().is_none_or(HttpBody::is_end_stream);
        self.read.is_empty() && is_rest_over && self.trailers.is_none()
    }
}

impl ResponseBody {
    pub fn empty() -> Self {
        Self {
            kind: BodyKind::Empty,
        }
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Self::empty();
        }
        Self {
            kind: BodyKind::Full(bytes),
        }
    }

    pub fn streaming(body: StreamingBody) -> Self {
        Self {
            kind: BodyKind::Streaming(body),
        }
    }

    /// Reads up to `limit` bytes ahead.
    pub(in crate::pipeline) async fn read_ahead(
        mut self,
        limit: usize,
    ) -> Result<ReadAhead, StreamError> {
        let length = self.size_hint();
        let mut read = BytesMut::new();
        let mut trailers = None;
        while let Some(frame) = self.frame().await {
            match frame?.into_data() {
                Ok(chunk) => read.extend_from_slice(&chunk),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
            if read.len() > limit {
                return Ok(ReadAhead {
                    content: None,
                    body: Self::replayed(ReplayedBody {
                        read: read.freeze(),
                        rest: Some(self),
                        trailers: None,
                        length,
                    }),
                });
            }
        }
        let read = read.freeze();
        let body = match trailers {
            None => Self::full(read.clone()),
            trailers => Self::replayed(ReplayedBody {
                read: read.clone(),
                rest: None,
                trailers,
                length,
            }),
        };
        Ok(ReadAhead {
            content: Some(read),
            body,
        })
    }

    fn replayed(body: ReplayedBody) -> Self {
        Self {
            kind: BodyKind::Replayed(Box::new(body)),
        }
    }

    /// Whether nothing is left of a body that needs no upstream.
    pub(in crate::pipeline) fn is_spent(&self) -> bool {
        matches!(self.kind, BodyKind::Empty)
    }
}

/// Removes the body from a response to HEAD and declares the length it would have (RFC 9110 9.3.2).
/// Over HTTP/2 hyper would send the body.
pub(in crate::pipeline) fn omit_body(response: &mut Response<ResponseBody>) {
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
        match &mut self.kind {
            BodyKind::Empty => Poll::Ready(None),
            BodyKind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = BodyKind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            BodyKind::Streaming(body) => Pin::new(body).poll_frame(cx),
            BodyKind::Replayed(body) => body.poll_next(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            BodyKind::Empty => true,
            BodyKind::Full(_) => false,
            BodyKind::Streaming(body) => body.is_end_stream(),
            BodyKind::Replayed(body) => body.is_end_stream(),
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

/// For bodies that cannot fail.
impl From<Infallible> for StreamError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
