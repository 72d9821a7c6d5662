//! What the copies of one request body share: the client's stream, what is kept of it, and
//! the request's turn while the body is on its way.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::client_body::ClientBody;
use super::permit_state::{ClientLag, ParkedTurn, UpstreamTurn};
use super::rate_guard::{BodyDebtor, PaceRules, RateGuard};
use crate::pipeline::headers;
use crate::upstream::{PermitTimeout, UpstreamPermit};

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
    #[error("no turn at the upstream for the end of a slow body")]
    NoTurn,
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

/// What the copies of one body share.
#[derive(Debug)]
pub(in crate::pipeline) struct UploadState(Mutex<UploadSource>);

#[derive(Debug)]
pub(in crate::pipeline) struct UploadSource {
    incoming: ClientBody,
    rules: BodyRules,
    pace: RateGuard,
    /// The newest copy.
    pub(super) copy: u32,
    pub(in crate::pipeline) total: u64,
    pub(in crate::pipeline) kept: Vec<Bytes>,
    /// Comes after those: small pieces in a row.
    kept_small: Vec<u8>,
    kept_bytes: usize,
    pub(in crate::pipeline) trailers: Option<HeaderMap>,
    pub(in crate::pipeline) ended: bool,
    /// More went by than is kept: it cannot be sent again.
    pub(super) spilled: bool,
    pub(in crate::pipeline) failed: Option<BodyFailure>,
    /// The request's turn while the body is on its way.
    pub(in crate::pipeline) turn: Option<UpstreamTurn>,
    lag: ClientLag,
    /// Of who reads, if there is a turn to give back.
    waker: Option<Waker>,
    pub(in crate::pipeline) end: Option<Box<WithheldEnd>>,
}

pub(super) type UploadPiece = Option<Result<Frame<Bytes>, BodyError>>;

/// The end of a body that waits for a turn.
pub(in crate::pipeline) struct WithheldEnd {
    piece: UploadPiece,
    turn: Pin<Box<dyn Future<Output = Result<UpstreamPermit, PermitTimeout>> + Send>>,
}

impl fmt::Debug for WithheldEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithheldEnd").finish_non_exhaustive()
    }
}

/// What went wrong with the client's body, for the answer and the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFailure {
    TooLarge,
    TooSlow,
    Gone,
    /// The client was slow, and the upstream had no turn left for the rest.
    NoTurn,
}

impl UploadState {
    pub(in crate::pipeline) fn new(incoming: ClientBody, rules: BodyRules) -> Self {
        Self(Mutex::new(UploadSource {
            incoming,
            rules,
            pace: RateGuard::new(
                PaceRules {
                    idle: rules.idle,
                    min_rate: rules.min_rate,
                    deadline: rules.deadline,
                },
                BodyDebtor::Client,
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
            turn: None,
            lag: ClientLag::default(),
            waker: None,
            end: None,
        }))
    }

    pub(super) fn is_clients_turn(&self) -> bool {
        let source = self.lock();
        source.awaits_client() && !source.ended
    }

    /// Takes the turn back if the client is slow; false when there is none any more.
    pub(super) fn check_progress(&self) -> bool {
        let mut source = self.lock();
        let is_clients_turn = source.awaits_client();
        let Some(turn) = &mut source.turn else {
            return false;
        };
        if turn.is_permit() && source.lag.check_stalled(is_clients_turn) {
            source.park();
        }
        true
    }

    pub(in crate::pipeline) fn lock(&self) -> MutexGuard<'_, UploadSource> {
        self.0.lock()
    }
}

impl UploadSource {
    /// The last look found nothing.
    fn awaits_client(&self) -> bool {
        self.pace.turn() == BodyDebtor::Client
    }

    /// Nothing is read for a while: the client owes nothing meanwhile.
    pub(in crate::pipeline) fn rest(&mut self) {
        self.finish();
        self.pace.awaits(BodyDebtor::Upstream);
    }

    pub(in crate::pipeline) fn replay_limit(&self) -> u64 {
        self.rules.replay_limit as u64
    }

    pub(super) fn poll_prefetch(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while !self.ended {
            if self.failed.is_some() || self.kept_bytes >= self.rules.replay_limit {
                break;
            }
            // The last piece may go over the limit: it is here, and can be sent as often as
            // the others.
            if let Some(Ok(frame)) = ready!(self.poll_incoming(cx))
                && let Ok(piece) = frame.into_data()
            {
                self.keep_piece(piece);
            }
        }
        self.finish();
        Poll::Ready(self.ended)
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<UploadPiece> {
        if self.end.is_some() {
            return self.poll_end(cx);
        }
        let piece = ready!(self.poll_incoming(cx));
        if let Some(Ok(frame)) = &piece
            && let Some(data) = frame.data_ref()
        {
            self.keep(data);
        }
        let is_end = self.ended
            || piece
                .as_ref()
                .is_none_or(|piece| piece.as_ref().is_ok_and(Frame::is_trailers));
        if is_end && let Some(turn) = self.turn.as_ref().and_then(UpstreamTurn::resumed) {
            let turn = Box::pin(turn);
            self.end = Some(Box::new(WithheldEnd { piece, turn }));
            return self.poll_end(cx);
        }
        Poll::Ready(piece)
    }

    /// The end of a body whose turn was given back: the upstream works on it from here on.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<UploadPiece> {
        let Some(end) = &mut self.end else {
            return Poll::Ready(None);
        };
        let turn = ready!(end.turn.as_mut().poll(cx));
        let piece = end.piece.take();
        self.end = None;
        match (turn, &mut self.turn) {
            (Ok(permit), Some(turn)) => {
                *turn = UpstreamTurn::Permit(permit);
                Poll::Ready(piece)
            }
            // The answer came first, and has the turn.
            (_, None) => Poll::Ready(piece),
            (Err(_), Some(_)) => {
                self.failed = Some(BodyFailure::NoTurn);
                Poll::Ready(Some(Err(BodyError::NoTurn)))
            }
        }
    }

    fn park(&mut self) {
        let Some(turn) = &mut self.turn else { return };
        if turn.park() == ParkedTurn::MustEnd {
            self.failed = Some(BodyFailure::NoTurn);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<UploadPiece> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.failed == Some(BodyFailure::NoTurn) {
            return Poll::Ready(Some(Err(BodyError::NoTurn)));
        }
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            self.pace.awaits(BodyDebtor::Client);
            if self.turn.is_some() {
                self.waker = Some(cx.waker().clone());
            }
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
            Some(Ok(frame)) => {
                let frame = self.accept(frame);
                self.ended = frame.is_ok() && self.incoming.is_end_stream();
                Poll::Ready(Some(frame))
            }
        }
    }

    fn accept(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let frame = match frame.into_data() {
            Ok(piece) => {
                self.total += piece.len() as u64;
                self.pace.moved(piece.len(), BodyDebtor::Upstream);
                if self.total > self.rules.max {
                    self.failed = Some(BodyFailure::TooLarge);
                    return Err(BodyError::TooLarge);
                }
                return Ok(Frame::data(piece));
            }
            Err(frame) => frame,
        };
        match frame.into_trailers() {
            Ok(trailers) => {
                // A field that would change how the message is read has no place here
                // (RFC 9110 6.5.1), and a credential even less.
                let trailers = headers::safe_trailers(trailers);
                self.trailers = Some(trailers.clone());
                Ok(Frame::trailers(trailers))
            }
            Err(frame) => Ok(frame),
        }
    }

    fn keep(&mut self, piece: &Bytes) {
        if self.spilled {
            return;
        }
        if self.kept_bytes + piece.len() > self.rules.replay_limit {
            self.spilled = true;
            self.kept = Vec::new();
            self.kept_small = Vec::new();
            return;
        }
        self.keep_piece(piece.clone());
    }

    fn keep_piece(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        // Most bodies are one piece.
        if self.kept_bytes == 0 || piece.len() >= WORTH_ITS_BUFFER {
            self.kept_bytes += piece.len();
            self.finish();
            self.kept.push(piece);
        } else {
            self.kept_bytes += piece.len();
            self.kept_small.extend_from_slice(&piece);
        }
    }

    /// Makes the small pieces one that can be read.
    pub(in crate::pipeline) fn finish(&mut self) {
        if !self.kept_small.is_empty() {
            let small = std::mem::take(&mut self.kept_small);
            self.kept.push(small.into());
        }
    }
}
