//! Pooling, and how far a request came when there is no answer.

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

use super::server::{Reply, Webapp, gate};
use super::{Surroundings, eventually};
use crate::metrics::ConnectResult;
use crate::upstream::transport::pool::PooledConnection as _;
use crate::upstream::{
    ResponseTimeout, SendError, SendErrorKind, UpstreamConnections, UpstreamResponseBody,
};

const LONG: Duration = Duration::from_secs(5);
pub(super) const SHORT: Duration = Duration::from_millis(100);
pub(super) const PATIENT: ResponseTimeout = ResponseTimeout::within(LONG);
const HASTY: ResponseTimeout = ResponseTimeout::within(SHORT);

/// A body that the test feeds piece by piece; an `Err` breaks it off.
#[derive(Debug)]
struct Fed(mpsc::UnboundedReceiver<Result<&'static str, std::io::Error>>);

impl Body for Fed {
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

type Feed = mpsc::UnboundedSender<Result<&'static str, std::io::Error>>;

fn fed() -> (Feed, Request<Fed>) {
    let (feed, body) = mpsc::unbounded_channel();
    let request = Request::builder().method(Method::POST).uri("/v1/media");
    (feed, request.body(Fed(body)).unwrap())
}

pub(super) fn post(body: &'static str) -> Request<Full<Bytes>> {
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/messages?a=b");
    request.body(Full::from(body)).unwrap()
}

pub(super) fn connections<B>(around: &Surroundings) -> UpstreamConnections<B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let upstream = around.open().unwrap();
    UpstreamConnections::new(upstream, &around.scope.tasks)
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
    let around = Surroundings::of(webapp.address).without_login();
    let connections = connections(&around);
    for _ in 0..4 {
        let response = connections.send(post("body"), PATIENT).await.unwrap();
        assert_eq!(text(response).await, "hi");
        eventually("it is idle", || {
            format!("{connections:?}").contains("idle: 1")
        })
        .await;
    }
    assert_eq!(webapp.connections(), 1);
    assert_eq!(
        around
            .metrics
            .upstream("main")
            .upstream_connects
            .value(ConnectResult::Reused),
        3
    );
    assert_eq!(
        around
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
    eventually("closed with its worker", || webapp.ended() == 1).await;
    eventually("counted", || {
        around
            .metrics
            .upstream("main")
            .upstream_connections_open
            .get()
            == 0
    })
    .await;
}

#[tokio::test]
async fn a_host_that_the_caller_set_is_kept() {
    let webapp = Webapp::start(|_| Reply::with(204, "", "")).await;
    let around = Surroundings::of(webapp.address).without_login();
    let mut request = post("");
    request
        .headers_mut()
        .insert("host", "other".parse().unwrap());
    *request.version_mut() = http::Version::HTTP_2;
    connections(&around).send(request, PATIENT).await.unwrap();
    assert!(webapp.calls()[0].has_line("host: other"));
}

#[tokio::test]
async fn a_kept_alive_connection_that_dies_under_a_request_is_called_dead() {
    let webapp = Webapp::start(|call| match call.number {
        1 => Reply::with(200, "", "hi"),
        _ => Reply::raw("").then_close(),
    })
    .await;
    let around = Surroundings::of(webapp.address).without_login();
    let connections = connections(&around);
    text(connections.send(post("a"), PATIENT).await.unwrap()).await;
    let (dead, _) = kind(connections.send(post("b"), PATIENT).await);
    assert_eq!(dead, SendErrorKind::DeadConnection);
    // On a new connection the same end is the upstream's answer to this request.
    let (closed, _) = kind(connections.send(post("b"), PATIENT).await);
    assert_eq!(closed, SendErrorKind::Closed);
}

#[tokio::test]
async fn a_request_that_met_a_closed_connection_was_not_sent() {
    let hold = gate();
    let held = Arc::clone(&hold);
    let webapp = Webapp::start(move |_| Reply::with(200, "", "hi").then_close_after(&held)).await;
    let around = Surroundings::of(webapp.address).without_login();
    let connections = connections(&around);
    text(connections.send(post(""), PATIENT).await.unwrap()).await;
    eventually("it is idle", || {
        format!("{connections:?}").contains("idle: 1")
    })
    .await;
    // Taken from the pool just before the upstream closes it.
    let mut connection = connections.pool.take().unwrap();
    hold.add_permits(1);
    eventually("closed", || !connection.can_send()).await;
    let outcome = connections
        .exchange(connection, true, post("precious"), PATIENT)
        .await;
    let failure = outcome.unwrap_err();
    assert_eq!(failure.kind, SendErrorKind::DeadConnection);
    assert!(failure.is_unsent, "not a byte was sent");
    let again = connections.send(post("precious"), PATIENT).await.unwrap();
    assert_eq!(text(again).await, "hi");
    assert_eq!(webapp.connections(), 2);
}

#[tokio::test]
async fn to_an_upstream_that_is_not_there_nothing_was_sent() {
    let mut around = Surroundings::of("127.0.0.1:1".parse().unwrap()).without_login();
    let refused = connections(&around)
        .send(post("x"), PATIENT)
        .await
        .unwrap_err();
    assert_eq!(refused.kind, SendErrorKind::ConnectFailed);
    assert!(refused.is_unsent);
    assert!(!format!("{refused:?}").contains("/v1/messages"));
    around.settings.base.host = "no-such-host.invalid".to_owned();
    let unknown = kind(connections(&around).send(post("x"), PATIENT).await);
    assert_eq!(unknown, (SendErrorKind::ConnectFailed, true));
    assert_eq!(
        around
            .metrics
            .upstream("main")
            .upstream_connects
            .value(ConnectResult::Failed),
        2
    );
}

#[tokio::test]
async fn a_handshake_that_never_comes_is_a_connect_timeout() {
    let never = gate();
    let webapp = Webapp::start(move |_| Reply::raw("").after(&never)).await;
    let mut around = Surroundings::of(webapp.address).without_login();
    around.settings.base.tls = true;
    around.settings.connect_timeout = SHORT;
    let outcome = kind(connections(&around).send(post("x"), PATIENT).await);
    assert_eq!(outcome, (SendErrorKind::ConnectTimeout, true));
    assert_eq!(
        around
            .metrics
            .upstream("main")
            .upstream_connects
            .value(ConnectResult::Timeout),
        1
    );
}

#[tokio::test]
async fn an_answer_that_never_comes_is_a_first_byte_timeout_and_ends_the_connection() {
    let never = gate();
    let webapp = Webapp::start(move |_| Reply::raw("").after(&never)).await;
    let around = Surroundings::of(webapp.address).without_login();
    let connections = connections(&around);
    let outcome = kind(connections.send(post("x"), HASTY).await);
    assert_eq!(outcome, (SendErrorKind::FirstByteTimeout, false));
    eventually("closed", || webapp.ended() == 1).await;
}

#[tokio::test]
async fn a_connection_used_a_moment_ago_is_waited_for_no_longer_than_a_new_one() {
    let (once, never) = (gate(), gate());
    let hold = Arc::clone(&once);
    let webapp = Webapp::start(move |call| match call.number {
        1 => Reply::with(200, "", "hi").after(&hold),
        _ => Reply::raw("").after(&never),
    })
    .await;
    let around = Surroundings::of(webapp.address).without_login();
    let connections = connections(&around);
    // The alarm of the first request rings while the second one waits.
    let first = connections.send(post("x"), HASTY);
    let release = async {
        tokio::time::sleep(SHORT / 2).await;
        once.add_permits(1);
    };
    let (first, ()) = tokio::join!(first, release);
    assert_eq!(text(first.unwrap()).await, "hi");
    let second = timeout(LONG, connections.send(post("x"), HASTY)).await;
    let outcome = kind(second.expect("a limit of 100 ms"));
    assert_eq!(outcome, (SendErrorKind::FirstByteTimeout, false));
    assert_eq!(webapp.connections(), 1);
}

#[tokio::test]
async fn a_slow_client_is_not_the_upstreams_delay() {
    let webapp = Webapp::start(|_| Reply::with(200, "", "hi")).await;
    let around = Surroundings::of(webapp.address).without_login();
    let connections = connections::<Fed>(&around);
    let (feed, mut request) = fed();
    request
        .headers_mut()
        .insert("content-length", "2".parse().unwrap());
    let slow = async {
        for _ in 0..2 {
            tokio::time::sleep(SHORT * 3).await;
            feed.send(Ok("x")).unwrap();
        }
    };
    let (outcome, ()) = tokio::join!(connections.send(request, HASTY), slow);
    assert_eq!(text(outcome.unwrap()).await, "hi");
    assert_eq!(webapp.calls()[0].body, b"xx");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_clients_doing() {
    let webapp = Webapp::start(|_| Reply::with(200, "", "hi")).await;
    let around = Surroundings::of(webapp.address).without_login();
    let connections = connections::<Fed>(&around);
    let (feed, mut request) = fed();
    request
        .headers_mut()
        .insert("content-length", "50".parse().unwrap());
    feed.send(Ok("some")).unwrap();
    feed.send(Err(std::io::Error::other("gone"))).unwrap();
    let outcome = kind(connections.send(request, PATIENT).await);
    assert_eq!(outcome.0, SendErrorKind::BodyFailed);
    eventually("closed", || webapp.ended() == 1).await;
}

#[tokio::test]
async fn an_answer_dropped_before_its_end_closes_the_connection() {
    let start = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nsome";
    let webapp = Webapp::start(move |_| Reply::raw(start)).await;
    let around = Surroundings::of(webapp.address).without_login();
    let connections = connections(&around);
    let mut response = connections.send(post("x"), PATIENT).await.unwrap();
    assert!(response.body_mut().frame().await.unwrap().is_ok());
    drop(response);
    eventually("closed", || webapp.ended() == 1).await;
    assert!(format!("{connections:?}").contains("idle: 0"));
}

#[tokio::test]
async fn an_answer_that_is_cut_short_is_an_error_and_not_an_end() {
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nsome";
    let webapp = Webapp::start(move |_| Reply::raw(cut).then_close()).await;
    let around = Surroundings::of(webapp.address).without_login();
    let response = connections(&around).send(post("x"), PATIENT).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_costs_the_connection() {
    let webapp = Webapp::start(|_| Reply::with(413, "", "too much")).await;
    let around = Surroundings::of(webapp.address).without_login();
    let connections = connections::<Fed>(&around);
    let (feed, mut request) = fed();
    request
        .headers_mut()
        .insert("content-length", "50".parse().unwrap());
    request
        .headers_mut()
        .insert("early", "yes".parse().unwrap());
    feed.send(Ok("x")).unwrap();
    let response = connections.send(request, PATIENT).await.unwrap();
    assert_eq!(text(response).await, "too much");
    eventually("closed", || webapp.ended() == 1).await;
    assert!(format!("{connections:?}").contains("idle: 0"));
    drop(feed);
}

#[tokio::test]
async fn what_is_not_http_is_a_protocol_error() {
    let webapp = Webapp::start(|_| Reply::raw("SSH-2.0-OpenSSH_9.9\r\n\r\n")).await;
    let around = Surroundings::of(webapp.address).without_login();
    let outcome = kind(connections(&around).send(post("x"), PATIENT).await);
    assert_eq!(outcome, (SendErrorKind::Protocol, false));
}

/// What the pipeline needs of these types.
#[test]
fn answers_and_errors_can_cross_tasks() {
    fn can_cross<T: Send + Sync + Unpin>() {}
    can_cross::<UpstreamResponseBody>();
    can_cross::<UpstreamConnections<Full<Bytes>>>();
    can_cross::<SendError>();
    fn is_error<T: std::error::Error>() {}
    is_error::<SendError>();
}
