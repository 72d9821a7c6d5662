//! Answers that are passed on while they arrive. Whoever stalls, upstream or client,
//! must not hold a connection for ever: a client that stops reading is never polled
//! again, so the time is kept from outside, by one look a second over all of them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::headers;
use super::pace::Pace;
use super::scrub::Scrubber;
use crate::lifecycle::Stop;
use crate::secret::Needle;
use crate::upstream::{AnswerBody, Turn};

/// How much of a body of unknown length is searched for the injected secret.
const SCRUBBED: usize = 64 * 1024;
/// How many times `body_idle_timeout` a client may take nothing.
const CLIENT_PATIENCE: u32 = 10;

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("upstream's answer broke off")]
    Upstream(#[source] hyper::Error),
    #[error("answer moved too slowly and was cut")]
    TooSlow,
}

/// An answer's body that is still arriving.
#[derive(Debug)]
pub struct Streaming {
    cell: Arc<Mutex<Flow>>,
    length: SizeHint,
}

#[derive(Debug)]
struct Flow {
    /// The body and its turn at the upstream; both end together.
    body: Option<(AnswerBody, Turn)>,
    pace: Pace,
    waker: Option<Waker>,
    /// The last look found nothing: the upstream owes the next piece, not the client.
    starved: bool,
    cut: bool,
    scrub: Option<Scrubber>,
    /// Came while a piece was held back; goes down after it.
    trailers: Option<HeaderMap>,
}

impl Streaming {
    /// `scrub`: the secret that must not come down in a body of unknown length.
    pub fn new(
        body: AnswerBody,
        turn: Turn,
        pace: Pace,
        scrub: Option<Needle>,
        flows: &Flows,
    ) -> Self {
        let length = body.size_hint();
        let cell = Arc::new(Mutex::new(Flow {
            body: Some((body, turn)),
            pace,
            waker: None,
            starved: true,
            cut: false,
            scrub: scrub.map(|needle| Scrubber::new(needle, SCRUBBED)),
            trailers: None,
        }));
        flows.add(&cell);
        Self { cell, length }
    }
}

impl http_body::Body for Streaming {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let mut flow = self.cell.lock().unwrap_or_else(PoisonError::into_inner);
        if flow.cut {
            return Poll::Ready(Some(Err(StreamError::TooSlow)));
        }
        loop {
            let Some((body, _)) = &mut flow.body else {
                return Poll::Ready(flow.last().map(Ok));
            };
            match Pin::new(body).poll_frame(cx) {
                Poll::Pending => {
                    flow.waker = Some(cx.waker().clone());
                    flow.starved = true;
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(frame) = flow.accept(frame) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    flow.body = None;
                    flow.scrub = None;
                    return Poll::Ready(Some(Err(StreamError::Upstream(error))));
                }
                Poll::Ready(None) => flow.body = None,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let flow = self.cell.lock().unwrap_or_else(PoisonError::into_inner);
        !flow.is_holding()
            && match &flow.body {
                Some((body, _)) => body.is_end_stream(),
                None => !flow.cut,
            }
    }

    fn size_hint(&self) -> SizeHint {
        self.length
    }
}

impl Flow {
    /// What goes down for `frame`; None: nothing yet.
    fn accept(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        match frame.into_data() {
            Ok(piece) => {
                self.pace.moved(piece.len());
                self.starved = false;
                let Some(scrub) = &mut self.scrub else {
                    return Some(Frame::data(piece));
                };
                let piece = scrub.next(piece);
                (!piece.is_empty()).then(|| Frame::data(piece))
            }
            Err(frame) => {
                self.trailers = frame.into_trailers().ok().map(headers::safe_trailers);
                self.last()
            }
        }
    }

    /// What was held back, then the trailers, then nothing.
    fn last(&mut self) -> Option<Frame<Bytes>> {
        match self.scrub.as_mut().and_then(Scrubber::rest) {
            Some(piece) => Some(Frame::data(piece)),
            None => self.trailers.take().map(Frame::trailers),
        }
    }

    fn is_holding(&self) -> bool {
        self.trailers.is_some() || self.scrub.as_ref().is_some_and(Scrubber::is_holding)
    }

    /// A client far away empties a full send buffer in steps of a megabyte, and takes
    /// nothing in between: it gets more time than an upstream that falls silent.
    fn is_too_slow(&self, now: Instant) -> bool {
        let patience = if self.starved { 1 } else { CLIENT_PATIENCE };
        self.pace.is_too_slow(now, patience)
    }

    fn cut(&mut self) {
        self.cut = true;
        self.body = None;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// All streaming answers of one worker.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    cells: Arc<Mutex<Vec<Weak<Mutex<Flow>>>>>,
}

impl Flows {
    fn add(&self, cell: &Arc<Mutex<Flow>>) {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.push(Arc::downgrade(cell));
    }

    /// Cuts what has become too slow and forgets what has ended.
    fn look(&self) {
        let now = Instant::now();
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.retain(|cell| {
            let Some(cell) = cell.upgrade() else {
                return false;
            };
            let mut flow = cell.lock().unwrap_or_else(PoisonError::into_inner);
            if flow.body.is_some() && flow.is_too_slow(now) {
                flow.cut();
            }
            flow.body.is_some()
        });
    }

    /// Looks once a second until the program aborts: what streams during a drain is timed too.
    pub async fn watch(self, stop: Stop) {
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = stop.aborting() => return,
                _ = tick.tick() => self.look(),
            }
        }
    }
}
