//! Sends requests over one worker's connections. It never repeats anything: it
//! says exactly how far a request came, and the caller decides.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::client::conn::TrySendError;
use tokio::time::Instant;
use tokio_util::either::Either;

use super::connection::{ResponseTimeout, SendResult, UpstreamConnection};
use super::dialer::DialError;
use super::framing::{FramingError, reframe};
use super::pool::IdlePool;
use super::response_body::UpstreamResponseBody;
use super::upload_progress::SentBody;
use crate::lifecycle::TaskSet;
use crate::metrics::{ConnectResult, GaugeGuard};
use crate::upstream::Upstream;
use crate::upstream::health::breaker::FailureSource;

type BoxError = Box<dyn Error + Send + Sync>;

/// One worker's kept-alive connections to one upstream. Dropping it closes those
/// that are idle, and those in use at the end of their answers.
#[derive(Debug)]
pub struct UpstreamConnections<B> {
    upstream: Arc<Upstream>,
    /// On the worker's own runtime.
    tasks: TaskSet,
    pub(in crate::upstream) pool: Arc<IdlePool<UpstreamConnection<B>>>,
}

/// A request that got no answer.
pub struct SendError<B> {
    pub kind: SendErrorKind,
    /// The request, when not a byte of it was sent.
    pub unsent: Option<Box<Request<B>>>,
    source: Option<BoxError>,
}

/// How far a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendErrorKind {
    ConnectFailed,
    ConnectTimeout,
    /// A kept-alive connection died before a byte of the answer: most likely the
    /// upstream closed it while the request was on its way.
    DeadConnection,
    /// A new connection was closed before a byte of the answer.
    Closed,
    FirstByteTimeout,
    /// What came is not an answer in HTTP/1.1, or broke off in its head.
    Protocol,
    /// The body of the answer cannot be passed on.
    Framing(FramingError),
    /// The request's own body gave an error: the client's doing.
    BodyFailed,
}

impl<B> UpstreamConnections<B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    pub fn new(upstream: Arc<Upstream>, tasks: TaskSet) -> Self {
        let pool = IdlePool::new(upstream.idle_timeout, &tasks);
        Self {
            upstream,
            tasks,
            pool,
        }
    }

    /// The `Via` of requests that the gate itself makes.
    pub(crate) fn via(&self) -> &HeaderValue {
        self.upstream.via()
    }

    /// Like `send`, but never over a connection that has been used before: where one
    /// of those has turned out dead, the others most likely are.
    pub async fn send_fresh(
        &self,
        request: Request<B>,
        patience: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError<B>> {
        self.pool.close_idle();
        self.send(request, patience).await
    }

    /// Sends `request`, whose URI is path and query, and gives the head of the
    /// answer.
    pub fn send(
        &self,
        mut request: Request<B>,
        patience: ResponseTimeout,
    ) -> impl Future<Output = Result<Response<UpstreamResponseBody>, SendError<B>>> {
        *request.version_mut() = Version::HTTP_11;
        let host = &self.upstream.host;
        request
            .headers_mut()
            .entry(HOST)
            .or_insert_with(|| host.clone());
        match self.pool.take() {
            Some(connection) => {
                self.upstream
                    .metrics
                    .upstream_connects
                    .add(ConnectResult::Reused);
                Either::Left(self.exchange(connection, true, request, patience))
            }
            None => Either::Right(Box::pin(self.send_over_new(request, patience))),
        }
    }

    async fn send_over_new(
        &self,
        request: Request<B>,
        patience: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError<B>> {
        match self.connect(patience.until).await {
            Ok(connection) => self.exchange(connection, false, request, patience).await,
            Err((kind, source)) => Err(SendError::unsent(kind, request, source)),
        }
    }

    async fn connect(
        &self,
        end: Option<Instant>,
    ) -> Result<Box<UpstreamConnection<B>>, (SendErrorKind, BoxError)> {
        let watch = DialWatch::begin(&self.upstream);
        let dialed = self.upstream.dialer.dial(end).await;
        watch.end(dialed.as_ref().err());
        let link = dialed.map_err(|failure| {
            let (label, kind) = match &failure {
                DialError::TimedOut { .. } => {
                    (ConnectResult::Timeout, SendErrorKind::ConnectTimeout)
                }
                DialError::Resolve { .. }
                | DialError::NoAddress { .. }
                | DialError::Connect { .. }
                | DialError::Handshake { .. } => {
                    (ConnectResult::Failed, SendErrorKind::ConnectFailed)
                }
            };
            self.upstream.metrics.upstream_connects.add(label);
            (kind, BoxError::from(failure))
        })?;
        let open = GaugeGuard::enter(&self.upstream.metrics.upstream_connections_open);
        let home = Arc::downgrade(&self.pool);
        let connection = UpstreamConnection::open(link, home, open)
            .await
            .map_err(|failure| {
                self.upstream
                    .metrics
                    .upstream_connects
                    .add(ConnectResult::Failed);
                (SendErrorKind::ConnectFailed, BoxError::from(failure))
            })?;
        self.upstream
            .metrics
            .upstream_connects
            .add(ConnectResult::New);
        Ok(connection)
    }

    pub(in crate::upstream) fn exchange(
        &self,
        mut connection: Box<UpstreamConnection<B>>,
        is_reused: bool,
        request: Request<B>,
        patience: ResponseTimeout,
    ) -> ExchangeFuture<'_, B, impl Future<Output = SendResult<B>> + use<B>> {
        ExchangeFuture {
            method: request.method().clone(),
            answer: connection.begin(request),
            connection: Some(connection),
            is_reused,
            patience,
            owner: self,
        }
    }
}

pin_project_lite::pin_project! {
    /// A request on its way over one connection. Written out, as `async` would keep room
    /// for the request, and move it, once for every function that it passes through.
    pub(in crate::upstream) struct ExchangeFuture<'a, B, F> {
        #[pin]
        answer: F,
        // None: it has ended.
        connection: Option<Box<UpstreamConnection<B>>>,
        is_reused: bool,
        method: Method,
        patience: ResponseTimeout,
        owner: &'a UpstreamConnections<B>,
    }

    impl<B, F> PinnedDrop for ExchangeFuture<'_, B, F> {
        fn drop(me: Pin<&mut Self>) {
            // The client has left before the answer came.
            if let Some(connection) = me.connection.as_ref() {
                me.owner.given_up(connection, &me.patience);
            }
        }
    }
}

impl<B, F> Future for ExchangeFuture<'_, B, F>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
    F: Future<Output = SendResult<B>>,
{
    type Output = Result<Response<UpstreamResponseBody>, SendError<B>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let me = self.project();
        let Some(mut connection) = me.connection.take() else {
            return Poll::Pending; // polled after its end, which nobody does
        };
        let Poll::Ready(answer) = connection.poll_answer(cx, me.answer, *me.patience) else {
            *me.connection = Some(connection);
            return Poll::Pending;
        };
        let health = me.owner.upstream.health();
        let Some(answer) = answer else {
            me.owner.given_up(&connection, me.patience);
            return Poll::Ready(Err(SendErrorKind::FirstByteTimeout.into()));
        };
        if answer.is_ok() {
            health.answered();
        }
        Poll::Ready(match answer {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let (rest, open) = connection.release();
                if let Some(rest) = rest {
                    me.owner.tasks.spawn("upstream tunnel", async move {
                        let _open = open;
                        let _ = rest.await; // whoever has the tunnel learns of its end there
                    });
                }
                Ok(response.map(UpstreamResponseBody::without_connection))
            }
            Ok(mut response) => match reframe(&mut response, me.method) {
                Ok(framing) => {
                    connection.note_head(response.headers());
                    if framing.is_last {
                        connection.note_last_answer();
                    }
                    Ok(response.map(|incoming| UpstreamResponseBody::new(incoming, connection)))
                }
                Err(error) => Err(SendErrorKind::Framing(error).into()),
            },
            Err(failure) => {
                let error = SendError::classify(failure, &connection, *me.is_reused);
                if matches!(error.kind, SendErrorKind::Closed | SendErrorKind::Protocol) {
                    health.unanswered(FailureSource::Request, &error);
                }
                Err(error)
            }
        })
    }
}

impl<B> UpstreamConnections<B> {
    /// An exchange over `connection` has ended without an answer, because its time was up or
    /// the client has left.
    fn given_up(&self, connection: &UpstreamConnection<B>, patience: &ResponseTimeout) {
        if let Some(owed) = connection.progress().owed_for() {
            self.upstream.health().given_up(owed, patience.first_byte);
        }
    }
}

/// Sees how an attempt at a connection ends, also when nobody waits for it any more.
struct DialWatch<'a> {
    upstream: &'a Upstream,
    began: Instant,
    has_ended: bool,
}

impl<'a> DialWatch<'a> {
    fn begin(upstream: &'a Upstream) -> Self {
        Self {
            upstream,
            began: Instant::now(),
            has_ended: false,
        }
    }

    fn end(mut self, failure: Option<&DialError>) {
        self.has_ended = true;
        let health = self.upstream.health();
        match failure {
            None => {}
            // Cut short by the end of the whole exchange.
            Some(DialError::TimedOut { .. }) if self.began.elapsed() < self.limit() => {
                health.given_up(self.began.elapsed(), self.limit());
            }
            Some(failure) => health.unconnected(FailureSource::Request, failure),
        }
    }

    fn limit(&self) -> Duration {
        self.upstream.dialer.limit
    }
}

impl Drop for DialWatch<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let health = self.upstream.health();
            health.given_up(self.began.elapsed(), self.limit());
        }
    }
}

impl<B> SendError<B> {
    fn unsent(kind: SendErrorKind, request: Request<B>, source: BoxError) -> Self {
        Self {
            kind,
            unsent: Some(Box::new(request)),
            source: Some(source),
        }
    }

    fn classify(
        mut failure: TrySendError<Request<SentBody<B>>>,
        connection: &UpstreamConnection<B>,
        is_reused: bool,
    ) -> Self {
        let unsent = failure.take_message();
        let has_heard = connection.has_heard();
        let kind = if connection.progress().has_failed() {
            SendErrorKind::BodyFailed
        } else if is_reused && (unsent.is_some() || !has_heard) {
            SendErrorKind::DeadConnection
        } else if has_heard {
            SendErrorKind::Protocol
        } else {
            SendErrorKind::Closed
        };
        Self {
            kind,
            unsent: unsent.map(|request| Box::new(request.map(SentBody::into_inner))),
            source: Some(failure.into_error().into()),
        }
    }
}

impl<B> From<SendErrorKind> for SendError<B> {
    fn from(kind: SendErrorKind) -> Self {
        Self {
            kind,
            unsent: None,
            source: None,
        }
    }
}

impl fmt::Display for SendErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectFailed => "cannot connect to the upstream",
            Self::ConnectTimeout => "no connection to the upstream in time",
            Self::DeadConnection => "a kept-alive connection to the upstream was dead",
            Self::Closed => "the upstream closed the connection without an answer",
            Self::FirstByteTimeout => "no answer from the upstream in time",
            Self::Protocol | Self::Framing(_) => "the upstream's answer is not usable HTTP",
            Self::BodyFailed => "the request's body broke off",
        })
    }
}

impl<B> fmt::Display for SendError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

// By hand: the unsent request's headers hold what no log may show.
impl<B> fmt::Debug for SendError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError")
            .field("kind", &self.kind)
            .field("is_unsent", &self.unsent.is_some())
            .field("source", &self.source)
            .finish()
    }
}

impl<B> Error for SendError<B> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
