//! Answers that are passed on while they arrive. Whoever stalls, upstream or client,
//! must not hold a connection for ever: a client that stops reading is never polled
//! again, so the time is kept from outside, by a look now and then over all of them
//! (`stream_watch`).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, Sleep, sleep};

use super::permit_state::{AnswerTurn, ClientLag, ParkedTurn};
use super::rate_guard::{BodyDebtor, PaceRules, RateGuard};
use super::redact::SecretRedactor;
use super::stream_watchdog::SlowStreamWatchdog;
use crate::pipeline::headers;
use crate::secret::SecretPattern;
use crate::upstream::UpstreamResponseBody;

/// How much of a body of unknown length is searched for the injected secret.
const SCRUBBED: usize = 64 * 1024;
/// How many times `body_idle_timeout` a client may take nothing.
const CLIENT_PATIENCE: u32 = 10;
/// What is no secret by itself is held back for so long.
const HELD_FOR: Duration = Duration::from_millis(5);
/// From the last piece of a body that has broken off to its failure: hyper forgets what it has
/// not written yet when a body fails, and the client would see no answer at all.
const FAILS_AFTER: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("upstream's answer broke off")]
    Upstream(#[source] hyper::Error),
    #[error("upstream fell silent within its answer, which was cut")]
    UpstreamSilent,
    #[error("client took the answer too slowly, and it was cut")]
    ClientSlow,
    #[error("the time for the request was up within the answer, which was cut")]
    TimeUp(BodyDebtor),
    #[error("client read slowly, had its share of slow streams, and others waited")]
    NoRoom,
}

/// An answer's body that is still arriving.
#[derive(Debug)]
pub struct StreamingBody {
    cell: StreamCell,
    length: SizeHint,
}

pub(super) type StreamCell = Arc<Mutex<ResponseStream>>;

/// An answer's body as it came so far.
#[derive(Debug)]
pub(in crate::pipeline) struct ArrivingBody {
    pub(in crate::pipeline) body: UpstreamResponseBody,
    /// Of the whole.
    pub(in crate::pipeline) length: SizeHint,
    /// What has been read of it.
    pub(in crate::pipeline) first: Option<Frame<Bytes>>,
}

#[derive(Debug)]
pub(in crate::pipeline) struct ResponseStream {
    /// The body and its turn at the upstream; both end together.
    pub(in crate::pipeline) body: Option<(UpstreamResponseBody, AnswerTurn)>,
    /// Came before the body was passed on.
    first: Option<Frame<Bytes>>,
    pub(super) pace: RateGuard,
    waker: Option<Waker>,
    lag: ClientLag,
    cut: Option<StreamCutReason>,
    failure: Option<BrokenOff>,
    scrub: Option<SecretRedactor>,
    /// Until what is held back, and is no secret, goes down.
    release: Option<Pin<Box<Sleep>>>,
    /// Came while a piece was held back; goes down after it.
    trailers: Option<HeaderMap>,
}

/// Why an answer is not read to its end.
#[derive(Clone, Copy, Debug)]
pub(super) enum StreamCutReason {
    TooSlow(BodyDebtor),
    TimeUp(BodyDebtor),
    NoRoom,
}

impl From<StreamCutReason> for StreamError {
    fn from(cut: StreamCutReason) -> Self {
        match cut {
            StreamCutReason::TooSlow(BodyDebtor::Client) => Self::ClientSlow,
            StreamCutReason::TooSlow(BodyDebtor::Upstream) => Self::UpstreamSilent,
            StreamCutReason::TimeUp(debtor) => Self::TimeUp(debtor),
            StreamCutReason::NoRoom => Self::NoRoom,
        }
    }
}

/// The upstream's answer has broken off; told when what came before it has been written.
#[derive(Debug)]
struct BrokenOff {
    error: Option<hyper::Error>,
    pause: Pin<Box<Sleep>>,
}

impl StreamingBody {
    /// `scrub`: the secret that must not come down in a body of unknown length.
    pub(in crate::pipeline) fn new(
        arriving: ArrivingBody,
        turn: AnswerTurn,
        rules: PaceRules,
        scrub: Option<SecretPattern>,
        flows: &SlowStreamWatchdog,
    ) -> Self {
        let cell = Arc::new(Mutex::new(ResponseStream {
            body: Some((arriving.body, turn)),
            first: arriving.first,
            // It has not asked for anything yet.
            pace: RateGuard::new(rules, BodyDebtor::Client),
            waker: None,
            lag: ClientLag::default(),
            cut: None,
            failure: None,
            scrub: scrub.map(|needle| SecretRedactor::new(needle, SCRUBBED)),
            release: None,
            trailers: None,
        }));
        flows.add(&cell);
        Self {
            cell,
            length: arriving.length,
        }
    }
}

impl http_body::Body for StreamingBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        lock(&self.cell).poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        let flow = lock(&self.cell);
        !flow.is_holding()
            && match &flow.body {
                Some((body, _)) => body.is_end_stream(),
                None => flow.cut.is_none() && flow.failure.is_none(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        self.length
    }
}

impl ResponseStream {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if let Some(cut) = self.cut {
            return Poll::Ready(Some(Err(cut.into())));
        }
        loop {
            let next = match (self.first.take(), &mut self.body) {
                (Some(first), _) => Poll::Ready(Some(Ok(first))),
                (None, Some((body, _))) => Pin::new(body).poll_frame(cx),
                (None, None) => return self.poll_end(cx),
            };
            match next {
                Poll::Pending => {
                    self.waker = Some(cx.waker().clone());
                    self.pace.awaits(BodyDebtor::Upstream);
                    return self.poll_release(cx).map(|piece| Some(Ok(piece)));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(frame) = self.accept(frame) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.body = None;
                    self.scrub = None;
                    self.failure = Some(BrokenOff {
                        error: Some(error),
                        pause: Box::pin(sleep(FAILS_AFTER)),
                    });
                }
                Poll::Ready(None) => self.body = None,
            }
        }
    }

    /// After the last piece.
    fn poll_end(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if let Some(failure) = &mut self.failure {
            ready!(failure.pause.as_mut().poll(cx));
            let error = failure.error.take().map(StreamError::Upstream);
            return Poll::Ready(error.map(Err));
        }
        Poll::Ready(self.last().map(Ok))
    }

    /// What is held back goes down when nothing comes after it, if it is no secret.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<Frame<Bytes>> {
        let Some(scrub) = self.scrub.as_mut().filter(|scrub| scrub.can_release()) else {
            return Poll::Pending;
        };
        let release = self
            .release
            .get_or_insert_with(|| Box::pin(sleep(HELD_FOR)));
        ready!(release.as_mut().poll(cx));
        self.release = None;
        match scrub.release() {
            Some(piece) => Poll::Ready(Frame::data(piece)),
            None => Poll::Pending,
        }
    }

    /// What goes down for `frame`; None: nothing yet.
    fn accept(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        match frame.into_data() {
            Ok(piece) => {
                self.pace.moved(piece.len(), BodyDebtor::Client);
                self.release = None;
                let Some(scrub) = &mut self.scrub else {
                    return Some(Frame::data(piece));
                };
                let piece = scrub.next(piece);
                (!piece.is_empty()).then(|| Frame::data(piece))
            }
            Err(frame) => {
                self.trailers = frame.into_trailers().ok().map(headers::safe_trailers);
                if let (Some(scrub), Some(trailers)) = (&self.scrub, &mut self.trailers) {
                    headers::blot_out(trailers, scrub.needle());
                }
                self.last()
            }
        }
    }

    /// What was held back, then the trailers, then nothing.
    fn last(&mut self) -> Option<Frame<Bytes>> {
        match self.scrub.as_mut().and_then(SecretRedactor::rest) {
            Some(piece) => Some(Frame::data(piece)),
            None => self.trailers.take().map(Frame::trailers),
        }
    }

    fn is_holding(&self) -> bool {
        self.first.is_some()
            || self.trailers.is_some()
            || self.scrub.as_ref().is_some_and(SecretRedactor::is_holding)
    }

    /// Why this answer must be cut now. A client far away empties a full send buffer in steps
    /// of a megabyte, and takes nothing in between: it gets more time than an upstream that
    /// falls silent. An upstream that waits for the rest of its request owes nothing.
    pub(super) fn overdue(&self, now: Instant) -> Option<StreamCutReason> {
        let (_, held) = self.body.as_ref()?;
        let debtor = match self.awaits_client() || held.awaits_upload() {
            true => BodyDebtor::Client,
            false => BodyDebtor::Upstream,
        };
        if self.pace.is_time_up(now) {
            return Some(StreamCutReason::TimeUp(debtor));
        }
        let is_too_slow = match debtor {
            BodyDebtor::Client if !self.awaits_client() => false,
            BodyDebtor::Client => self.pace.is_too_slow(now, CLIENT_PATIENCE),
            BodyDebtor::Upstream => self.pace.is_too_slow(now, 1),
        };
        is_too_slow.then_some(StreamCutReason::TooSlow(debtor))
    }

    /// The client owes the next step: the last look found a piece, or one has come since and
    /// nothing has looked, because the client takes nothing.
    fn awaits_client(&self) -> bool {
        let has_news = self.body.as_ref().is_some_and(|(body, _)| body.has_news());
        self.pace.turn() == BodyDebtor::Client || has_news
    }

    /// True when the client is slow and the stream still has its turn.
    pub(super) fn lags(&mut self) -> bool {
        let Some((_, held)) = &self.body else {
            return false;
        };
        let is_clients_turn = self.awaits_client() || held.awaits_upload();
        held.turn.is_permit() && self.lag.check_stalled(is_clients_turn)
    }

    pub(super) fn park(&mut self) -> ParkedTurn {
        match &mut self.body {
            Some((_, held)) => held.turn.park(),
            None => ParkedTurn::Done,
        }
    }

    pub(super) fn cut(&mut self, why: StreamCutReason) {
        self.cut = Some(why);
        self.body = None;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

pub(in crate::pipeline) fn lock(cell: &Mutex<ResponseStream>) -> MutexGuard<'_, ResponseStream> {
    cell.lock()
}
