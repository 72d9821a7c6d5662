//! The body of a response that is forwarded while it arrives. Its state is shared with the worker's
//! watchdog.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;

use super::rate_guard::RateRules;
use super::response_stream::{ArrivingBody, ResponseStream, StreamCell, StreamError};
use super::stream_watchdog::SlowStreamWatchdog;
use super::upload::ResponsePermit;
use crate::secret::SecretPattern;

#[derive(Debug)]
pub struct StreamingBody {
    stream: StreamCell,
    length: SizeHint,
}

impl StreamingBody {
    /// `secret`: what must not reach the client in a body of unknown length.
    pub(in crate::pipeline) fn new(
        arriving: ArrivingBody,
        held: ResponsePermit,
        rules: RateRules,
        secret: Option<SecretPattern>,
        watchdog: &SlowStreamWatchdog,
    ) -> Self {
        let length = arriving.length;
        let stream = ResponseStream::new(arriving, held, rules, secret);
        let stream = Arc::new(Mutex::new(stream));
        watchdog.add(&stream);
        Self { stream, length }
    }
}

impl http_body::Body for StreamingBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        self.stream.lock().poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.length
    }
}
