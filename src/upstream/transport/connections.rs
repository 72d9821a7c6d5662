//! Sends requests over one worker's connections. It never retries: the error says how far a request
//! got, and the caller decides.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Method, Request, Response, Version};
use http_body::Body;
use tokio::time::Instant;
use tokio_util::either::Either;

use super::connection::{ResponseTimeout, SendResult, UpstreamConnection};
use super::dialer::DialError;
use super::framing::reframe;
use super::pool::IdlePool;
use super::response_body::UpstreamResponseBody;
use super::send_error::{SendError, SendErrorKind};
use crate::lifecycle::TaskSet;
use crate::metrics::{ConnectResult, GaugeGuard};
use crate::upstream::Upstream;
use crate::upstream::health::breaker::FailureSource;

type BoxError = Box<dyn Error + Send + Sync>;

/// One worker's kept-alive connections to one upstream. Dropping it closes idle connections at once,
/// and those in use at the end of their responses.
#[derive(Debug)]
pub struct UpstreamConnections<B> {
    upstream: Arc<Upstream>,
    pub(in crate::upstream) pool: Arc<IdlePool<UpstreamConnection<B>>>,
}

impl<B> UpstreamConnections<B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// `tasks`: those of the worker's own runtime.
    pub fn new(upstream: Arc<Upstream>, tasks: &TaskSet) -> Self {
        let pool = IdlePool::new(upstream.idle_timeout, tasks);
        Self { upstream, pool }
    }

    /// The `Via` field of the gateway's own requests.
    pub(crate) fn via(&self) -> &HeaderValue {
        self.upstream.via()
    }

    /// Like `send`, but over a new connection: where one pooled connection was dead, the others most
    /// likely are too.
    pub async fn send_fresh(
        &self,
        request: Request<B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError<B>> {
        self.pool.close_idle();
        self.send(request, timeout).await
    }

    /// Sends `request`, whose URI is path and query, and returns the response head.
    pub fn send(
        &self,
        mut request: Request<B>,
        timeout: ResponseTimeout,
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
                Either::Left(self.exchange(connection, true, request, timeout))
            }
            None => Either::Right(Box::pin(self.send_over_new(request, timeout))),
        }
    }

    async fn send_over_new(
        &self,
        request: Request<B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError<B>> {
        match self.connect(timeout.until).await {
            Ok(connection) => self.exchange(connection, false, request, timeout).await,
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
        timeout: ResponseTimeout,
    ) -> ExchangeFuture<'_, B, impl Future<Output = SendResult<B>> + use<B>> {
        ExchangeFuture {
            method: request.method().clone(),
            answer: connection.begin(request),
            connection: Some(connection),
            is_reused,
            timeout,
            owner: self,
        }
    }
}

pin_project_lite::pin_project! {
    /// A request in flight on one connection. A hand-written future, because `async` would keep room for
    /// the request, and move it, once for every function that it passes through.
    pub(in crate::upstream) struct ExchangeFuture<'a, B, F> {
        #[pin]
        answer: F,
        // None: it has ended.
        connection: Option<Box<UpstreamConnection<B>>>,
        is_reused: bool,
        method: Method,
        timeout: ResponseTimeout,
        owner: &'a UpstreamConnections<B>,
    }

    impl<B, F> PinnedDrop for ExchangeFuture<'_, B, F> {
        fn drop(me: Pin<&mut Self>) {
            // The client disconnected before the response.
            if let Some(connection) = me.connection.as_ref() {
                me.owner.abandoned(connection, &me.timeout);
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
            return Poll::Pending; // polled after completion
        };
        let Poll::Ready(answer) = connection.poll_response(cx, me.answer, *me.timeout) else {
            *me.connection = Some(connection);
            return Poll::Pending;
        };
        let health = me.owner.upstream.health();
        let Some(answer) = answer else {
            me.owner.abandoned(&connection, me.timeout);
            return Poll::Ready(Err(SendErrorKind::FirstByteTimeout.into()));
        };
        if answer.is_ok() {
            health.responded();
        }
        Poll::Ready(match answer {
            Ok(mut response) => match reframe(&mut response, me.method) {
                Ok(framing) => {
                    connection.note_head(response.headers());
                    if framing.is_last {
                        connection.note_last_response();
                    }
                    Ok(response.map(|incoming| UpstreamResponseBody::new(incoming, connection)))
                }
                Err(error) => Err(SendErrorKind::Framing(error).into()),
            },
            Err(failure) => {
                let error = SendError::classify(failure, &connection, *me.is_reused);
                if matches!(error.kind, SendErrorKind::Closed | SendErrorKind::Protocol) {
                    health.response_failed(FailureSource::Request, &error);
                }
                Err(error)
            }
        })
    }
}

impl<B> UpstreamConnections<B> {
    /// An exchange over `connection` has ended without a response: timeout, or the client disconnected.
    fn abandoned(&self, connection: &UpstreamConnection<B>, timeout: &ResponseTimeout) {
        if let Some(owed) = connection.progress().owed_for() {
            self.upstream.health().abandoned(owed, timeout.first_byte);
        }
    }
}

/// Reports the outcome of a dial to the upstream's health, also if the request is dropped during
/// it.
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
            // Ended early by the deadline of the whole exchange.
            Some(DialError::TimedOut { .. }) if self.began.elapsed() < self.limit() => {
                health.abandoned(self.began.elapsed(), self.limit());
            }
            Some(failure) => health.connect_failed(FailureSource::Request, failure),
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
            health.abandoned(self.began.elapsed(), self.limit());
        }
    }
}
