//! The body on its way to the upstream: counted, bounded, timed, and kept while it is small enough
//! to be sent a second time. A small body is read before the request asks for its upstream permit.
//! A large body returns the permit while the client owes bytes, and waits for a permit again before
//! its end is sent, since the upstream starts to work only then.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt as _, Limited};
use tokio::time::sleep;

use super::client_body::ClientBody;
use super::permit_state::PermitState;
use super::stream_watchdog::SlowStreamWatchdog;
pub(in crate::pipeline) use super::upload::{BodyError, BodyFailure, BodyRules};
use super::upload::{ResponsePermit, UploadChunk, UploadSource, UploadState};
use crate::pipeline::reject::Rejection;

/// Largest body that the gateway reads and interprets itself, in bytes.
pub(in crate::pipeline) const MAX_READ_BODY: usize = 16 * 1024;

/// A body on its way to the upstream. Copies of one body share the client's stream; only the
/// newest copy may read from it.
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

    /// A handle that outlives the body: inspects it, or makes another copy of it.
    pub fn handle(&self) -> BodyHandle {
        BodyHandle {
            source: self.source.clone(),
            length: self.length,
        }
    }

    /// Reads the whole body, of at most `MAX_READ_BODY` bytes.
    pub(in crate::pipeline) async fn read_whole(self) -> Result<Bytes, Rejection> {
        let handle = self.handle();
        match Limited::new(self, MAX_READ_BODY).collect().await {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(_) => Err(handle
                .failure()
                .map_or(Rejection::TooLarge, BodyFailure::rejection)),
        }
    }
}

/// Observes a body that is being sent, or has been sent.
#[derive(Clone, Debug)]
pub struct BodyHandle {
    source: Option<Arc<UploadState>>,
    length: SizeHint,
}

impl BodyHandle {
    /// Another copy of the whole body: first the kept chunks, then the rest of the client's stream.
    /// None when more was read than is kept. Earlier copies can no longer read.
    pub fn again(&self) -> Option<RequestBody> {
        let Some(shared) = &self.source else {
            return Some(RequestBody::empty());
        };
        let mut source = shared.lock();
        if source.spilled || source.failed.is_some() {
            return None;
        }
        source.copy += 1;
        source.merge_small_chunks();
        Some(RequestBody {
            source: Some(Arc::clone(shared)),
            copy: source.copy,
            position: 0,
            length: self.length,
        })
    }

    /// Whether the request has a body.
    pub(in crate::pipeline) fn is_some(&self) -> bool {
        self.source.is_some()
    }

    /// Whether everything read so far is kept.
    pub(in crate::pipeline) fn is_kept(&self) -> bool {
        let is_kept = self.with_source(|source| !source.spilled && source.failed.is_none());
        is_kept.unwrap_or(true)
    }

    /// Whether the whole body can be sent a second time, judged by its declared length.
    pub(in crate::pipeline) fn can_repeat(&self) -> bool {
        let limit = self.with_source(UploadSource::replay_limit);
        limit.is_none_or(|limit| self.length.exact().is_some_and(|length| length <= limit))
    }

    /// Bytes read from the client so far.
    pub fn total(&self) -> u64 {
        self.with_source(|source| source.total).unwrap_or(0)
    }

    pub fn failure(&self) -> Option<BodyFailure> {
        self.with_source(|source| source.failed).flatten()
    }

    fn with_source<T>(&self, read: impl FnOnce(&UploadSource) -> T) -> Option<T> {
        let source = self.source.as_ref()?;
        Some(read(&source.lock()))
    }

    /// Reads a small body, or the first bytes of a large one, before the request holds an upstream
    /// permit. True when the whole body has been read.
    pub(in crate::pipeline) async fn prefetch(&self) -> bool {
        let Some(source) = &self.source else {
            return true;
        };
        // Most bodies arrive together with their head.
        match poll_fn(|cx| Poll::Ready(source.lock().poll_prefetch(cx))).await {
            Poll::Ready(is_whole) => is_whole,
            Poll::Pending => Box::pin(self.await_first_bytes(source)).await,
        }
    }

    async fn await_first_bytes(&self, source: &UploadState) -> bool {
        let mut timer = None;
        poll_fn(|cx| {
            let mut source = source.lock();
            if let Poll::Ready(is_whole) = source.poll_prefetch(cx) {
                return Poll::Ready(is_whole);
            }
            let length = self.length.exact();
            if length.is_some_and(|length| length <= source.replay_limit()) {
                return Poll::Pending; // small: wait for all of it, or until the client is too slow
            }
            let wait = source.first_bytes_timeout();
            let timer = timer.get_or_insert_with(|| Box::pin(sleep(wait)));
            ready!(timer.as_mut().poll(cx));
            source.pause();
            Poll::Ready(false)
        })
        .await
    }

    /// Gives the permit to the body until `take_permit`: while the client is slow, it is returned.
    pub(in crate::pipeline) fn hold_permit(
        &self,
        permit: PermitState,
        watchdog: &SlowStreamWatchdog,
    ) -> PermitState {
        let Some(upload) = &self.source else {
            return permit;
        };
        upload.lock().permit = Some(permit);
        watchdog.add_upload(upload);
        PermitState::InBody
    }

    /// The permit that the response is to hold: `permit`, or what the body has left of it. An upload
    /// that continues beside its response is watched together with the response.
    pub(in crate::pipeline) fn permit_for_response(&self, permit: PermitState) -> ResponsePermit {
        let upload = match permit {
            PermitState::InBody => self.source.clone(),
            PermitState::Held(_) | PermitState::Stalled(_) => None,
        };
        let permit = match &upload {
            Some(_) => self.take_permit(),
            None => permit,
        };
        ResponsePermit { permit, upload }
    }

    /// What the body has left of the permit.
    pub(in crate::pipeline) fn take_permit(&self) -> PermitState {
        let source = self.source.as_ref();
        let permit = source.and_then(|upload| upload.lock().permit.take());
        permit.unwrap_or(PermitState::InBody)
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<UploadChunk> {
        let Some(shared) = self.source.clone() else {
            return Poll::Ready(None);
        };
        let mut source = shared.lock();
        if source.copy != self.copy {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(chunk) = source.kept.get(self.position) {
            let chunk = chunk.clone();
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if source.ended && source.end.is_none() && self.position == source.kept.len() {
            // Trailers of a repeated body follow its last kept chunk.
            self.position += 1;
            if let Some(trailers) = source.trailers.clone() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
        }
        let next = ready!(source.poll_next(cx));
        match &next {
            // This copy has sent what was kept or noted just now.
            Some(Ok(frame)) if frame.is_trailers() => self.position = source.kept.len() + 1,
            Some(Ok(_)) if !source.spilled => self.position = source.kept.len(),
            _ => {}
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }

    /// Exact also for a body without a declared length, once all of it has been read.
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
