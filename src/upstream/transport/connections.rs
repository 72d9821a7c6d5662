//! Sends requests over one worker's connections. It never retries: the error says how far a request
//! got, and the caller decides.

use std::borrow::Cow;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response};
use http_body::Body;
use tokio::time::Instant;
use tokio_util::either::Either;

use super::dial_error::DialError;
use super::http1::OutboundRequest;
use super::http1::connection::{HeadFailure, ResponseTimeout, UpstreamConnection};
use super::http1::response_body::UpstreamResponseBody;
use super::pool::IdlePool;
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

    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// The `Via` field of the gateway's own requests.
    pub(crate) fn via(&self) -> &HeaderValue {
        self.upstream.via()
    }

    /// Like `send`, but over a new connection: where one pooled connection was dead, the others most
    /// likely are too.
    pub async fn send_fresh(
        &self,
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError> {
        self.pool.close_idle();
        self.send(request, timeout).await
    }

    /// Sends `request`, with the upstream's own `Host` if it has none, and returns the response head.
    pub fn send<'a>(
        &'a self,
        mut request: OutboundRequest<'a, B>,
        timeout: ResponseTimeout,
    ) -> impl Future<Output = Result<Response<UpstreamResponseBody>, SendError>> {
        if !request.fields.contains("host") {
            let host = Cow::Borrowed(&self.upstream.host);
            request.fields.push_own("host", host);
        }
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
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError> {
        match self.connect(timeout.until).await {
            Ok(connection) => self.exchange(connection, false, request, timeout).await,
            Err((kind, source)) => Err(SendError::unsent(kind, source)),
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
            let (label, kind) = match failure.is_timeout() {
                true => (ConnectResult::Timeout, SendErrorKind::ConnectTimeout),
                false => (ConnectResult::Failed, SendErrorKind::ConnectFailed),
            };
            self.upstream.metrics.upstream_connects.add(label);
            (kind, BoxError::from(failure))
        })?;
        let open = GaugeGuard::enter(&self.upstream.metrics.upstream_connections_open);
        let home = Arc::downgrade(&self.pool);
        self.upstream
            .metrics
            .upstream_connects
            .add(ConnectResult::New);
        Ok(UpstreamConnection::new(link, home, open))
    }

    pub(in crate::upstream) fn exchange(
        &self,
        mut connection: Box<UpstreamConnection<B>>,
        is_reused: bool,
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> ExchangeFuture<'_, B> {
        connection.begin(request);
        ExchangeFuture {
            connection: Some(connection),
            is_reused,
            timeout,
            owner: self,
        }
    }
}

/// A request in flight on one connection. A hand-written future, because `async` would keep room for
/// the request, and move it, once for every function that it passes through.
pub(in crate::upstream) struct ExchangeFuture<'a, B> {
    /// None: it has ended.
    connection: Option<Box<UpstreamConnection<B>>>,
    is_reused: bool,
    timeout: ResponseTimeout,
    owner: &'a UpstreamConnections<B>,
}

impl<B> Drop for ExchangeFuture<'_, B> {
    fn drop(&mut self) {
        // The client disconnected before the response.
        if let Some(connection) = &self.connection {
            self.owner.abandoned(connection, &self.timeout);
        }
    }
}

impl<B> Future for ExchangeFuture<'_, B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<UpstreamResponseBody>, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let timeout = self.timeout;
        let Some(connection) = &mut self.connection else {
            return Poll::Pending; // polled after completion
        };
        let head = ready!(connection.poll_head(cx, timeout));
        let Some(connection) = self.connection.take() else {
            return Poll::Pending;
        };
        let health = self.owner.upstream.health();
        let failure = match head {
            Ok(head) => {
                health.responded();
                return Poll::Ready(Ok(head.map(|()| UpstreamResponseBody::new(connection))));
            }
            Err(failure) => failure,
        };
        match &failure {
            HeadFailure::Late => self.owner.abandoned(&connection, &timeout),
            HeadFailure::Framing(_) => health.responded(),
            HeadFailure::Broken(_) => {}
        }
        let error = SendError::classify(failure, &connection, self.is_reused);
        if matches!(error.kind, SendErrorKind::Closed | SendErrorKind::Protocol) {
            health.response_failed(FailureSource::Request, &error);
        }
        Poll::Ready(Err(error))
    }
}

impl<B> UpstreamConnections<B> {
    /// An exchange over `connection` has ended without a response: timeout, or the client disconnected.
    fn abandoned(&self, connection: &UpstreamConnection<B>, timeout: &ResponseTimeout) {
        if let Some(owed) = connection.owed_for() {
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
            Some(failure) if failure.is_deadline() && self.began.elapsed() < self.limit() => {
                health.abandoned(self.began.elapsed(), self.limit());
            }
            Some(failure) => health.connect_failed(FailureSource::Request, failure),
        }
    }

    fn limit(&self) -> Duration {
        self.upstream.dialer.limit()
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
