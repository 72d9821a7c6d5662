//! A response body that carries the access log entry of its request. The entry is written when the
//! body has been sent, or when it is dropped half-way.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::entry::AccessLogEntry;
use crate::pipeline::body::client_response_body::ResponseBody;
use crate::pipeline::body::response_stream::StreamError;

/// What the listener sends.
#[derive(Debug)]
pub struct LoggedResponseBody {
    body: ResponseBody,
    entry: Option<Box<AccessLogEntry>>,
}

impl LoggedResponseBody {
    pub(in crate::pipeline) fn new(body: ResponseBody, entry: Box<AccessLogEntry>) -> Self {
        Self {
            body,
            entry: Some(entry),
        }
    }

    fn complete(&mut self) {
        if let Some(mut entry) = self.entry.take() {
            entry.complete();
        }
    }
}

impl Body for LoggedResponseBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let next = Pin::new(&mut self.body).poll_frame(cx);
        match &next {
            Poll::Ready(None) => self.complete(),
            Poll::Ready(Some(Ok(frame))) => {
                let is_last = match (frame.data_ref(), &mut self.entry) {
                    (Some(chunk), Some(entry)) => {
                        entry.add_bytes_out(chunk.len());
                        self.body.is_spent()
                    }
                    // Trailers are the last frame.
                    (data, _) => data.is_none(),
                };
                if is_last {
                    self.complete();
                }
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(entry) = &mut self.entry {
                    entry.broke_off(error);
                }
            }
            Poll::Pending => {}
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for LoggedResponseBody {
    fn drop(&mut self) {
        // hyper does not poll a body that declares its end from the start (HEAD, 204, 304).
        if self.body.is_end_stream() {
            self.complete();
        }
    }
}
