//! How far a request's body has been sent.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// How far a request's body has been sent, for the response timeout. Each connection has one,
/// reused for each request.
#[derive(Debug)]
pub(in crate::upstream) struct UploadProgress(Mutex<UploadStep>);

#[derive(Clone, Copy, Debug)]
struct UploadStep {
    at: Instant,
    /// The last poll found no data: the exchange waits for the client, not the upstream.
    is_starved: bool,
    has_failed: bool,
}

impl UploadStep {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            is_starved: false,
            has_failed: false,
        }
    }
}

impl UploadProgress {
    pub(in crate::upstream) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(UploadStep::now())))
    }

    /// The time at which the response is late. The time of a slow client does not count: its own deadline
    /// is enforced where its body is read.
    pub(in crate::upstream) fn deadline(&self, first_byte: Duration) -> Instant {
        let step = *self.lock();
        let from = if step.is_starved {
            Instant::now()
        } else {
            step.at
        };
        from.checked_add(first_byte)
            .unwrap_or_else(|| from + Duration::from_secs(365 * 86_400))
    }

    /// How long the exchange has waited for the upstream; None while it waits for the client.
    pub(super) fn owed_for(&self) -> Option<Duration> {
        let step = *self.lock();
        (!step.is_starved && !step.has_failed).then(|| step.at.elapsed())
    }

    /// Whether the request's own body failed.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().has_failed
    }

    fn lock(&self) -> MutexGuard<'_, UploadStep> {
        self.0.lock()
    }
}

/// A request body that records its progress.
pub(in crate::upstream) struct SentBody<B> {
    body: B,
    end: BodyDropGuard,
}

/// Marks the upload as finished on drop: hyper drops a body of known length without polling it for
/// its end. None: the request has no body.
struct BodyDropGuard(Option<Arc<UploadProgress>>);

impl Drop for BodyDropGuard {
    fn drop(&mut self) {
        if let Some(progress) = &self.0 {
            let mut step = progress.lock();
            step.at = Instant::now();
            step.is_starved = false;
        }
    }
}

impl<B: Body> SentBody<B> {
    pub(in crate::upstream) fn new(body: B, progress: &Arc<UploadProgress>) -> Self {
        *progress.lock() = UploadStep::now();
        let end = BodyDropGuard((!body.is_end_stream()).then(|| Arc::clone(progress)));
        Self { body, end }
    }
}

impl<B> SentBody<B> {
    pub(in crate::upstream) fn into_inner(self) -> B {
        self.body
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for SentBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let Some(progress) = &self.end.0 else {
            return polled;
        };
        let mut step = progress.lock();
        match &polled {
            Poll::Pending => step.is_starved = true,
            Poll::Ready(piece) => {
                step.at = Instant::now();
                step.is_starved = false;
                step.has_failed |= matches!(piece, Some(Err(_)));
            }
        }
        drop(step);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
