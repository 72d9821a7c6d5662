//! The body on its way up: counted, bounded, timed, and kept while it is small
//! enough to be sent a second time. A small one is read before the request asks for its
//! turn at the upstream; a large one gives the turn back while the client owes bytes, and
//! waits for a turn again before its end goes up, since that is where the work begins.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::sleep;

use super::client_body::ClientBody;
use super::permit_state::{AnswerTurn, UpstreamTurn};
use super::stream_watchdog::SlowStreamWatchdog;
pub(in crate::pipeline) use super::upload::{BodyError, BodyFailure, BodyRules};
use super::upload::{UploadPiece, UploadSource, UploadState};

/// How long a request waits for the beginning of a body that is not small.
const BEGINNING: Duration = Duration::from_millis(100);

/// A body that hyper's client can send. Copies of one body share their source;
/// only the newest copy may read from it.
#[derive(Debug)]
pub struct RequestBody {
    source: Option<Arc<UploadState>>,
    copy: u32,
    position: usize,
    length: SizeHint,
}

impl RequestBody {
    pub fn empty() -> Self {
        Self {
            source: None,
            copy: 0,
            position: 0,
            length: SizeHint::with_exact(0),
        }
    }

    pub fn new(incoming: ClientBody, rules: BodyRules) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        let length = incoming.size_hint();
        Self {
            source: Some(Arc::new(UploadState::new(incoming, rules))),
            copy: 0,
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
    source: Option<Arc<UploadState>>,
    length: SizeHint,
}

impl BodyHandle {
    /// The whole body once more, what is kept first and then what has not been read
    /// yet; None when too much of it is gone. The copy before it can read no longer.
    pub fn again(&self) -> Option<RequestBody> {
        let Some(shared) = &self.source else {
            return Some(RequestBody::empty());
        };
        let mut source = shared.lock();
        if source.spilled || source.failed.is_some() {
            return None;
        }
        source.copy += 1;
        source.finish();
        Some(RequestBody {
            source: Some(Arc::clone(shared)),
            copy: source.copy,
            position: 0,
            length: self.length,
        })
    }

    /// Whether there is a body at all.
    pub(in crate::pipeline) fn is_some(&self) -> bool {
        self.source.is_some()
    }

    /// Whether all of it that has been read is kept.
    pub(in crate::pipeline) fn is_kept(&self) -> bool {
        let is_kept = self.with_source(|source| !source.spilled && source.failed.is_none());
        is_kept.unwrap_or(true)
    }

    /// Whether the whole body can be sent a second time, as far as its stated length tells.
    pub(in crate::pipeline) fn can_repeat(&self) -> bool {
        let limit = self.with_source(super::upload::UploadSource::replay_limit);
        limit.is_none_or(|limit| self.length.exact().is_some_and(|length| length <= limit))
    }

    /// Bytes read from the client so far.
    pub fn total(&self) -> u64 {
        self.with_source(|source| source.total).unwrap_or(0)
    }

    pub fn failure(&self) -> Option<BodyFailure> {
        self.with_source(|source| source.failed).flatten()
    }

    fn with_source<T>(&self, what: impl FnOnce(&UploadSource) -> T) -> Option<T> {
        let source = self.source.as_ref()?;
        Some(what(&source.lock()))
    }

    /// Reads a small body, or the beginning of a large one, so that its client's pace
    /// costs no turn at the upstream. True: all of it is here.
    pub(in crate::pipeline) async fn prefetch(&self) -> bool {
        let Some(source) = &self.source else {
            return true;
        };
        // Most bodies have come with their head.
        match poll_fn(|cx| Poll::Ready(source.lock().poll_prefetch(cx))).await {
            Poll::Ready(is_whole) => is_whole,
            Poll::Pending => Box::pin(self.await_beginning(source)).await,
        }
    }

    async fn await_beginning(&self, source: &UploadState) -> bool {
        let mut patience = None;
        poll_fn(|cx| {
            let mut source = source.lock();
            if let Poll::Ready(is_whole) = source.poll_prefetch(cx) {
                return Poll::Ready(is_whole);
            }
            let length = self.length.exact();
            if length.is_some_and(|length| length <= source.replay_limit()) {
                return Poll::Pending; // small: it comes, or is too slow
            }
            let patience = patience.get_or_insert_with(|| Box::pin(sleep(BEGINNING)));
            ready!(patience.as_mut().poll(cx));
            source.rest();
            Poll::Ready(false)
        })
        .await
    }

    /// Gives the turn to the body until `take_turn`: it goes back while the client is slow.
    pub(in crate::pipeline) fn hold(
        &self,
        turn: UpstreamTurn,
        flows: &SlowStreamWatchdog,
    ) -> UpstreamTurn {
        let Some(upload) = &self.source else {
            return turn;
        };
        upload.lock().turn = Some(turn);
        flows.add_upload(upload);
        UpstreamTurn::Nothing
    }

    /// The turn with which the answer comes down, `turn` or what the body has of it. An
    /// upload that goes on beside its answer is watched there.
    pub(in crate::pipeline) fn turn_for_answer(&self, turn: UpstreamTurn) -> AnswerTurn {
        let upload = match turn {
            UpstreamTurn::Nothing => self.source.clone(),
            UpstreamTurn::Permit(_) | UpstreamTurn::Stalled(_) => None,
        };
        let turn = match &upload {
            Some(_) => self.take_turn(),
            None => turn,
        };
        AnswerTurn { turn, upload }
    }

    /// What is left of the turn.
    pub(in crate::pipeline) fn take_turn(&self) -> UpstreamTurn {
        let turn = self
            .source
            .as_ref()
            .and_then(|upload| upload.lock().turn.take());
        turn.unwrap_or(UpstreamTurn::Nothing)
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<UploadPiece> {
        let Some(shared) = self.source.clone() else {
            return Poll::Ready(None);
        };
        let mut source = shared.lock();
        if source.copy != self.copy {
            return Poll::Ready(Some(Err(BodyError::TakenBack)));
        }
        if let Some(piece) = source.kept.get(self.position) {
            let piece = piece.clone();
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if source.ended && source.end.is_none() && self.position == source.kept.len() {
            // Trailers of a body that is sent again come after its last kept piece.
            self.position += 1;
            if let Some(trailers) = source.trailers.clone() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
        }
        let next = ready!(source.poll_next(cx));
        match &next {
            // These two have gone up with this copy.
            Some(Ok(frame)) if frame.is_trailers() => self.position = source.kept.len() + 1,
            Some(Ok(_)) if !source.spilled => self.position = source.kept.len(),
            _ => {}
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }

    /// Exact also for a body without a stated length, once all of it is here.
    fn size_hint(&self) -> SizeHint {
        let (None, Some(shared)) = (self.length.exact(), &self.source) else {
            return self.length;
        };
        let source = shared.lock();
        let is_whole = source.ended && source.trailers.is_none() && self.position == 0;
        match is_whole && !source.spilled && source.failed.is_none() {
            true => SizeHint::with_exact(source.total),
            false => self.length,
        }
    }
}
