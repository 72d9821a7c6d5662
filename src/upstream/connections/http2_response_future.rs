//! A request in flight on a stream, as a future that reports to the upstream's health.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::Body;

use crate::upstream::endpoints::{EndpointSet, EndpointState};
use crate::upstream::transport::http1::connection::ResponseTimeout;
use crate::upstream::transport::http2::exchange::Http2Exchange;
use crate::upstream::transport::response_body::UpstreamResponseBody;
use crate::upstream::transport::send_error::{SendError, SendErrorKind};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Waits for the head of a response.
pub(in crate::upstream) struct Http2ResponseFuture<'a, B> {
    /// None: it has ended.
    exchange: Option<Box<Http2Exchange<B>>>,
    timeout: ResponseTimeout,
    endpoints: &'a EndpointSet,
    state: Arc<EndpointState>,
}

impl<'a, B> Http2ResponseFuture<'a, B> {
    pub(in crate::upstream) fn new(
        exchange: Box<Http2Exchange<B>>,
        timeout: ResponseTimeout,
        endpoints: &'a EndpointSet,
        state: Arc<EndpointState>,
    ) -> Self {
        Self {
            exchange: Some(exchange),
            timeout,
            endpoints,
            state,
        }
    }
}

impl<B> Drop for Http2ResponseFuture<'_, B> {
    fn drop(&mut self) {
        let owed = self.exchange.as_ref().and_then(|one| one.owed_for());
        if let Some(owed) = owed {
            self.state.health.abandoned(owed, self.timeout.first_byte);
        }
    }
}

impl<B> Future for Http2ResponseFuture<'_, B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<UpstreamResponseBody>, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let timeout = self.timeout;
        let Some(exchange) = &mut self.exchange else {
            return Poll::Pending; // polled after completion
        };
        let head = ready!(exchange.poll_head(cx, timeout));
        let Some(exchange) = self.exchange.take() else {
            return Poll::Pending;
        };
        let (endpoints, state) = (self.endpoints, &self.state);
        let error = match head {
            Ok(head) => {
                endpoints.responded(state, head.status());
                return Poll::Ready(Ok(head.map(|()| UpstreamResponseBody::new(exchange))));
            }
            Err(error) => error,
        };
        match error.kind {
            SendErrorKind::FirstByteTimeout => {
                if let Some(owed) = exchange.owed_for() {
                    endpoints.timed_out(state, owed, timeout.first_byte);
                }
            }
            SendErrorKind::Framing(_) => endpoints.response_unusable(state),
            SendErrorKind::NotProcessed => state.health.responded(),
            SendErrorKind::Closed | SendErrorKind::Protocol => {
                endpoints.response_failed(state, &error);
            }
            _ => {}
        }
        Poll::Ready(Err(error))
    }
}
