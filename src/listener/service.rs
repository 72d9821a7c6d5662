//! Between hyper and the pipeline: what is settled about a request before anybody
//! looks at its content, and the count of requests under way.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, COOKIE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::connection::activity::{ActiveRequest, ConnectionActivity};
use super::http1::framing_guard::HeadLimits;
use super::http2::continues::{ContinueExpectation, PendingContinues, expects_continue};
use crate::lifecycle::TaskSet;
use crate::pipeline::{ClientBody, Peer, Rejection};

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

/// What answers requests.
pub trait RequestService: Clone + Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
    type Future: Future<Output = Response<Self::Body>> + Send + 'static;

    fn answer(&self, request: Request<Incoming>, peer: Arc<Peer>) -> Self::Future;

    /// How a request looks that the listener refuses; `head`: what could be read of it.
    fn refuse(
        &self,
        head: Option<&Parts>,
        rejection: Rejection,
        peer: &Peer,
    ) -> Response<Self::Body>;
}

/// One connection's way to the service.
#[derive(Debug)]
pub(super) struct ServiceEntry<S> {
    pub(super) service: S,
    pub(super) peer: Arc<Peer>,
    pub(super) activity: Arc<ConnectionActivity>,
    pub(super) limits: HeadLimits,
    /// On the runtime of the connection.
    pub(super) tasks: TaskSet,
    /// Of an HTTP/2 connection.
    pub(super) continues: Option<Arc<PendingContinues>>,
}

/// The body of every answer.
pub(super) type ServiceResponse<B> = Response<CountedBody<B>>;

/// An answer on its way.
pub(super) type ServiceFuture<B> =
    Pin<Box<dyn Future<Output = Result<ServiceResponse<B>, Infallible>> + Send + 'static>>;

impl<S: RequestService> ServiceEntry<S> {
    /// Boxed: hyper moves it about, and keeps room for it while a connection is idle.
    /// What can be done at once is, so that the box holds no request.
    pub(super) fn answer(self: &Arc<Self>, request: Request<Incoming>) -> ServiceFuture<S::Body> {
        // Begun here and not in the future: the watch must see it when this returns.
        let exchange = ActiveRequest::begin(&self.activity);
        let expectation = self.expectation(&request);
        if let Some(rejection) = rejection(&request, self.limits) {
            self.activity.refuses();
            let version = request.version();
            let (head, body) = request.into_parts();
            drop(ClientBody::new(
                body,
                version,
                &Arc::new(self.tasks.clone()),
            ));
            let mut answer = self.service.refuse(Some(&head), rejection, &self.peer);
            if version <= Version::HTTP_11 {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(CONNECTION, close);
            }
            return Box::pin(ready(Ok(answer.map(|body| CountedBody { body, exchange }))));
        }
        let is_http1 = request.version() <= Version::HTTP_11;
        if request.version() == Version::HTTP_10 {
            self.activity.speaks_http10();
        }
        let is_connect = request.method() == Method::CONNECT;
        let answer = self.service.answer(request, Arc::clone(&self.peer));
        let activity = Arc::clone(&self.activity);
        Box::pin(async move {
            let response = answer.await;
            drop(expectation); // a 100 that was not sent by now would come too late
            let mut response = response.map(|body| CountedBody { body, exchange });
            if is_tunnel(response.status(), is_connect) {
                activity.becomes_tunnel();
            } else if is_http1 && activity.is_draining() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            Ok(response)
        })
    }
}

impl<S> ServiceEntry<S> {
    /// Of a request that waits for a 100 over HTTP/2; hyper sends those of HTTP/1.
    fn expectation(&self, request: &Request<Incoming>) -> Option<ContinueExpectation> {
        let continues = self.continues.as_ref()?;
        let waits = !request.body().is_end_stream() && expects_continue(request.headers());
        continues.accepts(waits)
    }
}

fn is_tunnel(status: StatusCode, is_connect: bool) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || (is_connect && status.is_success())
}

/// What is wrong with a request that hyper has let through.
fn rejection<B>(request: &Request<B>, limits: HeadLimits) -> Option<Rejection> {
    let headers = request.headers();
    let is_http2 = request.version() == Version::HTTP_2;
    let is_over = headers.len() > limits.fields && fields(headers) > limits.fields;
    if is_over || (is_http2 && list_size(headers) > limits.bytes) {
        return Some(Rejection::HeadTooLarge);
    }
    if !names_one_host(request) {
        return Some(Rejection::BadRequest(
            "Host is missing, repeated, malformed, or not that of the request target",
        ));
    }
    None
}

/// How many fields there are; cookies are one, as HTTP/2 clients send one a field.
fn fields(headers: &HeaderMap) -> usize {
    let cookies = headers.get_all(COOKIE).iter().count();
    headers.len() - cookies.saturating_sub(1)
}

/// As RFC 9113 6.5.2 counts.
fn list_size(headers: &HeaderMap) -> usize {
    let sizes = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 32);
    sizes.sum()
}

/// RFC 9112 3.2 and RFC 9113 8.3.1: a request names one host, once, and means it.
/// Were `Host` and the target to differ, two parties could route it differently.
pub(super) fn names_one_host<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, second) = (hosts.next().map(HeaderValue::as_bytes), hosts.next());
    let target = request.uri().authority().map(|a| a.as_str().as_bytes());
    if second.is_some() || ![host, target].into_iter().flatten().all(is_host) {
        return false;
    }
    match (host, target) {
        (Some(host), Some(target)) => host.eq_ignore_ascii_case(target),
        (Some(_), None) => true,
        (None, Some(_)) => request.version() != Version::HTTP_11,
        (None, None) => request.version() == Version::HTTP_10,
    }
}

/// `name`, `1.2.3.4` or `[::1]`, with or without a port; no user, no lists.
fn is_host(text: &[u8]) -> bool {
    let (name, port) = match text {
        [b'[', rest @ ..] => match memchr::memchr(b']', rest) {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => return false,
        },
        _ => text.split_at(memchr::memchr(b':', text).unwrap_or(text.len())),
    };
    let in_brackets = text.first() == Some(&b'[');
    let is_name = !name.is_empty()
        && name.iter().all(|&byte| match byte {
            b':' => in_brackets,
            b'-' | b'.' | b'_' | b'~' => true,
            _ => byte.is_ascii_alphanumeric(),
        });
    let is_port = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    is_name && is_port
}

pin_project_lite::pin_project! {
    /// A body that counts as a request under way until it is dropped.
    #[derive(Debug)]
    pub(super) struct CountedBody<B> {
        #[pin]
        body: B,
        exchange: ActiveRequest,
    }
}

impl<B: Body> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let me = self.project();
        if me.exchange.is_held_up(cx.waker()) {
            return Poll::Pending;
        }
        me.exchange.is_our_turn();
        let frame = me.body.poll_frame(cx);
        if let Poll::Ready(Some(Ok(_))) = frame {
            me.exchange.is_their_turn();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, target: &str, hosts: &[&str]) -> Request<()> {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn a_request_that_names_one_host_passes() {
        use Version as V;
        let good: &[(V, &str, &[&str])] = &[
            (V::HTTP_11, "/", &["example.org"]),
            (V::HTTP_11, "/", &["Example.org:8443"]),
            (V::HTTP_11, "/", &["[::1]:8443"]),
            (V::HTTP_11, "/", &["web_app-1"]),
            (V::HTTP_11, "http://example.org/", &["EXAMPLE.org"]),
            (V::HTTP_10, "/", &[]),
            (V::HTTP_2, "https://example.org/", &[]),
            (V::HTTP_2, "https://example.org/", &["example.org"]),
            (V::HTTP_2, "/", &["example.org"]),
        ];
        for (version, target, hosts) in good {
            let request = request(*version, target, hosts);
            assert!(names_one_host(&request), "{target} {hosts:?}");
        }
    }

    #[test]
    fn a_request_that_names_no_host_or_two_is_refused() {
        use Version as V;
        let bad: &[(V, &str, &[&str])] = &[
            (V::HTTP_11, "/", &[]),
            (V::HTTP_11, "/", &[""]),
            (V::HTTP_11, "/", &["a", "a"]),
            (V::HTTP_11, "/", &["a,b"]),
            (V::HTTP_11, "/", &["a b"]),
            (V::HTTP_11, "/", &["a/b"]),
            (V::HTTP_11, "/", &["user@a"]),
            (V::HTTP_11, "/", &["a:80:80"]),
            (V::HTTP_11, "/", &["a:http"]),
            (V::HTTP_11, "/", &["[::1"]),
            (V::HTTP_11, "/", &["::1"]),
            (V::HTTP_11, "http://example.org/", &["other.org"]),
            (V::HTTP_11, "http://example.org/", &[]),
            (V::HTTP_11, "http://user@example.org/", &["example.org"]),
            (V::HTTP_2, "/", &[]),
            (V::HTTP_2, "https://example.org/", &["other.org"]),
        ];
        for (version, target, hosts) in bad {
            let request = request(*version, target, hosts);
            assert!(!names_one_host(&request), "{target} {hosts:?}");
        }
    }
}
