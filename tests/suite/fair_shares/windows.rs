//! Windows that the streams of one HTTP/2 connection share.

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Request, Response};

use super::*;
use crate::harness::eventually;
use crate::harness::raw::connected;

/// A connection whose streams may receive `window` bytes each.
async fn open(gateway: &Gateway, window: u32) -> SendRequest<Bytes> {
    let tls = connected(gateway, &["h2"]).await;
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(window)
        .max_concurrent_reset_streams(1000);
    let (send, connection) = builder.handshake(tls).await.unwrap();
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

fn request(method: &str, path: &str) -> Request<()> {
    let uri = format!("https://localhost{path}");
    let request = Request::builder().method(method).uri(uri);
    request.header("x-api-key", FIRST_CLIENT).body(()).unwrap()
}

/// A POST of `length` bytes; sends as much as the windows allow.
async fn post(
    send: &mut SendRequest<Bytes>,
    path: &str,
    length: usize,
) -> (ResponseFuture, SendStream<Bytes>) {
    std::future::poll_fn(|cx| send.poll_ready(cx))
        .await
        .unwrap();
    let (response, mut body) = send.send_request(request("POST", path), false).unwrap();
    body.send_data(Bytes::from(vec![0; length]), true).unwrap();
    (response, body)
}

async fn response_of(response: ResponseFuture) -> Response<RecvStream> {
    let response = timeout(Duration::from_secs(8), response).await;
    response.expect("there is a response").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_windows_leaves_permits_for_others() {
    let gateway = gate(upstream().await, Setup::default()).await;
    let idle_latency = idle_latency(&gateway).await;
    let mut send = open(&gateway, 0).await;
    let mut responses = Vec::new();
    for _ in 0..100 {
        std::future::poll_fn(|cx| send.poll_ready(cx))
            .await
            .unwrap();
        let (response, _) = send.send_request(request("GET", "/x/large"), true).unwrap();
        responses.push(response);
    }
    assert_other_client_is_served(&gateway, idle_latency, "100 streams without window").await;
    eventually("their permits are free again", async || {
        gateway.metrics.upstream("main").stalled_streams.get() == 100
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_uploads_leave_window_for_one_more_request() {
    let gateway = gate(upstream().await, Setup::default()).await;
    for count in [6, 40] {
        let mut send = open(&gateway, 65_535).await;
        let mut stalled = Vec::new();
        for _ in 0..count {
            stalled.push(post(&mut send, "/x/sink", 20_000_000).await);
        }
        sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        let (response, _) = post(&mut send, "/x/small", 1000).await;
        assert_eq!(response_of(response).await.status(), 200);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?} beside {count}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn max_streams_uploads_leave_window_for_the_last_one() {
    let setup = Setup::default()
        .upstream("concurrency = 1\nqueue_timeout = \"60s\"")
        .listener("max_streams = 200");
    let gateway = gate(upstream().await, setup).await;
    let mut send = open(&gateway, 65_535).await;
    let mut waiting = Vec::new();
    // Most of them wait for a permit.
    for _ in 0..199 {
        waiting.push(post(&mut send, "/x/sink", 2_000_000).await);
    }
    eventually("the requests wait", async || {
        gateway
            .metrics
            .upstream("main")
            .upstream_requests_queued
            .get()
            >= 190
    })
    .await;
    // The gate responds itself, once it has the whole body.
    std::future::poll_fn(|cx| send.poll_ready(cx))
        .await
        .unwrap();
    let login = Request::post("https://localhost/v1/users/login");
    let login = login
        .header("authorization", "Basic eHh4eDp5eXl5")
        .body(())
        .unwrap();
    let (response, mut body) = send.send_request(login, false).unwrap();
    let mut left = 8_000;
    while left > 0 {
        body.reserve_capacity(left);
        let room = timeout(
            Duration::from_secs(8),
            std::future::poll_fn(|cx| body.poll_capacity(cx)),
        );
        let room = room
            .await
            .expect("there is window")
            .unwrap()
            .unwrap()
            .min(left);
        left -= room;
        body.send_data(Bytes::from(vec![b' '; room]), left == 0)
            .unwrap();
    }
    assert_eq!(response_of(response).await.status(), 401);
}
