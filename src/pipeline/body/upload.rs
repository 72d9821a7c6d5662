//! The state that the copies of one request body share: the client's stream, the chunks kept for a
//! repeat, and the request's upstream permit while the body is being sent.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::client_body::ClientBody;
use super::permit_state::{ClientLag, ParkOutcome, PermitState};
use super::rate_guard::{BodySide, RateGuard, RateRules};
use crate::pipeline::headers;
use crate::pipeline::reject::Rejection;
use crate::upstream::{PermitTimeout, UpstreamPermit};

/// A chunk shares the buffer that it was read into. Smaller chunks are copied before they are kept:
/// otherwise a body that arrives byte by byte would keep one buffer per byte.
const MIN_SHARED_CHUNK: usize = 4 * 1024;

/// Why a request body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the client's body broke off")]
    Client(#[source] hyper::Error),
    #[error("the client's body is larger than this route allows")]
    TooLarge,
    #[error("the client's body arrived too slowly")]
    TooSlow,
    #[error("this copy of the body was replaced by a newer one")]
    Superseded,
    #[error("no upstream permit for the end of a slow body")]
    NoPermit,
}

/// The limits that a request body must keep to.
#[derive(Clone, Copy, Debug)]
pub struct BodyRules {
    pub max_bytes: u64,
    /// Bytes that are kept for a repeat.
    pub replay_limit: usize,
    pub idle_timeout: Duration,
    /// Longest wait for the first bytes of a body that is not small.
    pub first_bytes_timeout: Duration,
    /// Bytes per second; 0: none.
    pub min_rate: u64,
    /// End of the whole exchange.
    pub deadline: Instant,
}

/// The shared state of the copies of one body.
#[derive(Debug)]
pub(super) struct UploadState(Mutex<UploadSource>);

#[derive(Debug)]
pub(super) struct UploadSource {
    incoming: ClientBody,
    rules: BodyRules,
    rate: RateGuard,
    /// Number of the newest copy, the only one that may read.
    pub(super) copy: u32,
    pub(super) total: u64,
    pub(super) kept: Vec<Bytes>,
    /// Follows `kept`: consecutive small chunks.
    kept_small: Vec<u8>,
    kept_bytes: usize,
    pub(super) trailers: Option<HeaderMap>,
    pub(super) ended: bool,
    /// More was read than is kept: the body cannot be sent again.
    pub(super) spilled: bool,
    pub(super) failed: Option<BodyFailure>,
    /// The request's permit while the body is being sent.
    pub(super) permit: Option<PermitState>,
    lag: ClientLag,
    /// Of the reading task, if the body holds a permit.
    waker: Option<Waker>,
    pub(super) end: Option<Box<WithheldEnd>>,
}

pub(super) type UploadChunk = Option<Result<Frame<Bytes>, BodyError>>;

/// The end of a body, withheld until the request has a permit again.
pub(super) struct WithheldEnd {
    chunk: UploadChunk,
    permit: Pin<Box<dyn Future<Output = Result<UpstreamPermit, PermitTimeout>> + Send>>,
}

impl fmt::Debug for WithheldEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithheldEnd").finish_non_exhaustive()
    }
}

/// What went wrong with the client's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFailure {
    TooLarge,
    TooSlow,
    BrokeOff,
    /// The client was slow, and no upstream permit was free for the rest of its body.
    NoPermit,
}

impl BodyFailure {
    pub(in crate::pipeline) fn rejection(self) -> Rejection {
        match self {
            Self::TooLarge => Rejection::TooLarge,
            Self::TooSlow => Rejection::TooSlow,
            Self::BrokeOff => Rejection::BadRequest("the body broke off"),
            Self::NoPermit => Rejection::Overloaded,
        }
    }
}

/// The permit that a response holds, and the upload that continues beside the response.
#[derive(Debug)]
pub(in crate::pipeline) struct ResponsePermit {
    pub(super) permit: PermitState,
    pub(super) upload: Option<Arc<UploadState>>,
}

impl ResponsePermit {
    /// Whether the upstream waits for the rest of the client's body.
    pub(super) fn awaits_upload(&self) -> bool {
        let upload = self.upload.as_ref();
        upload.is_some_and(|upload| upload.is_waiting_for_client())
    }
}

impl UploadState {
    pub(super) fn new(incoming: ClientBody, rules: BodyRules) -> Self {
        Self(Mutex::new(UploadSource {
            incoming,
            rules,
            rate: RateGuard::new(
                RateRules {
                    idle_timeout: rules.idle_timeout,
                    min_rate: rules.min_rate,
                    deadline: rules.deadline,
                    is_call: false,
                },
                BodySide::Client,
            ),
            copy: 0,
            total: 0,
            kept: Vec::new(),
            kept_small: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            ended: false,
            spilled: false,
            failed: None,
            permit: None,
            lag: ClientLag::default(),
            waker: None,
            end: None,
        }))
    }

    pub(super) fn is_waiting_for_client(&self) -> bool {
        let source = self.lock();
        source.awaits_client() && !source.ended
    }

    /// Takes one sample, and returns the permit if the client is slow; false when the body no longer
    /// holds a permit.
    pub(super) fn check_progress(&self) -> bool {
        let mut source = self.lock();
        let is_waiting_for_client = source.awaits_client();
        let Some(permit) = &source.permit else {
            return false;
        };
        if permit.is_held() && source.lag.sample(is_waiting_for_client) {
            source.park();
        }
        true
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, UploadSource> {
        self.0.lock()
    }
}

impl UploadSource {
    /// Whether the last poll of the client's stream found nothing.
    fn awaits_client(&self) -> bool {
        self.rate.awaited() == BodySide::Client
    }

    /// Stops the client's clock: nothing is read until the request is sent.
    pub(super) fn pause(&mut self) {
        self.merge_small_chunks();
        self.rate.await_side(BodySide::Upstream);
    }

    pub(super) fn first_bytes_timeout(&self) -> Duration {
        self.rules.first_bytes_timeout
    }

    pub(super) fn replay_limit(&self) -> u64 {
        self.rules.replay_limit as u64
    }

    /// Reads until the end or the replay limit; whether all of the body has been read.
    pub(super) fn poll_prefetch(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while !self.ended {
            if self.failed.is_some() || self.kept_bytes >= self.rules.replay_limit {
                break;
            }
            // The last chunk may exceed the limit: it is in memory and can be repeated too.
            if let Some(Ok(frame)) = ready!(self.poll_incoming(cx))
                && let Ok(chunk) = frame.into_data()
            {
                self.keep_chunk(chunk);
            }
        }
        self.merge_small_chunks();
        Poll::Ready(self.ended)
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<UploadChunk> {
        if self.end.is_some() {
            return self.poll_end(cx);
        }
        let chunk = ready!(self.poll_incoming(cx));
        if let Some(Ok(frame)) = &chunk
            && let Some(data) = frame.data_ref()
        {
            self.keep(data);
        }
        let is_end = self.ended
            || chunk
                .as_ref()
                .is_none_or(|chunk| chunk.as_ref().is_ok_and(Frame::is_trailers));
        let permit = self.permit.as_ref().filter(|_| is_end);
        if let Some(permit) = permit.and_then(PermitState::reacquire) {
            let permit = Box::pin(permit);
            self.end = Some(Box::new(WithheldEnd { chunk, permit }));
            return self.poll_end(cx);
        }
        Poll::Ready(chunk)
    }

    /// Sends the end of a body whose permit was returned once there is a permit again: the upstream
    /// starts to work when it has the whole body.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<UploadChunk> {
        let Some(end) = &mut self.end else {
            return Poll::Ready(None);
        };
        let reacquired = ready!(end.permit.as_mut().poll(cx));
        let chunk = end.chunk.take();
        self.end = None;
        match (reacquired, &mut self.permit) {
            (Ok(permit), Some(state)) => {
                *state = PermitState::Held(permit);
                Poll::Ready(chunk)
            }
            // The response has started and holds the permit.
            (_, None) => Poll::Ready(chunk),
            (Err(_), Some(_)) => {
                self.failed = Some(BodyFailure::NoPermit);
                Poll::Ready(Some(Err(BodyError::NoPermit)))
            }
        }
    }

    fn park(&mut self) {
        let Some(permit) = &mut self.permit else {
            return;
        };
        if permit.park() == ParkOutcome::MustEnd {
            self.failed = Some(BodyFailure::NoPermit);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<UploadChunk> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.failed == Some(BodyFailure::NoPermit) {
            return Poll::Ready(Some(Err(BodyError::NoPermit)));
        }
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            self.rate.await_side(BodySide::Client);
            if self.permit.is_some() {
                self.waker = Some(cx.waker().clone());
            }
            ready!(self.rate.poll_too_slow(cx));
            self.failed = Some(BodyFailure::TooSlow);
            return Poll::Ready(Some(Err(BodyError::TooSlow)));
        };
        match frame {
            None => {
                self.ended = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.failed = Some(BodyFailure::BrokeOff);
                Poll::Ready(Some(Err(BodyError::Client(error))))
            }
            Some(Ok(frame)) => {
                let frame = self.accept(frame);
                self.ended = frame.is_ok() && self.incoming.is_end_stream();
                Poll::Ready(Some(frame))
            }
        }
    }

    fn accept(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let frame = match frame.into_data() {
            Ok(chunk) => {
                self.total += chunk.len() as u64;
                self.rate.record_progress(chunk.len(), BodySide::Upstream);
                if self.total > self.rules.max_bytes {
                    self.failed = Some(BodyFailure::TooLarge);
                    return Err(BodyError::TooLarge);
                }
                return Ok(Frame::data(chunk));
            }
            Err(frame) => frame,
        };
        match frame.into_trailers() {
            Ok(trailers) => {
                // Fields that change how the message is read, and credentials, must not come as
                // trailers (RFC 9110 6.5.1).
                let trailers = headers::safe_trailers(trailers);
                self.trailers = Some(trailers.clone());
                Ok(Frame::trailers(trailers))
            }
            Err(frame) => Ok(frame),
        }
    }

    fn keep(&mut self, chunk: &Bytes) {
        if self.spilled {
            return;
        }
        if self.kept_bytes + chunk.len() > self.rules.replay_limit {
            self.spilled = true;
            self.kept = Vec::new();
            self.kept_small = Vec::new();
            return;
        }
        self.keep_chunk(chunk.clone());
    }

    fn keep_chunk(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        // Most bodies have one chunk.
        if self.kept_bytes == 0 || chunk.len() >= MIN_SHARED_CHUNK {
            self.kept_bytes += chunk.len();
            self.merge_small_chunks();
            self.kept.push(chunk);
        } else {
            self.kept_bytes += chunk.len();
            self.kept_small.extend_from_slice(&chunk);
        }
    }

    /// Appends the small chunks to `kept` as one chunk.
    pub(super) fn merge_small_chunks(&mut self) {
        if !self.kept_small.is_empty() {
            let small = std::mem::take(&mut self.kept_small);
            self.kept.push(small.into());
        }
    }
}
