//! Sends requests over one worker's connections. It never retries: the error says how far a request
//! got, and the caller decides.

mod dial_watch;
mod endpoint_lane;
mod http2_connection_set;
mod http2_response_future;

pub use endpoint_lane::ChosenEndpoint;

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

use super::transport::dial_error::DialError;
use super::transport::http1::connection::{HeadFailure, ResponseTimeout, UpstreamConnection};
use super::transport::http2::exchange::Http2Exchange;
use super::transport::http2::http2_connection::StreamLease;
use super::transport::outbound_request::OutboundRequest;
use super::transport::response_body::UpstreamResponseBody;
use super::transport::send_error::{SendError, SendErrorKind};
use super::transport::tracked_stream::TrackedStream;
use crate::lifecycle::TaskSet;
use crate::metrics::{ConnectResult, GaugeGuard};
use crate::upstream::Upstream;
use crate::upstream::endpoints::EndpointChoice;
use dial_watch::dial_watched;
use endpoint_lane::{EndpointLane, EndpointLanes};
use http2_connection_set::AcquiredStream;
use http2_response_future::Http2ResponseFuture;

type BoxError = Box<dyn Error + Send + Sync>;

/// One worker's kept-alive connections to one upstream. Dropping it closes idle connections at once,
/// and those in use at the end of their responses.
#[derive(Debug)]
pub struct UpstreamConnections<B> {
    upstream: Arc<Upstream>,
    lanes: EndpointLanes<B>,
}

impl<B> UpstreamConnections<B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// `tasks`: those of the worker's own runtime.
    pub fn new(upstream: Arc<Upstream>, tasks: &TaskSet) -> Self {
        let lanes = EndpointLanes::new(&upstream, tasks);
        Self { upstream, lanes }
    }

    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// The `Via` field of the gateway's own requests.
    pub(crate) fn via(&self) -> &HeaderValue {
        self.upstream.via()
    }

    /// The endpoint for one request; None: no endpoint is in use that `choice` allows.
    pub(crate) fn choose(&self, choice: EndpointChoice<'_>) -> Option<ChosenEndpoint<B>> {
        self.lanes.choose(&self.upstream, choice)
    }

    /// The endpoint of this name once more; None: it is not in use any more.
    pub(crate) fn choose_again(&self, name: &str) -> Option<ChosenEndpoint<B>> {
        self.lanes.named(name)
    }

    /// Sends `request` to any endpoint.
    pub async fn send(
        &self,
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError> {
        let chosen = self.choose(EndpointChoice::default());
        let chosen = chosen.ok_or_else(|| self.no_endpoint())?;
        self.send_to(chosen, request, timeout).await
    }

    /// The error of a request for which there is no endpoint.
    pub(crate) fn no_endpoint(&self) -> SendError {
        let upstream = Arc::clone(&self.upstream.name);
        let source = DialError::NoEndpoint { upstream };
        SendError::unsent(SendErrorKind::ConnectFailed, source.into())
    }

    /// Like `send_to`, but over a new connection: where one pooled connection was dead, the others most
    /// likely are too.
    pub(crate) async fn send_fresh(
        &self,
        chosen: ChosenEndpoint<B>,
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError> {
        chosen.lane.pool.close_idle();
        let request = with_host(&chosen, request);
        match chosen.lane.http2_first() {
            Some(_) => self.send_over_http2(chosen, true, request, timeout).await,
            None => self.send_over_new(chosen, request, timeout).await,
        }
    }

    /// Sends `request`, with the endpoint's own `Host` if it has none, and returns the response head.
    pub(crate) fn send_to<'a>(
        &'a self,
        chosen: ChosenEndpoint<B>,
        request: OutboundRequest<'a, B>,
        timeout: ResponseTimeout,
    ) -> impl Future<Output = Result<Response<UpstreamResponseBody>, SendError>> + use<'a, B> {
        let request = with_host(&chosen, request);
        if chosen.lane.http2_first().is_some() {
            let sent = self.send_over_http2(chosen, false, request, timeout);
            return Either::Right(Either::Right(Box::pin(sent)));
        }
        match chosen.lane.pool.take() {
            Some(connection) => {
                self.upstream
                    .metrics
                    .upstream_connects
                    .add(ConnectResult::Reused);
                Either::Left(self.exchange(chosen, connection, true, request, timeout))
            }
            None => {
                let sent = self.send_over_new(chosen, request, timeout);
                Either::Right(Either::Left(Box::pin(sent)))
            }
        }
    }

    async fn send_over_http2(
        &self,
        chosen: ChosenEndpoint<B>,
        is_fresh: bool,
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError> {
        let Some(set) = &chosen.lane.http2 else {
            return Err(SendErrorKind::ConnectFailed.into());
        };
        match set.acquire(timeout, is_fresh).await? {
            AcquiredStream::Http2(lease) => {
                self.exchange_http2(chosen, lease, request, timeout).await
            }
            AcquiredStream::Http1(Some(stream)) => {
                let connection = self.http1_connection(&chosen.lane, *stream);
                self.exchange(chosen, connection, false, request, timeout)
                    .await
            }
            AcquiredStream::Http1(None) => self.send_over_new(chosen, request, timeout).await,
        }
    }

    async fn exchange_http2(
        &self,
        chosen: ChosenEndpoint<B>,
        mut lease: StreamLease,
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError> {
        let endpoint = &chosen.lane.endpoint;
        lease.in_flight = chosen.in_flight;
        let exchange = Http2Exchange::begin(lease, request, endpoint.dialer.tls().is_some())?;
        let state = Arc::clone(&endpoint.state);
        Http2ResponseFuture::new(exchange, timeout, &self.upstream.endpoints, state).await
    }

    async fn send_over_new(
        &self,
        chosen: ChosenEndpoint<B>,
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError> {
        match self.connect(&chosen.lane, timeout.until).await {
            Ok(NewConnection::Http1(connection)) => {
                self.exchange(chosen, connection, false, request, timeout)
                    .await
            }
            // The upstream has begun to choose HTTP/2.
            Ok(NewConnection::Http2) => {
                Box::pin(self.send_over_http2(chosen, false, request, timeout)).await
            }
            Err(error) => Err(error),
        }
    }

    async fn connect(
        &self,
        lane: &EndpointLane<B>,
        end: Option<Instant>,
    ) -> Result<NewConnection<B>, SendError> {
        let dialed = dial_watched(&self.upstream, &lane.endpoint, end).await;
        let stream = dialed.map_err(|failure| {
            let kind = match failure.is_timeout() {
                true => SendErrorKind::ConnectTimeout,
                false => SendErrorKind::ConnectFailed,
            };
            SendError::unsent(kind, BoxError::from(failure))
        })?;
        if stream.is_http2()
            && let Some(set) = &lane.http2
        {
            set.adopt(stream).await?;
            return Ok(NewConnection::Http2);
        }
        Ok(NewConnection::Http1(self.http1_connection(lane, stream)))
    }

    fn http1_connection(
        &self,
        lane: &EndpointLane<B>,
        stream: TrackedStream,
    ) -> Box<UpstreamConnection<B>> {
        let open = GaugeGuard::enter(&self.upstream.metrics.upstream_connections_open);
        let home = Arc::downgrade(&lane.pool);
        UpstreamConnection::new(stream, home, open)
    }

    pub(in crate::upstream) fn exchange(
        &self,
        chosen: ChosenEndpoint<B>,
        mut connection: Box<UpstreamConnection<B>>,
        is_reused: bool,
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> ExchangeFuture<'_, B> {
        connection.begin(request, chosen.in_flight);
        ExchangeFuture {
            connection: Some(connection),
            lane: chosen.lane,
            is_reused,
            timeout,
            owner: self,
        }
    }
}

/// A connection that was opened for one request.
enum NewConnection<B> {
    Http1(Box<UpstreamConnection<B>>),
    /// It was handed to the set of HTTP/2 connections.
    Http2,
}

fn with_host<'a, B>(
    chosen: &ChosenEndpoint<B>,
    mut request: OutboundRequest<'a, B>,
) -> OutboundRequest<'a, B> {
    if !request.fields.contains("host") {
        let host = Cow::Owned(chosen.lane.host.clone());
        request.fields.push_own("host", host);
    }
    request
}

/// A request in flight on one connection. A hand-written future, because `async` would keep room for
/// the request, and move it, once for every function that it passes through.
pub(in crate::upstream) struct ExchangeFuture<'a, B> {
    /// None: it has ended.
    connection: Option<Box<UpstreamConnection<B>>>,
    lane: Arc<EndpointLane<B>>,
    is_reused: bool,
    timeout: ResponseTimeout,
    owner: &'a UpstreamConnections<B>,
}

impl<B> Drop for ExchangeFuture<'_, B> {
    fn drop(&mut self) {
        // The client disconnected before the response.
        let owed = self.connection.as_ref().and_then(|one| one.owed_for());
        if let Some(owed) = owed {
            let health = &self.lane.endpoint.state.health;
            health.abandoned(owed, self.timeout.first_byte);
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
        let endpoints = &self.owner.upstream.endpoints;
        let state = &self.lane.endpoint.state;
        let failure = match head {
            Ok(head) => {
                endpoints.responded(state, head.status());
                return Poll::Ready(Ok(head.map(|()| UpstreamResponseBody::new(connection))));
            }
            Err(failure) => failure,
        };
        match &failure {
            HeadFailure::Late => {
                if let Some(owed) = connection.owed_for() {
                    endpoints.timed_out(state, owed, timeout.first_byte);
                }
            }
            HeadFailure::Framing(_) => endpoints.response_unusable(state),
            HeadFailure::Broken(_) => {}
        }
        let error = SendError::classify(failure, &connection, self.is_reused);
        if matches!(error.kind, SendErrorKind::Closed | SendErrorKind::Protocol) {
            endpoints.response_failed(state, &error);
        }
        Poll::Ready(Err(error))
    }
}
