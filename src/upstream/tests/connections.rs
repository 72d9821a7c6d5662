//! Pooling, and how much of a request was sent when there is no response.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::server::{Reply, Webapp, permits};
use super::{UpstreamSetup, eventually, outbound};
use crate::metrics::ConnectResult;
use crate::upstream::transport::pool::PooledConnection as _;
use crate::upstream::{
    EndpointChoice, OutboundRequest, ResponseTimeout, SendError, SendErrorKind,
    UpstreamConnections, UpstreamResponseBody,
};

const LONG: Duration = Duration::from_secs(5);
pub(super) const SHORT: Duration = Duration::from_millis(100);
pub(super) const RESPONSE_TIMEOUT: ResponseTimeout = ResponseTimeout::within(LONG);
const SHORT_RESPONSE_TIMEOUT: ResponseTimeout = ResponseTimeout::within(SHORT);

/// A body that the test sends frame by frame; an `Err` aborts it.
#[derive(Debug)]
struct FedBody(mpsc::UnboundedReceiver<Result<&'static str, std::io::Error>>);

impl Body for FedBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let piece = self.0.poll_recv(cx);
        piece.map(|piece| piece.map(|piece| Ok(Frame::data(Bytes::from_static(piece?.as_bytes())))))
    }
}

type BodySender = mpsc::UnboundedSender<Result<&'static str, std::io::Error>>;

fn request_with_feed() -> (BodySender, Request<FedBody>) {
    let (sender, body) = mpsc::unbounded_channel();
    let request = Request::builder().method(Method::POST).uri("/v1/media");
    (sender, request.body(FedBody(body)).unwrap())
}

pub(super) fn post(body: &'static str) -> OutboundRequest<'static, Full<Bytes>> {
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/messages?a=b");
    outbound(request.body(Full::from(body)).unwrap())
}

pub(super) fn connections<B>(setup: &UpstreamSetup) -> UpstreamConnections<B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let upstream = setup.open().unwrap();
    UpstreamConnections::new(upstream, &setup.scope.tasks)
}

pub(super) async fn text(response: Response<UpstreamResponseBody>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

fn kind(outcome: Result<Response<UpstreamResponseBody>, SendError>) -> (SendErrorKind, bool) {
    let failure = outcome.unwrap_err();
    (failure.kind, failure.is_unsent)
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let webapp = Webapp::start(|call| {
        if call.number == 2 {
            Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        } else {
            Reply::with(200, "", "hi")
        }
    })
    .await;
    let setup = UpstreamSetup::of(webapp.address).without_login();
    let connections = connections(&setup);
    for _ in 0..4 {
        let response = connections
            .send(post("body"), RESPONSE_TIMEOUT)
            .await
            .unwrap();
        assert_eq!(text(response).await, "hi");
        eventually("the connection is idle", || {
            format!("{connections:?}").contains("idle: 1")
        })
        .await;
    }
    assert_eq!(webapp.connections(), 1);
    assert_eq!(
        setup
            .metrics
            .upstream("main")
            .upstream_connects
            .value(ConnectResult::Reused),
        3
    );
    assert_eq!(
        setup
            .metrics
            .upstream("main")
            .upstream_connections_open
            .get(),
        1
    );
    let call = &webapp.calls()[3];
    assert!(call.has_line("POST /v1/messages?a=b HTTP/1.1"));
    assert!(call.has_line(&format!("host: {}", webapp.address)));
    assert!(call.has_line("content-length: 4"));
    assert_eq!(call.body, b"body");
    drop(connections);
    eventually("the connection is closed with its worker", || {
        webapp.ended() == 1
    })
    .await;
    eventually("counted", || {
        setup
            .metrics
            .upstream("main")
            .upstream_connections_open
            .get()
            == 0
    })
    .await;
}

#[tokio::test]
async fn a_host_header_of_the_caller_is_kept() {
    let webapp = Webapp::start(|_| Reply::with(204, "", "")).await;
    let setup = UpstreamSetup::of(webapp.address).without_login();
    let mut request = post("");
    let host = http::HeaderValue::from_static("other");
    request
        .fields
        .push_own("host", std::borrow::Cow::Owned(host));
    connections(&setup)
        .send(request, RESPONSE_TIMEOUT)
        .await
        .unwrap();
    assert!(webapp.calls()[0].has_line("host: other"));
}

#[tokio::test]
async fn a_reused_connection_that_closes_during_a_request_is_reported_as_dead() {
    let webapp = Webapp::start(|call| match call.number {
        1 => Reply::with(200, "", "hi"),
        _ => Reply::raw("").then_close(),
    })
    .await;
    let setup = UpstreamSetup::of(webapp.address).without_login();
    let connections = connections(&setup);
    text(connections.send(post("a"), RESPONSE_TIMEOUT).await.unwrap()).await;
    let (dead, _) = kind(connections.send(post("b"), RESPONSE_TIMEOUT).await);
    assert_eq!(dead, SendErrorKind::DeadConnection);
    // On a new connection the same end is a failure of this request.
    let (closed, _) = kind(connections.send(post("b"), RESPONSE_TIMEOUT).await);
    assert_eq!(closed, SendErrorKind::Closed);
}

#[tokio::test]
async fn a_request_on_a_closed_connection_was_not_sent() {
    let hold = permits();
    let close_permit = Arc::clone(&hold);
    let webapp =
        Webapp::start(move |_| Reply::with(200, "", "hi").then_close_after(&close_permit)).await;
    let setup = UpstreamSetup::of(webapp.address).without_login();
    let connections = connections(&setup);
    text(connections.send(post(""), RESPONSE_TIMEOUT).await.unwrap()).await;
    eventually("the connection is idle", || {
        format!("{connections:?}").contains("idle: 1")
    })
    .await;
    // Taken from the pool just before the upstream closes it.
    let chosen = connections.choose(EndpointChoice::default()).unwrap();
    let mut connection = chosen.lane.pool.take().unwrap();
    hold.add_permits(1);
    eventually("closed", || !connection.can_send()).await;
    let outcome = connections
        .exchange(chosen, connection, true, post("precious"), RESPONSE_TIMEOUT)
        .await;
    let failure = outcome.unwrap_err();
    assert_eq!(failure.kind, SendErrorKind::DeadConnection);
    assert!(failure.is_unsent, "not a byte was sent");
    let again = connections
        .send(post("precious"), RESPONSE_TIMEOUT)
        .await
        .unwrap();
    assert_eq!(text(again).await, "hi");
    assert_eq!(webapp.connections(), 2);
}

#[tokio::test]
async fn nothing_is_sent_to_an_unreachable_upstream() {
    let mut setup = UpstreamSetup::of("127.0.0.1:1".parse().unwrap()).without_login();
    let refused = connections(&setup)
        .send(post("x"), RESPONSE_TIMEOUT)
        .await
        .unwrap_err();
    assert_eq!(refused.kind, SendErrorKind::ConnectFailed);
    assert!(refused.is_unsent);
    assert!(!format!("{refused:?}").contains("/v1/messages"));
    setup.settings.base.host = "no-such-host.invalid".to_owned();
    let unknown = kind(connections(&setup).send(post("x"), RESPONSE_TIMEOUT).await);
    assert_eq!(unknown, (SendErrorKind::ConnectFailed, true));
    assert_eq!(
        setup
            .metrics
            .upstream("main")
            .upstream_connects
            .value(ConnectResult::Failed),
        2
    );
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_a_connect_timeout() {
    let never = permits();
    let webapp = Webapp::start(move |_| Reply::raw("").after(&never)).await;
    let mut setup = UpstreamSetup::of(webapp.address).without_login();
    setup.settings.base.tls = true;
    setup.settings.connect_timeout = SHORT;
    let outcome = kind(connections(&setup).send(post("x"), RESPONSE_TIMEOUT).await);
    assert_eq!(outcome, (SendErrorKind::ConnectTimeout, true));
    assert_eq!(
        setup
            .metrics
            .upstream("main")
            .upstream_connects
            .value(ConnectResult::Timeout),
        1
    );
}

#[tokio::test]
async fn a_missing_response_is_a_first_byte_timeout_and_ends_the_connection() {
    let never = permits();
    let webapp = Webapp::start(move |_| Reply::raw("").after(&never)).await;
    let setup = UpstreamSetup::of(webapp.address).without_login();
    let connections = connections(&setup);
    let outcome = kind(connections.send(post("x"), SHORT_RESPONSE_TIMEOUT).await);
    assert_eq!(outcome, (SendErrorKind::FirstByteTimeout, false));
    eventually("closed", || webapp.ended() == 1).await;
}

#[tokio::test]
async fn the_first_byte_timeout_on_a_reused_connection_starts_with_its_request() {
    let (once, never) = (permits(), permits());
    let hold = Arc::clone(&once);
    let webapp = Webapp::start(move |call| match call.number {
        1 => Reply::with(200, "", "hi").after(&hold),
        _ => Reply::raw("").after(&never),
    })
    .await;
    let setup = UpstreamSetup::of(webapp.address).without_login();
    let connections = connections(&setup);
    // The timer of the first request fires while the second one waits.
    let first = connections.send(post("x"), SHORT_RESPONSE_TIMEOUT);
    let release = async {
        tokio::time::sleep(SHORT / 2).await;
        once.add_permits(1);
    };
    let (first, ()) = tokio::join!(first, release);
    assert_eq!(text(first.unwrap()).await, "hi");
    let second = timeout(LONG, connections.send(post("x"), SHORT_RESPONSE_TIMEOUT)).await;
    let outcome = kind(second.expect("a limit of 100 ms"));
    assert_eq!(outcome, (SendErrorKind::FirstByteTimeout, false));
    assert_eq!(webapp.connections(), 1);
}

#[tokio::test]
async fn a_slow_client_does_not_cause_a_first_byte_timeout() {
    let webapp = Webapp::start(|_| Reply::with(200, "", "hi")).await;
    let setup = UpstreamSetup::of(webapp.address).without_login();
    let connections = connections::<FedBody>(&setup);
    let (sender, mut request) = request_with_feed();
    request
        .headers_mut()
        .insert("content-length", "2".parse().unwrap());
    let slow = async {
        for _ in 0..2 {
            tokio::time::sleep(SHORT * 3).await;
            sender.send(Ok("x")).unwrap();
        }
    };
    let (outcome, ()) = tokio::join!(
        connections.send(outbound(request), SHORT_RESPONSE_TIMEOUT),
        slow
    );
    assert_eq!(text(outcome.unwrap()).await, "hi");
    assert_eq!(webapp.calls()[0].body, b"xx");
}

#[tokio::test]
async fn an_aborted_request_body_is_blamed_on_the_client() {
    let webapp = Webapp::start(|_| Reply::with(200, "", "hi")).await;
    let setup = UpstreamSetup::of(webapp.address).without_login();
    let connections = connections::<FedBody>(&setup);
    let (sender, mut request) = request_with_feed();
    request
        .headers_mut()
        .insert("content-length", "50".parse().unwrap());
    sender.send(Ok("some")).unwrap();
    sender.send(Err(std::io::Error::other("gone"))).unwrap();
    let outcome = kind(connections.send(outbound(request), RESPONSE_TIMEOUT).await);
    assert_eq!(outcome.0, SendErrorKind::BodyFailed);
    eventually("closed", || webapp.ended() == 1).await;
}

#[tokio::test]
async fn a_response_dropped_before_its_end_closes_the_connection() {
    let start = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nsome";
    let webapp = Webapp::start(move |_| Reply::raw(start)).await;
    let setup = UpstreamSetup::of(webapp.address).without_login();
    let connections = connections(&setup);
    let mut response = connections.send(post("x"), RESPONSE_TIMEOUT).await.unwrap();
    assert!(response.body_mut().frame().await.unwrap().is_ok());
    drop(response);
    eventually("closed", || webapp.ended() == 1).await;
    assert!(format!("{connections:?}").contains("idle: 0"));
}

#[tokio::test]
async fn an_incomplete_response_is_an_error_and_not_an_end() {
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nsome";
    let webapp = Webapp::start(move |_| Reply::raw(cut).then_close()).await;
    let setup = UpstreamSetup::of(webapp.address).without_login();
    let response = connections(&setup)
        .send(post("x"), RESPONSE_TIMEOUT)
        .await
        .unwrap();
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_response_before_the_end_of_the_request_ends_the_connection() {
    let webapp = Webapp::start(|_| Reply::with(413, "", "too much")).await;
    let setup = UpstreamSetup::of(webapp.address).without_login();
    let connections = connections::<FedBody>(&setup);
    let (sender, mut request) = request_with_feed();
    request
        .headers_mut()
        .insert("content-length", "50".parse().unwrap());
    request
        .headers_mut()
        .insert("early", "yes".parse().unwrap());
    sender.send(Ok("x")).unwrap();
    let response = connections
        .send(outbound(request), RESPONSE_TIMEOUT)
        .await
        .unwrap();
    assert_eq!(text(response).await, "too much");
    eventually("closed", || webapp.ended() == 1).await;
    assert!(format!("{connections:?}").contains("idle: 0"));
    drop(sender);
}

#[tokio::test]
async fn bytes_that_are_not_http_are_a_protocol_error() {
    let webapp = Webapp::start(|_| Reply::raw("SSH-2.0-OpenSSH_9.9\r\n\r\n")).await;
    let setup = UpstreamSetup::of(webapp.address).without_login();
    let outcome = kind(connections(&setup).send(post("x"), RESPONSE_TIMEOUT).await);
    assert_eq!(outcome, (SendErrorKind::Protocol, false));
}

/// The traits that the pipeline requires of these types.
#[test]
fn responses_and_errors_are_send_and_sync() {
    fn can_cross<T: Send + Sync + Unpin>() {}
    can_cross::<UpstreamResponseBody>();
    can_cross::<UpstreamConnections<Full<Bytes>>>();
    can_cross::<SendError>();
    fn is_error<T: std::error::Error>() {}
    is_error::<SendError>();
}
