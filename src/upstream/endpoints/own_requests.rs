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

use super::{Endpoint, EndpointChoice, EndpointSet, EndpointState};
use crate::upstream::transport::dial_error::DialError;
use crate::upstream::transport::tracked_stream::TrackedStream;

const AGENT: &str = concat!("tollgate/", env!("CARGO_PKG_VERSION"));

/// What the gateway's own requests need.
#[derive(Debug)]
pub(in crate::upstream) struct OwnRequests {
    pub(in crate::upstream) endpoints: Arc<EndpointSet>,
    /// Lets the gateway recognise its own request if it comes back in a loop.
    pub(in crate::upstream) via: HeaderValue,
    /// The probe's path; None: no cheap path is known.
    pub(in crate::upstream) probe: Option<PathAndQuery>,
    /// Timeout of the response head of a probe.
    pub(in crate::upstream) response_timeout: Duration,
}

/// Why there was no response.
#[derive(Debug, thiserror::Error)]
pub(in crate::upstream) enum CallError {
    #[error("cannot reach the upstream")]
    Unreachable(#[source] DialError),

    #[error("the upstream closed the connection without a response, or its response is not HTTP")]
    Broken(#[source] hyper::Error),
    #[error("no response from the upstream within {0:?}")]
    Late(Duration),
}

impl OwnRequests {
    /// The same, all at this endpoint.
    pub(in crate::upstream) fn at(&self, endpoint: &Arc<Endpoint>) -> Self {
        Self {
            endpoints: self.endpoints.only(endpoint),
            via: self.via.clone(),
            probe: self.probe.clone(),
            response_timeout: self.response_timeout,
        }
    }

    /// A GET without a credential; the caller adds one.
    pub(in crate::upstream) fn get(&self, target: Uri) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = target;
        self.dress(&mut request);
        request
    }

    /// The fields of each of the gateway's own requests.
    pub(in crate::upstream) fn dress(&self, request: &mut Request<Full<Bytes>>) {
        // RFC 9110 8.6: a login without content still states its length. hyper leaves it out.
        let is_empty = request.body().size_hint().exact() == Some(0);
        let states_nothing = is_empty && request.method() != Method::GET;
        let headers = request.headers_mut();
        if states_nothing {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(VIA, self.via.clone());
        // The gateway parses the response itself.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }

    /// Sends `request` to an endpoint that seems to work, to another one if there is no connection, and
    /// returns what `read` makes of the response. `used`: avoided if another endpoint is up, and replaced by
    /// the endpoint that was used; `dial_by`: a deadline for connecting, besides the
    /// dialer's own timeout; `limit`: timeout of the response, reading included.
    pub(in crate::upstream) async fn call<T>(
        &self,
        request: Request<Full<Bytes>>,
        used: &mut Option<Arc<EndpointState>>,
        dial_by: Option<Instant>,
        limit: Duration,
        read: impl AsyncFnOnce(Response<Incoming>) -> T,
    ) -> Result<T, CallError> {
        let mut tried: Vec<Arc<str>> = Vec::new();
        let avoided = used.take().map(|state| Arc::clone(&state.name));
        let avoided: Vec<Arc<str>> = avoided.into_iter().collect();
        let mut other = self.choose(&avoided).filter(|_| !avoided.is_empty());
        loop {
            let Some(endpoint) = other.take().or_else(|| self.choose(&tried)) else {
                let upstream = Arc::clone(self.endpoints.name());
                return Err(CallError::Unreachable(DialError::NoEndpoint { upstream }));
            };
            *used = Some(Arc::clone(&endpoint.state));
            let stream = match endpoint.dialer.dial(dial_by).await {
                Ok(stream) => stream,
                Err(error) => {
                    tried.push(Arc::clone(&endpoint.state.name));
                    if self.choose(&tried).is_some() {
                        self.endpoints.connect_failed(&endpoint.state, &error);
                        continue;
                    }
                    return Err(CallError::Unreachable(error));
                }
            };
            return exchange(&endpoint, stream, request, limit, read).await;
        }
    }

    fn choose(&self, tried: &[Arc<str>]) -> Option<Arc<Endpoint>> {
        if let Some(sole) = self.endpoints.sole() {
            return tried.is_empty().then(|| Arc::clone(sole));
        }
        let list = self.endpoints.list();
        let choice = EndpointChoice {
            tried,
            must_be_up: !tried.is_empty(),
            is_own: true,
            ..EndpointChoice::default()
        };
        let position = self.endpoints.choose(&list, choice)?;
        Some(Arc::clone(&list.endpoints[position]))
    }

    /// The same at this endpoint.
    pub(in crate::upstream) async fn call_at<T>(
        &self,
        endpoint: &Endpoint,
        request: Request<Full<Bytes>>,
        dial_by: Option<Instant>,
        limit: Duration,
        read: impl AsyncFnOnce(Response<Incoming>) -> T,
    ) -> Result<T, CallError> {
        let stream = endpoint.dialer.dial(dial_by).await;
        let stream = stream.map_err(CallError::Unreachable)?;
        exchange(endpoint, stream, request, limit, read).await
    }
}

/// Sends `request` over `stream`, in the version that was chosen for it.
async fn exchange<T>(
    endpoint: &Endpoint,
    stream: TrackedStream,
    mut request: Request<Full<Bytes>>,
    limit: Duration,
    read: impl AsyncFnOnce(Response<Incoming>) -> T,
) -> Result<T, CallError> {
    let exchange = async {
        if stream.is_http2() {
            return exchange_http2(in_http2(endpoint, request), stream, read).await;
        }
        let fields = std::mem::take(request.headers_mut());
        let headers = request.headers_mut();
        headers.insert(HOST, endpoint.host.clone()); // the first field (RFC 9110, 7.2)
        headers.extend(fields);
        exchange_http1(request, stream, read).await
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
    request: Request<Full<Bytes>>,
    stream: TrackedStream,
    read: impl AsyncFnOnce(Response<Incoming>) -> T,
) -> Result<T, CallError> {
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
fn in_http2(endpoint: &Endpoint, mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let mut uri = std::mem::take(request.uri_mut()).into_parts();
    // `host` was checked as an authority when it was configured.
    if let Ok(authority) = Authority::try_from(endpoint.host.as_bytes()) {
        uri.authority = Some(authority);
        uri.scheme = Some(match endpoint.dialer.tls() {
            Some(_) => Scheme::HTTPS,
            None => Scheme::HTTP,
        });
    }
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
    request
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
