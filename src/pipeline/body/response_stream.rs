//! The state of a response body that is forwarded while it arrives. Neither side may hold a
//! connection forever by stalling. A body is not polled while its client does not read, so the time
//! limits are enforced from outside: `stream_watchdog` samples all streams of a worker.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};

use super::grpc_messages::GrpcMessages;
use super::permit_state::{ClientLag, ParkOutcome};
use super::rate_guard::{BodySide, RateGuard, RateRules};
use super::redact::SecretRedactor;
use super::upload::ResponsePermit;
use crate::pipeline::headers;
use crate::secret::SecretPattern;
use crate::upstream::{ResponseError, UpstreamResponseBody};

/// Bytes of a body of unknown length that are searched for the injected secret.
const MAX_REDACTED: usize = 64 * 1024;
/// A client may read nothing for this many times `body_idle_timeout`.
const CLIENT_IDLE_FACTOR: u32 = 10;
/// How long a short prefix of the secret is held back.
const HOLD_BACK: Duration = Duration::from_millis(5);
/// Time between the last chunk of a truncated body and its error. When a body fails, hyper discards
/// what it has not written yet, and the client would receive no response at all.
const ERROR_DELAY: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("the upstream's response broke off")]
    Upstream(#[source] ResponseError),
    #[error("the upstream stalled within its response, which was cut")]
    UpstreamSilent,
    #[error("the client read the response too slowly, and it was cut")]
    ClientSlow,
    #[error("the request's deadline passed within the response, which was cut")]
    DeadlinePassed(BodySide),
    #[error("client read slowly, had its share of slow streams, and others waited")]
    NoRoom,
}

/// A response body, and the first frame that was read from it.
#[derive(Debug)]
pub(in crate::pipeline) struct ArrivingBody {
    pub(in crate::pipeline) body: UpstreamResponseBody,
    /// Of the whole body.
    pub(in crate::pipeline) length: SizeHint,
    pub(in crate::pipeline) first: Option<Frame<Bytes>>,
}

pub(super) type StreamCell = Arc<Mutex<ResponseStream>>;

#[derive(Debug)]
pub(super) struct ResponseStream {
    /// The rest of the body and the permit it holds; both are dropped together.
    source: Option<StreamSource>,
    /// Was read before the body was handed on.
    first: Option<Frame<Bytes>>,
    pub(super) rate: RateGuard,
    waker: Option<Waker>,
    lag: ClientLag,
    cut: Option<StreamCutReason>,
    failure: Option<DelayedError>,
    redactor: Option<SecretRedactor>,
    /// None: not a call of gRPC.
    messages: Option<GrpcMessages>,
    /// When the prefix that is held back is released.
    release: Option<Pin<Box<Sleep>>>,
    /// Arrived while a chunk was held back; sent after it.
    trailers: Option<HeaderMap>,
}

#[derive(Debug)]
struct StreamSource {
    body: UpstreamResponseBody,
    held: ResponsePermit,
}

/// Why a response is not read to its end.
#[derive(Clone, Copy, Debug)]
pub(super) enum StreamCutReason {
    TooSlow(BodySide),
    DeadlinePassed(BodySide),
    NoRoom,
}

impl From<StreamCutReason> for StreamError {
    fn from(reason: StreamCutReason) -> Self {
        match reason {
            StreamCutReason::TooSlow(BodySide::Client) => Self::ClientSlow,
            StreamCutReason::TooSlow(BodySide::Upstream) => Self::UpstreamSilent,
            StreamCutReason::DeadlinePassed(side) => Self::DeadlinePassed(side),
            StreamCutReason::NoRoom => Self::NoRoom,
        }
    }
}

/// The error of a response that broke off, reported once the chunks before it have been written.
#[derive(Debug)]
struct DelayedError {
    error: Option<ResponseError>,
    delay: Pin<Box<Sleep>>,
}

impl ResponseStream {
    /// `secret`: what must not reach the client in a body of unknown length.
    pub(super) fn new(
        arriving: ArrivingBody,
        held: ResponsePermit,
        rules: RateRules,
        secret: Option<SecretPattern>,
    ) -> Self {
        Self {
            source: Some(StreamSource {
                body: arriving.body,
                held,
            }),
            first: arriving.first,
            // The client has not polled yet: it owes the first step.
            rate: RateGuard::new(rules, BodySide::Client),
            waker: None,
            lag: ClientLag::default(),
            cut: None,
            failure: None,
            redactor: secret.map(|secret| SecretRedactor::new(secret, MAX_REDACTED)),
            messages: rules.is_call.then(GrpcMessages::default),
            release: None,
            trailers: None,
        }
    }

    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if let Some(reason) = self.cut {
            return Poll::Ready(Some(Err(reason.into())));
        }
        loop {
            let next = match (self.first.take(), &mut self.source) {
                (Some(first), _) => Poll::Ready(Some(Ok(first))),
                (None, Some(source)) => Pin::new(&mut source.body).poll_frame(cx),
                (None, None) => return self.poll_end(cx),
            };
            match next {
                Poll::Pending => {
                    self.waker = Some(cx.waker().clone());
                    self.rate.await_side(BodySide::Upstream);
                    return self.poll_release(cx).map(|chunk| Some(Ok(chunk)));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(frame) = self.accept(frame) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.source = None;
                    self.redactor = None;
                    self.failure = Some(DelayedError {
                        error: Some(error),
                        delay: Box::pin(sleep(ERROR_DELAY)),
                    });
                }
                Poll::Ready(None) => self.source = None,
            }
        }
    }

    /// What follows the last frame of the upstream.
    fn poll_end(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if let Some(failure) = &mut self.failure {
            ready!(failure.delay.as_mut().poll(cx));
            let error = failure.error.take().map(StreamError::Upstream);
            return Poll::Ready(error.map(Err));
        }
        Poll::Ready(self.next_held_back().map(Ok))
    }

    /// Sends a short prefix of the secret that has been held back for long enough.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<Frame<Bytes>> {
        let redactor = self.redactor.as_mut();
        let Some(redactor) = redactor.filter(|redactor| redactor.can_release()) else {
            return Poll::Pending;
        };
        let release = self
            .release
            .get_or_insert_with(|| Box::pin(sleep(HOLD_BACK)));
        ready!(release.as_mut().poll(cx));
        self.release = None;
        match redactor.release() {
            Some(chunk) => Poll::Ready(Frame::data(chunk)),
            None => Poll::Pending,
        }
    }

    /// What is sent for `frame`; None: nothing yet.
    fn accept(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        match frame.into_data() {
            Ok(chunk) => {
                self.rate.record_progress(chunk.len(), BodySide::Client);
                self.release = None;
                let Some(redactor) = &mut self.redactor else {
                    return Some(Frame::data(chunk));
                };
                let messages = self.messages.as_mut();
                let is_whole = messages.is_some_and(|messages| messages.ends_with(&chunk));
                let mut chunk = redactor.push(chunk);
                // The secret cannot go on behind the prefix of the next message.
                if is_whole && let Some(rest) = redactor.finish() {
                    chunk = [&chunk[..], &rest].concat().into();
                }
                (!chunk.is_empty()).then(|| Frame::data(chunk))
            }
            Err(frame) => {
                self.trailers = frame.into_trailers().ok().map(headers::safe_trailers);
                if let (Some(redactor), Some(trailers)) = (&self.redactor, &mut self.trailers) {
                    headers::redact_fields(trailers, redactor.secret());
                }
                self.next_held_back()
            }
        }
    }

    /// The chunk that was held back, then the trailers, then None.
    fn next_held_back(&mut self) -> Option<Frame<Bytes>> {
        match self.redactor.as_mut().and_then(SecretRedactor::finish) {
            Some(chunk) => Some(Frame::data(chunk)),
            None => self.trailers.take().map(Frame::trailers),
        }
    }

    fn is_holding(&self) -> bool {
        self.first.is_some()
            || self.trailers.is_some()
            || self
                .redactor
                .as_ref()
                .is_some_and(SecretRedactor::is_holding)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        !self.is_holding()
            && match &self.source {
                Some(source) => source.body.is_end_stream(),
                None => self.cut.is_none() && self.failure.is_none(),
            }
    }

    /// Whether the stream still reads from the upstream.
    pub(super) fn is_open(&self) -> bool {
        self.source.is_some()
    }

    /// Why this response must be cut now. A distant client empties a full send buffer in steps of a
    /// megabyte and reads nothing in between, so it gets more time than an upstream. An upstream that
    /// waits for the rest of its request owes nothing.
    pub(super) fn overdue(&self, now: Instant) -> Option<StreamCutReason> {
        let source = self.source.as_ref()?;
        let side = match self.awaits_client() || source.held.awaits_upload() {
            true => BodySide::Client,
            false => BodySide::Upstream,
        };
        if self.rate.is_past_deadline(now) {
            return Some(StreamCutReason::DeadlinePassed(side));
        }
        let is_too_slow = match side {
            BodySide::Client if !self.awaits_client() => false,
            BodySide::Client => self.rate.is_too_slow(now, CLIENT_IDLE_FACTOR),
            BodySide::Upstream => !self.rate.is_call() && self.rate.is_too_slow(now, 1),
        };
        is_too_slow.then_some(StreamCutReason::TooSlow(side))
    }

    /// Whether the client owes the next step: the last poll returned a chunk, or a chunk has arrived
    /// since and was not polled because the client does not read.
    fn awaits_client(&self) -> bool {
        let has_unread = || self.source.as_ref().is_some_and(StreamSource::has_unread);
        self.rate.awaited() == BodySide::Client || has_unread()
    }

    /// Takes one sample; true when the client is slow and the stream still holds its permit.
    pub(super) fn sample_lag(&mut self) -> bool {
        let Some(source) = &self.source else {
            return false;
        };
        let is_waiting_for_client = self.awaits_client() || source.held.awaits_upload();
        source.held.permit.is_held() && self.lag.sample(is_waiting_for_client)
    }

    pub(super) fn park(&mut self) -> ParkOutcome {
        match &mut self.source {
            Some(source) => source.held.permit.park(),
            None => ParkOutcome::Parked,
        }
    }

    /// Whether ending the stalled stream `other` would free a slot for this stream.
    pub(super) fn can_take_slot_of(&self, other: &Self) -> bool {
        match (&self.source, &other.source) {
            (Some(own), Some(other)) => own.held.permit.can_take_slot_of(&other.held.permit),
            _ => false,
        }
    }

    /// Ends the response with an error.
    pub(super) fn cut(&mut self, reason: StreamCutReason) {
        self.cut = Some(reason);
        self.source = None;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl StreamSource {
    /// Whether the upstream's body has a frame that was not polled yet.
    fn has_unread(&self) -> bool {
        self.body.has_news()
    }
}
