//! Between hyper and the pipeline: the checks that every request passes before the service sees
//! it, and the count of requests in flight on the connection.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, COOKIE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::activity::{ActiveRequest, ConnectionActivity};
use crate::lifecycle::TaskSet;
use crate::listener::BoxError;
use crate::listener::http1::framing_guard::HeadLimits;
use crate::listener::http2::continues::{ContinueExpectation, PendingContinues, expects_continue};
use crate::pipeline::{ClientBody, Peer, Rejection};

/// The service behind a listener.
pub trait RequestService: Clone + Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
    type Future: Future<Output = Response<Self::Body>> + Send + 'static;

    fn handle(&self, request: Request<Incoming>, peer: Arc<Peer>) -> Self::Future;

    /// The response to a request that the listener refuses. `head`: None if it could not be read.
    fn refuse(
        &self,
        head: Option<&Parts>,
        rejection: Rejection,
        peer: &Peer,
    ) -> Response<Self::Body>;
}

/// The entry of one connection's requests into the service.
#[derive(Debug)]
pub(in crate::listener) struct ServiceEntry<S> {
    pub(in crate::listener) service: S,
    pub(in crate::listener) peer: Arc<Peer>,
    pub(in crate::listener) activity: Arc<ConnectionActivity>,
    pub(in crate::listener) limits: HeadLimits,
    /// On the runtime of the connection.
    pub(in crate::listener) tasks: TaskSet,
    /// Some on an HTTP/2 connection.
    pub(in crate::listener) continues: Option<Arc<PendingContinues>>,
}

/// A response whose body counts as a request in flight.
pub(in crate::listener) type ServiceResponse<B> = Response<CountedBody<B>>;

/// The future of a response.
pub(in crate::listener) type ServiceFuture<B> =
    Pin<Box<dyn Future<Output = Result<ServiceResponse<B>, Infallible>> + Send + 'static>>;

impl<S: RequestService> ServiceEntry<S> {
    /// Passes a request to the service, or refuses it. The future is boxed because hyper moves it
    /// and keeps room for it while a connection is idle. The request is handed over before the
    /// future is made, so that the box does not hold it.
    pub(in crate::listener) fn handle(
        self: &Arc<Self>,
        request: Request<Incoming>,
    ) -> ServiceFuture<S::Body> {
        // Counted here, not in the future: the watch must see it as soon as this returns.
        let active = ActiveRequest::begin(&self.activity);
        let expectation = self.expectation(&request);
        if let Some(rejection) = rejection(&request, self.limits) {
            self.activity.set_refused();
            let version = request.version();
            let (head, body) = request.into_parts();
            drop(ClientBody::new(
                body,
                version,
                &Arc::new(self.tasks.clone()),
            ));
            let mut response = self.service.refuse(Some(&head), rejection, &self.peer);
            if version <= Version::HTTP_11 {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            let response = response.map(|body| CountedBody { body, active });
            return Box::pin(ready(Ok(response)));
        }
        let is_http1 = request.version() <= Version::HTTP_11;
        if request.version() == Version::HTTP_10 {
            self.activity.set_http10();
        }
        let response = self.service.handle(request, Arc::clone(&self.peer));
        let activity = Arc::clone(&self.activity);
        Box::pin(async move {
            let response = response.await;
            drop(expectation); // a 100 (Continue) sent from now on would come too late
            let mut response = response.map(|body| CountedBody { body, active });
            if is_http1 && activity.is_draining() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            Ok(response)
        })
    }
}

impl<S> ServiceEntry<S> {
    /// Registers a request that waits for 100 (Continue) over HTTP/2. hyper sends it over HTTP/1.
    fn expectation(&self, request: &Request<Incoming>) -> Option<ContinueExpectation> {
        let continues = self.continues.as_ref()?;
        let waits = !request.body().is_end_stream() && expects_continue(request.headers());
        continues.request_accepted(waits)
    }
}

/// Why a request that hyper accepts is refused; None if it is not.
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

/// The number of fields. All cookies count as one, because HTTP/2 clients send a field for each.
fn fields(headers: &HeaderMap) -> usize {
    let cookies = headers.get_all(COOKIE).iter().count();
    headers.len() - cookies.saturating_sub(1)
}

/// The size of the field list in bytes, as RFC 9113 6.5.2 counts it.
fn list_size(headers: &HeaderMap) -> usize {
    let sizes = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 32);
    sizes.sum()
}

/// Whether a request names exactly one host (RFC 9112 3.2, RFC 9113 8.3.1). If `Host` and the
/// target differed, two servers could route the request differently.
pub(in crate::listener) fn names_one_host<B>(request: &Request<B>) -> bool {
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

/// Whether `text` is a host name, an IPv4 address or a bracketed IPv6 address, with or without a
/// port. Userinfo and lists are not hosts.
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
    /// A body that counts as a request in flight until it is dropped.
    #[derive(Debug)]
    pub(in crate::listener) struct CountedBody<B> {
        #[pin]
        body: B,
        active: ActiveRequest,
    }
}

impl<B: Body> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        if this.active.register_if_blocked(cx.waker()) {
            return Poll::Pending;
        }
        this.active.resume();
        let frame = this.body.poll_frame(cx);
        if let Poll::Ready(Some(Ok(_))) = frame {
            this.active.wait_for_peer();
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
