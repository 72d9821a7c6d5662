//! Sends requests over one worker's connections. It never retries: the error says how far a request
//! got, and the caller decides.

use std::borrow::Cow;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, Response};
use http_body::Body;
use tokio::time::Instant;
use tokio_util::either::Either;

use super::dial_watch::dial_watched;
use super::http1::connection::{HeadFailure, ResponseTimeout, UpstreamConnection};
use super::http2::connection_set::{AcquiredStream, Http2ConnectionSet};
use super::http2::exchange::Http2Exchange;
use super::http2::http2_connection::StreamLease;
use super::http2::response_future::Http2ResponseFuture;
use super::outbound_request::OutboundRequest;
use super::pool::IdlePool;
use super::response_body::UpstreamResponseBody;
use super::send_error::{SendError, SendErrorKind};
use super::tracked_stream::TrackedStream;
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
    /// None: HTTP/1.1 only.
    http2: Option<Arc<Http2ConnectionSet>>,
}

/// A connection that was opened for one request.
enum NewConnection<B> {
    Http1(Box<UpstreamConnection<B>>),
    /// It was handed to the set of HTTP/2 connections.
    Http2,
}

impl<B> UpstreamConnections<B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// `tasks`: those of the worker's own runtime.
    pub fn new(upstream: Arc<Upstream>, tasks: &TaskSet) -> Self {
        let pool = IdlePool::new(upstream.idle_timeout, tasks);
        let may_speak = upstream.dialer.may_speak_http2();
        let http2 = may_speak.then(|| Http2ConnectionSet::new(&upstream, tasks));
        Self {
            upstream,
            pool,
            http2,
        }
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
        let request = self.with_host(request);
        match self.http2_first() {
            Some(set) => self.send_over_http2(set, true, request, timeout).await,
            None => self.send_over_new(request, timeout).await,
        }
    }

    /// Sends `request`, with the upstream's own `Host` if it has none, and returns the response head.
    pub fn send<'a>(
        &'a self,
        request: OutboundRequest<'a, B>,
        timeout: ResponseTimeout,
    ) -> impl Future<Output = Result<Response<UpstreamResponseBody>, SendError>> {
        let request = self.with_host(request);
        if let Some(set) = self.http2_first() {
            let sent = self.send_over_http2(set, false, request, timeout);
            return Either::Right(Either::Right(Box::pin(sent)));
        }
        match self.pool.take() {
            Some(connection) => {
                self.upstream
                    .metrics
                    .upstream_connects
                    .add(ConnectResult::Reused);
                Either::Left(self.exchange(connection, true, request, timeout))
            }
            None => {
                let sent = self.send_over_new(request, timeout);
                Either::Right(Either::Left(Box::pin(sent)))
            }
        }
    }

    fn with_host<'a>(&'a self, mut request: OutboundRequest<'a, B>) -> OutboundRequest<'a, B> {
        if !request.fields.contains("host") {
            let host = Cow::Borrowed(&self.upstream.host);
            request.fields.push_own("host", host);
        }
        request
    }

    /// The HTTP/2 connections, unless the upstream has chosen HTTP/1.1.
    fn http2_first(&self) -> Option<&Arc<Http2ConnectionSet>> {
        self.http2.as_ref().filter(|set| !set.is_http1_chosen())
    }

    async fn send_over_http2(
        &self,
        set: &Arc<Http2ConnectionSet>,
        is_fresh: bool,
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError> {
        match set.acquire(timeout, is_fresh).await? {
            AcquiredStream::Http2(lease) => self.exchange_http2(lease, request, timeout).await,
            AcquiredStream::Http1(Some(stream)) => {
                let connection = self.http1_connection(*stream);
                self.exchange(connection, false, request, timeout).await
            }
            AcquiredStream::Http1(None) => self.send_over_new(request, timeout).await,
        }
    }

    async fn exchange_http2(
        &self,
        lease: StreamLease,
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError> {
        let is_tls = self.upstream.dialer.tls().is_some();
        let exchange = Http2Exchange::begin(lease, request, is_tls)?;
        Http2ResponseFuture::new(exchange, timeout, &self.upstream).await
    }

    async fn send_over_new(
        &self,
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError> {
        match self.connect(timeout.until).await {
            Ok(NewConnection::Http1(connection)) => {
                self.exchange(connection, false, request, timeout).await
            }
            // The upstream has begun to choose HTTP/2.
            Ok(NewConnection::Http2) => match &self.http2 {
                Some(set) => Box::pin(self.send_over_http2(set, false, request, timeout)).await,
                None => Err(SendErrorKind::ConnectFailed.into()),
            },
            Err(error) => Err(error),
        }
    }

    async fn connect(&self, end: Option<Instant>) -> Result<NewConnection<B>, SendError> {
        let dialed = dial_watched(&self.upstream, end).await;
        let stream = dialed.map_err(|failure| {
            let kind = match failure.is_timeout() {
                true => SendErrorKind::ConnectTimeout,
                false => SendErrorKind::ConnectFailed,
            };
            SendError::unsent(kind, BoxError::from(failure))
        })?;
        if stream.is_http2()
            && let Some(set) = &self.http2
        {
            set.adopt(stream).await?;
            return Ok(NewConnection::Http2);
        }
        Ok(NewConnection::Http1(self.http1_connection(stream)))
    }

    fn http1_connection(&self, stream: TrackedStream) -> Box<UpstreamConnection<B>> {
        let open = GaugeGuard::enter(&self.upstream.metrics.upstream_connections_open);
        let home = Arc::downgrade(&self.pool);
        UpstreamConnection::new(stream, home, open)
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
