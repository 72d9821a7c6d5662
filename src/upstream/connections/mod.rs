//! Sends requests over one worker's connections. It never retries: the error says how far a request
//! got, and the caller decides.

mod endpoint_lane;

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

use super::transport::dial_error::DialError;
use super::transport::http1::OutboundRequest;
use super::transport::http1::connection::{HeadFailure, ResponseTimeout, UpstreamConnection};
use super::transport::http1::response_body::UpstreamResponseBody;
use super::transport::send_error::{SendError, SendErrorKind};
use crate::lifecycle::TaskSet;
use crate::metrics::{ConnectResult, GaugeGuard};
use crate::upstream::Upstream;
use crate::upstream::endpoints::{Endpoint, EndpointChoice};
pub use endpoint_lane::ChosenEndpoint;
use endpoint_lane::{EndpointLane, EndpointLanes};

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
        self.send_to(chosen, request, timeout).await
    }

    /// Sends `request`, with the endpoint's own `Host` if it has none, and returns the response head.
    pub(crate) fn send_to<'a>(
        &'a self,
        chosen: ChosenEndpoint<B>,
        mut request: OutboundRequest<'a, B>,
        timeout: ResponseTimeout,
    ) -> impl Future<Output = Result<Response<UpstreamResponseBody>, SendError>> + use<'a, B> {
        if !request.fields.contains("host") {
            let host = Cow::Owned(chosen.lane.host.clone());
            request.fields.push_own("host", host);
        }
        match chosen.lane.pool.take() {
            Some(connection) => {
                self.upstream
                    .metrics
                    .upstream_connects
                    .add(ConnectResult::Reused);
                Either::Left(self.exchange(chosen, connection, true, request, timeout))
            }
            None => Either::Right(Box::pin(self.send_over_new(chosen, request, timeout))),
        }
    }

    async fn send_over_new(
        &self,
        chosen: ChosenEndpoint<B>,
        request: OutboundRequest<'_, B>,
        timeout: ResponseTimeout,
    ) -> Result<Response<UpstreamResponseBody>, SendError> {
        match self.connect(&chosen.lane, timeout.until).await {
            Ok(connection) => {
                self.exchange(chosen, connection, false, request, timeout)
                    .await
            }
            Err((kind, source)) => Err(SendError::unsent(kind, source)),
        }
    }

    async fn connect(
        &self,
        lane: &EndpointLane<B>,
        end: Option<Instant>,
    ) -> Result<Box<UpstreamConnection<B>>, (SendErrorKind, BoxError)> {
        let watch = DialWatch::begin(&self.upstream, &lane.endpoint);
        let dialed = lane.endpoint.dialer.dial(end).await;
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
        let home = Arc::downgrade(&lane.pool);
        self.upstream
            .metrics
            .upstream_connects
            .add(ConnectResult::New);
        Ok(UpstreamConnection::new(link, home, open))
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

/// Reports the outcome of a dial to the upstream's health, also if the request is dropped during
/// it.
struct DialWatch<'a> {
    upstream: &'a Upstream,
    endpoint: &'a Endpoint,
    began: Instant,
    has_ended: bool,
}

impl<'a> DialWatch<'a> {
    fn begin(upstream: &'a Upstream, endpoint: &'a Endpoint) -> Self {
        Self {
            upstream,
            endpoint,
            began: Instant::now(),
            has_ended: false,
        }
    }

    fn end(mut self, failure: Option<&DialError>) {
        self.has_ended = true;
        let state = &self.endpoint.state;
        match failure {
            None => {}
            // Ended early by the deadline of the whole exchange.
            Some(failure) if failure.is_deadline() && self.began.elapsed() < self.limit() => {
                state.health.abandoned(self.began.elapsed(), self.limit());
            }
            Some(failure) => self.upstream.endpoints.connect_failed(state, failure),
        }
    }

    fn limit(&self) -> Duration {
        self.endpoint.dialer.limit()
    }
}

impl Drop for DialWatch<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let health = &self.endpoint.state.health;
            health.abandoned(self.began.elapsed(), self.limit());
        }
    }
}
