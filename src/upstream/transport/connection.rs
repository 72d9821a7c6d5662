//! One HTTP/1.1 connection to the upstream. It has no task of its own: the request that holds it
//! polls it, so request and response need no wake-up of another task. In the pool it only records
//! wake-ups.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tracing::debug;

use super::keep_alive::KeepAlive;
use super::pool::{IdlePool, PooledConnection};
use super::response_body::ConnectionHandle;
use super::tracked_stream::TrackedStream;
use super::upload_progress::{SentBody, UploadProgress};
use crate::error_chain::chain;
use crate::lazy_timer::LazyTimer;
use crate::metrics::GaugeGuard;
use crate::waker::NotifyWaker;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type ConnectionFuture = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send + Sync>>;
pub(super) type SendResult<B> = Result<Response<Incoming>, TrySendError<Request<SentBody<B>>>>;

/// Polls per wake-up before yielding. Tokio's cooperative budget makes a connection wake itself;
/// without a bound it would never yield.
const ROUNDS: usize = 3;
/// The largest piece that is read at once, and the most of a request that may wait to be sent: this
/// much stays in memory while the client or the upstream does not read. Also the longest head. Two
/// pieces and their TLS records stay below 160 KiB.
const BUFFER: usize = 28 * 1024;
/// The deadline of a timer that is not set.
const FAR: Duration = Duration::from_secs(86_400);

/// The timeout of a response head.
#[derive(Clone, Copy, Debug)]
pub struct ResponseTimeout {
    /// From the end of the request, or from its last progress while the upstream does not read it.
    pub first_byte: Duration,
    /// End of the whole exchange.
    pub until: Option<Instant>,
}

impl ResponseTimeout {
    /// No deadline of the exchange, only the timeout of the first byte.
    pub const fn within(first_byte: Duration) -> Self {
        Self {
            first_byte,
            until: None,
        }
    }
}

/// A connection, held by a request, a response body or the pool. Dropping it closes it at once.
pub(in crate::upstream) struct UpstreamConnection<B> {
    sender: http1::SendRequest<SentBody<B>>,
    /// None: it has ended.
    work: Option<ConnectionFuture>,
    notify: Arc<NotifyWaker>,
    /// The waker of `notify`; wakes the task that holds the connection.
    waker: Waker,
    timer: Pin<Box<LazyTimer>>,
    progress: Arc<UploadProgress>,
    /// Whether a byte was received since the last request.
    bytes_received: Arc<AtomicBool>,
    home: Weak<IdlePool<Self>>,
    open: GaugeGuard,
    /// What the upstream has announced in `Keep-Alive`.
    usable_for: Option<Duration>,
    usable_until: Option<Instant>,
}

impl<B> UpstreamConnection<B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// Starts HTTP on `link`.
    pub(in crate::upstream) async fn open(
        link: TrackedStream,
        home: Weak<IdlePool<Self>>,
        open: GaugeGuard,
    ) -> Result<Box<Self>, hyper::Error> {
        let bytes_received = link.bytes_received();
        let mut http = http1::Builder::new();
        http.max_buf_size(BUFFER);
        let (sender, connection) = http.handshake(TokioIo::new(link)).await?;
        let notify = Arc::new(NotifyWaker::default());
        let waker = Waker::from(Arc::clone(&notify));
        waker.wake_by_ref(); // so that the connection is polled a first time
        Ok(Box::new(Self {
            sender,
            work: Some(Box::pin(connection.with_upgrades())),
            notify,
            waker,
            timer: Box::pin(LazyTimer::new(Instant::now() + FAR)),
            progress: UploadProgress::new(),
            bytes_received,
            home,
            open,
            usable_for: None,
            usable_until: None,
        }))
    }

    /// Takes `request`; it is sent, and answered, as `poll_answer` is called.
    pub(in crate::upstream) fn begin(
        &mut self,
        request: Request<B>,
    ) -> impl Future<Output = SendResult<B>> + use<B> {
        self.bytes_received.store(false, Ordering::Release);
        let request = request.map(|body| SentBody::new(body, &self.progress));
        self.sender.try_send_request(request)
    }

    /// None at the timeout of the response head.
    pub(super) fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        mut answer: Pin<&mut impl Future<Output = SendResult<B>>>,
        timeout: ResponseTimeout,
    ) -> Poll<Option<SendResult<B>>> {
        if let Poll::Ready(answer) = self.poll_for(cx, |cx| answer.as_mut().poll(cx)) {
            return Poll::Ready(Some(answer));
        }
        self.poll_late(timeout).map(|()| None)
    }
}

impl<B> UpstreamConnection<B> {
    /// Whether a byte of a response was received.
    pub(super) fn has_received(&self) -> bool {
        self.bytes_received.load(Ordering::Acquire)
    }

    pub(super) fn progress(&self) -> &UploadProgress {
        &self.progress
    }

    /// The connection changes its protocol (101): what remains to be done for that, and
    /// what counts it as open.
    pub(in crate::upstream) fn release(self) -> (Option<ConnectionFuture>, GaugeGuard) {
        (self.work, self.open)
    }

    /// Records how long the upstream keeps the connection, from a response head that was just received.
    /// The time counts from the head, because the end of the body may be read much later than it was
    /// written.
    pub(super) fn note_head(&mut self, headers: &HeaderMap) {
        match KeepAlive::of(headers) {
            None if self.usable_for.is_none() => return,
            None => {}
            Some(said) if said.is_last => self.usable_for = Some(Duration::ZERO),
            Some(said) => self.usable_for = said.usable_for.or(self.usable_for),
        }
        self.usable_until = self.usable_for.map(|time| Instant::now() + time);
    }

    /// The connection is not used after the current response.
    pub(super) fn note_last_response(&mut self) {
        self.usable_for = Some(Duration::ZERO);
        self.usable_until = Some(Instant::now());
    }

    /// Drops the waker of the task that held the connection, which goes to the pool.
    pub(in crate::upstream) fn rest(&self) {
        self.notify.forget_listener();
    }

    /// Lets the connection work until `look` finds something. `look` need not register:
    /// nothing changes for it but by the connection's work.
    fn poll_for<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut look: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.notify.pause();
        let mut unregistered = Context::from_waker(Waker::noop());
        for _ in 0..ROUNDS {
            if self.notify.take_woken() {
                self.work();
            }
            if let Poll::Ready(found) = look(&mut unregistered) {
                return Poll::Ready(found);
            }
            if self.notify.listen(cx.waker()) {
                return Poll::Pending;
            }
            self.notify.pause();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn work(&mut self) {
        let Some(work) = &mut self.work else { return };
        if let Poll::Ready(end) = work.as_mut().poll(&mut Context::from_waker(&self.waker)) {
            if let Err(failure) = end {
                debug!(error = %chain(&failure), "upstream connection ended");
            }
            // This ends the pending request or body with an error.
            self.work = None;
        }
    }

    /// Ready at the deadline.
    fn poll_late(&mut self, timeout: ResponseTimeout) -> Poll<()> {
        let due = self.progress.deadline(timeout.first_byte);
        let due = timeout.until.map_or(due, |until| until.min(due));
        let mut cx = Context::from_waker(&self.waker);
        self.timer.as_mut().poll_until(&mut cx, due)
    }
}

impl<B: Send + Sync + 'static> ConnectionHandle for UpstreamConnection<B> {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Incoming,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        self.poll_for(cx, |cx| Pin::new(&mut *body).poll_frame(cx))
    }

    fn has_news(&self) -> bool {
        self.notify.is_woken()
    }

    fn give_back(mut self: Box<Self>) {
        if self.can_send()
            && let Some(home) = self.home.upgrade()
        {
            self.rest();
            home.give_back(self);
        }
    }
}

impl<B> PooledConnection for UpstreamConnection<B> {
    fn usable_until(&self) -> Option<Instant> {
        self.usable_until
    }

    fn can_send(&mut self) -> bool {
        if self.notify.take_woken() {
            self.work();
        }
        self.work.is_some() && self.sender.is_ready()
    }
}

impl<B> fmt::Debug for UpstreamConnection<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamConnection")
            .field("is_open", &self.work.is_some())
            .finish_non_exhaustive()
    }
}
