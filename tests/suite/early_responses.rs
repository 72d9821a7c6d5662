//! A response that is sent before its request's body has ended reaches the client, also over
//! HTTP/2, where the stream is not reset at once. The cost of that is bounded.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::Request;
use tokio::time::timeout;

use crate::harness::login_upstream::{KEY, LoginUpstream, field_case};
use crate::harness::raw::connected;
use crate::harness::{Gateway, NO_LIMITS, Setup, emulator};

async fn gateway() -> Gateway {
    let upstream = LoginUpstream::start(|_| 200).await;
    let small =
        "[[route]]\nname = \"small\"\npath = \"/small\"\naccess = \"open\"\nmax_body = \"1KiB\"\n";
    let text =
        field_case(&upstream.url(), "").replacen("[[route]]", &format!("{small}\n[[route]]"), 1);
    Gateway::of_text(&text).await
}

/// The status that the installed curl reports; 0 if it got no response.
fn curl(gateway: &Gateway, path: &str, arguments: &[&str], body: &Path) -> u16 {
    let output = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}"])
        .args(["--max-time", "20", "--cacert"])
        .arg(gateway.folder.path().join("certs/ca.pem"))
        .arg("--data-binary")
        .arg(format!("@{}", body.display()))
        .args(arguments)
        .arg(gateway.url(path))
        .output()
        .expect("curl is installed: tests/run.sh does it");
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().parse().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_the_status_of_every_refused_upload() {
    let gateway = gateway().await;
    let body = gateway.folder.path().join("body");
    std::fs::write(&body, vec![0; 200_000]).unwrap();
    let big = gateway.folder.path().join("big");
    std::fs::write(&big, vec![0; 40_000_000]).unwrap();
    let bad_key = format!("Authorization: Apikey {KEY}-not");
    let bad_token = "Authorization: Bearer made-up".to_owned();
    for protocol in ["--http2", "--http1.1"] {
        for (path, field, file, times, wanted) in [
            ("/x", &bad_key, &body, 15, 401),
            ("/x", &bad_token, &body, 5, 401),
            ("/small", &bad_key, &body, 5, 413),
            ("/x", &bad_key, &big, 3, 401),
        ] {
            for _ in 0..times {
                let arguments = [protocol, "-H", field, "-H", "Expect:"];
                let status = curl(&gateway, path, &arguments, file);
                assert_eq!(status, wanted, "{protocol} {path}");
            }
        }
    }
    let good_key = format!("Authorization: Apikey {KEY}");
    let status = curl(&gateway, "/x", &["--http2", "-H", &good_key], &body);
    assert_eq!(status, 200, "accepted uploads are forwarded");
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_the_status_of_every_login_that_is_too_large() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let body = gateway.folder.path().join("body");
    std::fs::write(&body, vec![b' '; 60_000]).unwrap();
    for _ in 0..10 {
        let arguments = ["--http2", "-u", "admin:Wrong-Passw0rd!"];
        let status = curl(&gateway, "/v1/users/login", &arguments, &body);
        assert_eq!(status, 413);
    }
}

async fn h2(gateway: &Gateway) -> SendRequest<Bytes> {
    let tls = connected(gateway, &["h2"]).await;
    let (send, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

fn post() -> Request<()> {
    let request = Request::builder().method("POST").uri("https://localhost/x");
    request
        .header("x-api-key", "wrong-key-123456")
        .body(())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_continues_to_send_is_reset_with_no_error_after_a_moment() {
    let gateway = gateway().await;
    let mut send = h2(&gateway).await;
    let (response, mut body) = send.send_request(post(), false).unwrap();
    let begin = Instant::now();
    let response = timeout(Duration::from_secs(10), response).await.unwrap();
    assert_eq!(response.unwrap().status(), 401);
    assert!(begin.elapsed() < Duration::from_secs(1), "refused at once");
    // More than one window: discarded data is credited to the window.
    let mut sent = 0;
    while sent < 300_000 {
        body.reserve_capacity(16_000);
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx));
        let room = timeout(Duration::from_secs(5), room).await.unwrap();
        let room = room.unwrap().unwrap();
        body.send_data(Bytes::from(vec![0; room]), false).unwrap();
        sent += room;
    }
    let reset = std::future::poll_fn(|cx| body.poll_reset(cx));
    let reset = timeout(Duration::from_secs(10), reset).await.unwrap();
    assert_eq!(reset.unwrap(), Reason::NO_ERROR);
    let elapsed = begin.elapsed();
    assert!((1..6).contains(&elapsed.as_secs()), "{elapsed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_bodies_count_as_streams_of_their_connection() {
    let upstream = LoginUpstream::start(|_| 200).await;
    let text = field_case(&upstream.url(), "");
    let text = text.replacen("[operator]", "max_streams = 8\n\n[operator]", 1);
    let gateway = Gateway::of_text(&text).await;
    let mut send = h2(&gateway).await;
    let begin = Instant::now();
    let mut bodies = Vec::new();
    for _ in 0..24 {
        std::future::poll_fn(|cx| send.poll_ready(cx))
            .await
            .unwrap();
        let (response, body) = send.send_request(post(), false).unwrap();
        bodies.push(body);
        let response = timeout(Duration::from_secs(10), response).await.unwrap();
        assert_eq!(response.unwrap().status(), 401);
    }
    // Eight at a time, two seconds each.
    assert!(begin.elapsed() > Duration::from_secs(3));
}

fn expecting(key: &str, length: &str) -> Request<()> {
    let request = Request::builder().method("POST").uri("https://localhost/x");
    let request = request
        .header("expect", "100-continue")
        .header("x-api-key", key);
    request.header("content-length", length).body(()).unwrap()
}

/// Waits for the 100 before the response.
async fn receives_continue(response: &mut h2::client::ResponseFuture) -> bool {
    let informational = std::future::poll_fn(|cx| response.poll_informational(cx));
    match timeout(Duration::from_secs(5), informational).await {
        Ok(Some(Ok(informational))) => informational.status() == 100,
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_wait_for_100_continue_get_it_over_http_2() {
    let gateway = gateway().await;
    let mut send = h2(&gateway).await;
    let mut waiting = Vec::new();
    // Several at once, mixed with requests that do not wait.
    for number in 0..12 {
        std::future::poll_fn(|cx| send.poll_ready(cx))
            .await
            .unwrap();
        if number % 3 == 2 {
            let plain = Request::builder()
                .uri("https://localhost/x")
                .header("x-api-key", KEY);
            let (response, _) = send.send_request(plain.body(()).unwrap(), true).unwrap();
            tokio::spawn(response);
        }
        waiting.push(send.send_request(expecting(KEY, "20000"), false).unwrap());
    }
    for (response, _) in &mut waiting {
        assert!(receives_continue(response).await);
    }
    for (response, mut body) in waiting.into_iter().rev() {
        body.send_data(Bytes::from(vec![7; 20_000]), true).unwrap();
        let response = timeout(Duration::from_secs(10), response).await.unwrap();
        assert_eq!(response.unwrap().status(), 200);
    }
    // Before a refusal too: Java 17 ignores a response that has no 100 before it (JDK-8286171).
    let refused = expecting("wrong-key-123456", "20000");
    let (mut response, _body) = send.send_request(refused, false).unwrap();
    assert!(receives_continue(&mut response).await);
    let response = timeout(Duration::from_secs(10), response).await.unwrap();
    assert_eq!(response.unwrap().status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_expect_100_gets_none() {
    let gateway = gateway().await;
    let mut send = h2(&gateway).await;
    let request = Request::builder().method("POST").uri("https://localhost/x");
    let request = request
        .header("expect", "200-ok")
        .header("x-api-key", KEY)
        .body(())
        .unwrap();
    let (mut response, mut body) = send.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"x"), true).unwrap();
    assert!(!receives_continue(&mut response).await);
    let response = timeout(Duration::from_secs(10), response).await.unwrap();
    assert_eq!(response.unwrap().status(), 200);
    let ended = expecting(KEY, "0");
    let (mut response, _) = send.send_request(ended, true).unwrap();
    assert!(!receives_continue(&mut response).await, "there is no body");
    assert_eq!(response.await.unwrap().status(), 200);
}
