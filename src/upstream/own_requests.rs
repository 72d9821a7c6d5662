//! The gateway's own requests to an upstream: logins and probes, each on a connection of its own that
//! the caller polls. They may be made on any runtime, and speak the version that requests do.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, HOST, USER_AGENT, VIA};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::{Instant, timeout};

use super::health::UpstreamHealth;
use super::transport::dial_error::DialError;
use super::transport::dialer::Dialer;
use super::transport::tracked_stream::TrackedStream;

const AGENT: &str = concat!("tollgate/", env!("CARGO_PKG_VERSION"));

/// What the gateway's own requests need.
#[derive(Debug)]
pub(super) struct OwnRequests {
    pub(super) dialer: Arc<Dialer>,
    pub(super) host: HeaderValue,
    /// Lets the gateway recognise its own request if it comes back in a loop.
    pub(super) via: HeaderValue,
    pub(super) health: Arc<UpstreamHealth>,
    /// The probe's path; None: no cheap path is known.
    pub(super) probe: Option<PathAndQuery>,
    /// Timeout of the response head of a probe.
    pub(super) response_timeout: Duration,
}

/// Why there was no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("cannot reach the upstream")]
    Unreachable(#[source] DialError),
    #[error("the upstream closed the connection without a response, or its response is not HTTP")]
    Broken(#[source] hyper::Error),
    #[error("no response from the upstream within {0:?}")]
    Late(Duration),
}

impl OwnRequests {
    /// A GET without a credential; the caller adds one.
    pub(super) fn get(&self, target: Uri) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = target;
        self.dress(&mut request);
        request
    }

    /// The fields of each of the gateway's own requests.
    pub(super) fn dress(&self, request: &mut Request<Full<Bytes>>) {
        // RFC 9110 8.6: a login without content still states its length. hyper leaves it out.
        let is_empty = request.body().size_hint().exact() == Some(0);
        let states_nothing = is_empty && request.method() != Method::GET;
        let headers = request.headers_mut();
        if states_nothing {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        headers.insert(HOST, self.host.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(VIA, self.via.clone());
        // The gateway parses the response itself.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }

    /// Sends `request` and returns what `read` makes of the response. `dial_by`: a deadline for
    /// connecting, besides the dialer's own timeout; `limit`: timeout of the response, reading
    /// included.
    pub(super) async fn call<T>(
        &self,
        request: Request<Full<Bytes>>,
        dial_by: Option<Instant>,
        limit: Duration,
        read: impl AsyncFnOnce(Response<Incoming>) -> T,
    ) -> Result<T, CallError> {
        let stream = self.dialer.dial(dial_by).await;
        let stream = stream.map_err(CallError::Unreachable)?;
        let exchange = async {
            match stream.is_http2() {
                true => self.exchange_http2(request, stream, read).await,
                false => Self::exchange_http1(request, stream, read).await,
            }
        };
        let outcome = timeout(limit, Box::pin(exchange)).await;
        outcome.unwrap_or(Err(CallError::Late(limit)))
    }

    async fn exchange_http1<T>(
        request: Request<Full<Bytes>>,
        stream: TrackedStream,
        read: impl AsyncFnOnce(Response<Incoming>) -> T,
    ) -> Result<T, CallError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(CallError::Broken)?;
        let exchange = async {
            let response = sender.send_request(request).await;
            Ok(read(response.map_err(CallError::Broken)?).await)
        };
        drive(exchange, connection).await
    }

    async fn exchange_http2<T>(
        &self,
        request: Request<Full<Bytes>>,
        stream: TrackedStream,
        read: impl AsyncFnOnce(Response<Incoming>) -> T,
    ) -> Result<T, CallError> {
        let request = self.in_http2(request);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(CallError::Broken)?;
        let exchange = async {
            let response = sender.send_request(request).await;
            Ok(read(response.map_err(CallError::Broken)?).await)
        };
        drive(exchange, connection).await
    }

    /// The request with `:scheme` and `:authority` in place of `Host`.
    fn in_http2(&self, mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
        request.headers_mut().remove(HOST);
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        // `host` was checked as an authority when it was configured.
        if let Ok(authority) = Authority::try_from(self.host.as_bytes()) {
            uri.authority = Some(authority);
            uri.scheme = Some(match self.dialer.tls() {
                Some(_) => Scheme::HTTPS,
                None => Scheme::HTTP,
            });
        }
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        *request.version_mut() = Version::HTTP_2;
        request
    }
}

/// Polls `connection` beside `exchange`: it serves one request and ends with it.
async fn drive<T>(exchange: impl Future<Output = T>, connection: impl Future) -> T {
    let mut exchange = std::pin::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        outcome = &mut exchange => return outcome,
        // The exchange reports how it ended.
        _ = &mut connection => {}
    }
    exchange.await
}
