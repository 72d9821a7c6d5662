//! The body on its way up: counted, bounded, timed, and kept while it is small
//! enough to be sent a second time.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::pace::Pace;

/// A piece shares the buffer that it was read into. Where it is kept, a smaller one is
/// copied, or a body that comes byte by byte would hold a buffer for each.
const WORTH_ITS_BUFFER: usize = 4 * 1024;

/// Why a request body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("client's body broke off")]
    Client(#[source] hyper::Error),
    #[error("client's body is larger than this route allows")]
    TooLarge,
    #[error("client's body came too slowly")]
    TooSlow,
    #[error("body was taken back to be sent again")]
    TakenBack,
}

/// What a body must keep to.
#[derive(Clone, Copy, Debug)]
pub struct BodyRules {
    pub max: u64,
    pub replay_limit: usize,
    pub idle: Duration,
    /// Bytes per second; 0: none.
    pub min_rate: u64,
    /// End of the whole exchange.
    pub deadline: Instant,
}

/// A body that hyper's client can send. Copies of one body share their source;
/// only the newest copy may read from it.
#[derive(Debug)]
pub struct RequestBody {
    source: Option<Arc<Mutex<Source>>>,
    turn: u32,
    position: usize,
    length: SizeHint,
}

#[derive(Debug)]
struct Source {
    incoming: Incoming,
    rules: BodyRules,
    pace: Pace,
    turn: u32,
    total: u64,
    kept: Vec<Bytes>,
    /// Comes after those: small pieces in a row.
    kept_small: Vec<u8>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// More went by than is kept: it cannot be sent again.
    spilled: bool,
    failed: Option<BodyFailure>,
}

/// What went wrong with the client's body, for the answer and the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFailure {
    TooLarge,
    TooSlow,
    Gone,
}

impl RequestBody {
    pub fn empty() -> Self {
        Self {
            source: None,
            turn: 0,
            position: 0,
            length: SizeHint::with_exact(0),
        }
    }

    pub fn new(incoming: Incoming, rules: BodyRules) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        let length = incoming.size_hint();
        let source = Source {
            incoming,
            rules,
            pace: Pace::new(rules.idle, rules.min_rate, rules.deadline),
            turn: 0,
            total: 0,
            kept: Vec::new(),
            kept_small: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            ended: false,
            spilled: false,
            failed: None,
        };
        Self {
            source: Some(Arc::new(Mutex::new(source))),
            turn: 0,
            position: 0,
            length,
        }
    }

    /// A handle that outlives the body, to ask about it or to take it back.
    pub fn handle(&self) -> BodyHandle {
        BodyHandle {
            source: self.source.clone(),
            length: self.length,
        }
    }
}

/// Looks at a body that is, or was, on its way.
#[derive(Clone, Debug)]
pub struct BodyHandle {
    source: Option<Arc<Mutex<Source>>>,
    length: SizeHint,
}

impl BodyHandle {
    /// The whole body once more, what is kept first and then what has not been read
    /// yet; None when too much of it is gone. The copy before it can read no longer.
    pub fn again(&self) -> Option<RequestBody> {
        let Some(shared) = &self.source else {
            return Some(RequestBody::empty());
        };
        let mut source = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if source.spilled || source.failed.is_some() {
            return None;
        }
        source.turn += 1;
        source.settle();
        Some(RequestBody {
            source: Some(Arc::clone(shared)),
            turn: source.turn,
            position: 0,
            length: self.length,
        })
    }

    /// Whether there is a body at all.
    pub(super) fn is_some(&self) -> bool {
        self.source.is_some()
    }

    /// Bytes read from the client so far.
    pub fn total(&self) -> u64 {
        self.look(|source| source.total).unwrap_or(0)
    }

    pub fn failure(&self) -> Option<BodyFailure> {
        self.look(|source| source.failed).flatten()
    }

    fn look<T>(&self, what: impl FnOnce(&Source) -> T) -> Option<T> {
        let source = self.source.as_ref()?;
        Some(what(&source.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            ready!(self.pace.poll_too_slow(cx));
            self.failed = Some(BodyFailure::TooSlow);
            return Poll::Ready(Some(Err(BodyError::TooSlow)));
        };
        match frame {
            None => {
                self.ended = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.failed = Some(BodyFailure::Gone);
                Poll::Ready(Some(Err(BodyError::Client(error))))
            }
            Some(Ok(frame)) => Poll::Ready(Some(self.accept(frame))),
        }
    }

    fn accept(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let frame = match frame.into_data() {
            Ok(piece) => {
                self.total += piece.len() as u64;
                self.pace.moved(piece.len());
                if self.total > self.rules.max {
                    self.failed = Some(BodyFailure::TooLarge);
                    return Err(BodyError::TooLarge);
                }
                self.keep(&piece);
                return Ok(Frame::data(piece));
            }
            Err(frame) => frame,
        };
        match frame.into_trailers() {
            Ok(trailers) => {
                // A field that would change how the message is read has no place here
                // (RFC 9110 6.5.1), and a credential even less.
                let trailers = super::headers::safe_trailers(trailers);
                self.trailers = Some(trailers.clone());
                Ok(Frame::trailers(trailers))
            }
            Err(frame) => Ok(frame),
        }
    }

    fn keep(&mut self, piece: &Bytes) {
        if self.spilled || piece.is_empty() {
            return;
        }
        if self.kept_bytes + piece.len() > self.rules.replay_limit {
            self.spilled = true;
            self.kept = Vec::new();
            self.kept_small = Vec::new();
            return;
        }
        // Most bodies are one piece.
        if self.kept_bytes == 0 || piece.len() >= WORTH_ITS_BUFFER {
            self.settle();
            self.kept.push(piece.clone());
        } else {
            self.kept_small.extend_from_slice(piece);
        }
        self.kept_bytes += piece.len();
    }

    fn settle(&mut self) {
        if !self.kept_small.is_empty() {
            let small = std::mem::take(&mut self.kept_small);
            self.kept.push(small.into());
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(shared) = self.source.clone() else {
            return Poll::Ready(None);
        };
        let mut source = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if source.turn != self.turn {
            return Poll::Ready(Some(Err(BodyError::TakenBack)));
        }
        if let Some(piece) = source.kept.get(self.position) {
            let piece = piece.clone();
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if source.ended && self.position == source.kept.len() {
            // Trailers of a body that is sent again come after its last kept piece.
            self.position += 1;
            if let (true, Some(trailers)) = (self.turn > 0, source.trailers.clone()) {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
        }
        let next = ready!(source.poll_next(cx));
        if !source.spilled && matches!(&next, Some(Ok(frame)) if frame.is_data()) {
            self.position = source.kept.len();
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.length
    }
}
