//! Answers that are passed on while they arrive. Whoever stalls, upstream or client,
//! must not hold a connection for ever: a client that stops reading is never polled
//! again, so the time is kept from outside, by a look now and then over all of them.
//! The same look finds streams that wait for their clients, answers and uploads, and
//! makes them give their turn at the upstream back (`upstream_turn`).

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::headers;
use super::pace::Pace;
use super::scrub::Scrubber;
use super::upload::Upload;
use super::upstream_turn::{AnswerTurn, ClientLag, LOOK_EVERY, SetAside};
use crate::lifecycle::Stop;
use crate::secret::Needle;
use crate::upstream::AnswerBody;

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
    #[error("client read slowly, had its share of slow streams, and others waited")]
    NoRoom,
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
    body: Option<(AnswerBody, AnswerTurn)>,
    pace: Pace,
    waker: Option<Waker>,
    /// Asked for a piece at least once: until then the client has no room for any.
    is_begun: bool,
    lag: ClientLag,
    /// The last look found nothing.
    starved: bool,
    cut: Option<Cut>,
    scrub: Option<Scrubber>,
    /// Came while a piece was held back; goes down after it.
    trailers: Option<HeaderMap>,
}

/// Why an answer is not read to its end.
#[derive(Clone, Copy, Debug)]
enum Cut {
    TooSlow,
    NoRoom,
}

impl Streaming {
    /// `scrub`: the secret that must not come down in a body of unknown length.
    pub(super) fn new(
        body: AnswerBody,
        turn: AnswerTurn,
        pace: Pace,
        scrub: Option<Needle>,
        flows: &Flows,
    ) -> Self {
        let length = body.size_hint();
        let cell = Arc::new(Mutex::new(Flow {
            body: Some((body, turn)),
            pace,
            waker: None,
            is_begun: false,
            lag: ClientLag::default(),
            starved: true,
            cut: None,
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
        match flow.cut {
            Some(Cut::TooSlow) => return Poll::Ready(Some(Err(StreamError::TooSlow))),
            Some(Cut::NoRoom) => return Poll::Ready(Some(Err(StreamError::NoRoom))),
            None => flow.is_begun = true,
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
                None => flow.cut.is_none(),
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
        let patience = match self.awaits_client() {
            true => CLIENT_PATIENCE,
            false => 1,
        };
        self.pace.is_too_slow(now, patience)
    }

    /// The client owes the next step: the last look found a piece, or one has come since and
    /// nothing has looked, because the client takes nothing.
    fn awaits_client(&self) -> bool {
        let has_news = self.body.as_ref().is_some_and(|(body, _)| body.has_news());
        !self.starved || has_news
    }

    /// True when the client is slow and the stream still has its turn.
    fn lags(&mut self) -> bool {
        let Some((_, held)) = &self.body else {
            return false;
        };
        let is_clients_turn = self.awaits_client() || !self.is_begun || held.awaits_upload();
        held.turn.is_permit() && self.lag.look(is_clients_turn)
    }

    fn set_aside(&mut self) -> SetAside {
        match &mut self.body {
            Some((_, held)) => held.turn.set_aside(),
            None => SetAside::Done,
        }
    }

    fn cut(&mut self, why: Cut) {
        self.cut = Some(why);
        self.body = None;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

type Cell = Arc<Mutex<Flow>>;

/// All streams of one worker that are watched.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    watched: Arc<WatchedStreams>,
}

#[derive(Debug, Default)]
struct WatchedStreams {
    answers: Mutex<Vec<Weak<Mutex<Flow>>>>,
    uploads: Mutex<Vec<Weak<Upload>>>,
    /// There is something to watch again.
    begun: Notify,
}

impl Flows {
    fn add(&self, cell: &Cell) {
        let answers = &self.watched.answers;
        self.begin(answers, Arc::downgrade(cell));
    }

    /// An upload that holds a turn.
    pub(super) fn add_upload(&self, upload: &Arc<Upload>) {
        let uploads = &self.watched.uploads;
        self.begin(uploads, Arc::downgrade(upload));
    }

    fn begin<T>(&self, list: &Mutex<Vec<T>>, stream: T) {
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(stream);
        if list.len() == 1 {
            self.watched.begun.notify_one();
        }
    }

    /// Cuts what has become too slow, takes turns back from streams that wait for their
    /// clients, and forgets what has ended. False: there is nothing left to watch.
    fn look(&self) -> bool {
        let now = Instant::now();
        let uploads = &self.watched.uploads;
        let mut uploads = uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.retain(|upload| upload.upgrade().is_some_and(|upload| upload.look()));
        let has_uploads = !uploads.is_empty();
        drop(uploads);

        let answers = &self.watched.answers;
        let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lagging: Vec<Cell> = Vec::new();
        answers.retain(|answer| {
            let Some(cell) = answer.upgrade() else {
                return false;
            };
            let mut flow = lock(&cell);
            if flow.body.is_some() && flow.is_too_slow(now) {
                flow.cut(Cut::TooSlow);
            }
            if flow.lags() {
                lagging.push(Arc::clone(&cell));
            }
            flow.body.is_some()
        });
        for cell in lagging {
            if lock(&cell).set_aside() == SetAside::MustEnd {
                make_room(&answers, &cell, now);
            }
        }
        has_uploads || !answers.is_empty()
    }

    /// Looks until the program aborts: what streams during a drain is timed too.
    pub async fn watch(self, stop: Stop) {
        loop {
            let has_streams = self.look();
            tokio::select! {
                () = stop.aborting() => return,
                () = sleep(LOOK_EVERY), if has_streams => {}
                () = self.watched.begun.notified(), if !has_streams => {}
            }
        }
    }
}

/// Cuts the slowest of a client's stalled streams for the one in `cell`, or this one if
/// it is the slowest.
fn make_room(answers: &[Weak<Mutex<Flow>>], cell: &Cell, now: Instant) {
    let mut flow = lock(cell);
    let mut slowest: Option<Cell> = None;
    let mut least = flow.pace.rate(now);
    for other in answers.iter().filter_map(Weak::upgrade) {
        if Arc::ptr_eq(&other, cell) {
            continue;
        }
        let candidate = lock(&other);
        let is_of_client = match (&flow.body, &candidate.body) {
            (Some((_, held)), Some((_, other))) => held.turn.would_gain_by(&other.turn),
            _ => false,
        };
        let rate = candidate.pace.rate(now);
        drop(candidate);
        if is_of_client && rate < least {
            least = rate;
            slowest = Some(other);
        }
    }
    match slowest {
        Some(other) => {
            lock(&other).cut(Cut::NoRoom);
            // The place is this client's: no other stream of it comes between on this worker.
            let _ = flow.set_aside();
        }
        None => flow.cut(Cut::NoRoom),
    }
}

fn lock(cell: &Mutex<Flow>) -> MutexGuard<'_, Flow> {
    cell.lock().unwrap_or_else(PoisonError::into_inner)
}
