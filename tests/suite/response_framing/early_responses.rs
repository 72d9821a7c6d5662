//! Responses that come before the request has been sent completely.

use std::future::poll_fn;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::TcpStream;

use crate::harness::Gateway;
use crate::harness::raw::connected;
use crate::harness::received::{Received, read_response};
use crate::harness::scripted::{ScriptedUpstream, Step, key_field, not_found, say};

const UPLOAD: usize = 50_000_000;
const RUNS: usize = 40;

fn responses(head: &str) -> Vec<Step> {
    let large = "HTTP/1.1 413 Too Large\r\nContent-Length: 100000\r\n\r\n".to_owned()
        + &"x".repeat(100_000);
    match head.split(' ').nth(1).unwrap() {
        "/at-once" => vec![
            say("HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge"),
            Step::Close,
        ],
        "/connection-close" => vec![
            say("HTTP/1.1 403 No\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge"),
            Step::Cut,
        ],
        "/after-a-while" => vec![
            Step::Take(3_000_000),
            say(
                "HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nlarge\r\n0\r\n\r\n",
            ),
            Step::Close,
        ],
        "/large" => vec![Step::Say(large.into_bytes()), Step::Close],
        "/large-and-lingers" => vec![
            Step::Say(large.into_bytes()),
            Step::Pause(Duration::from_millis(300)),
            Step::Close,
        ],
        "/old" => vec![
            say("HTTP/1.0 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge"),
            Step::Close,
        ],
        // Neither read further nor closed.
        "/stays" => vec![
            say("HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge"),
            Step::Pause(Duration::from_secs(30)),
        ],
        "/reset" => vec![Step::Reset],
        _ => vec![not_found()],
    }
}

fn upload_head(path: &str, framing: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\n{}\r\n{framing}\r\n\r\n",
        key_field()
    )
}

/// Sends the body until it fails or is complete, and reads at the same time.
async fn upload(line: impl AsyncRead + AsyncWrite + Send + 'static, path: &str) -> Received {
    let (mut from, mut to) = split(line);
    let head = upload_head(path, &format!("Content-Length: {UPLOAD}"));
    let sending = tokio::spawn(async move {
        if to.write_all(head.as_bytes()).await.is_err() {
            return;
        }
        let piece = vec![0; 64 * 1024];
        for _ in 0..UPLOAD / piece.len() + 1 {
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
    let received = read_response(&mut from, false).await;
    sending.abort();
    received
}

async fn plain(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.addresses.listeners[1])
        .await
        .unwrap()
}

async fn statuses(gateway: &Gateway, path: &str) -> Vec<(u16, bool)> {
    let mut seen = Vec::new();
    for run in 0..RUNS {
        let received = match run % 2 {
            0 => upload(plain(gateway).await, path).await,
            _ => upload(connected(gateway, &["http/1.1"]).await, path).await,
        };
        seen.push((received.status, received.is_whole));
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_response_reaches_the_client_every_time() {
    for is_tls in [false, true] {
        let upstream = ScriptedUpstream::start(responses, is_tls).await;
        let gateway = upstream.gate("", "").await;
        for (path, status) in [
            ("/at-once", 413),
            ("/connection-close", 403),
            ("/after-a-while", 413),
            ("/large-and-lingers", 413),
            ("/old", 413),
            ("/stays", 413),
        ] {
            let seen = statuses(&gateway, path).await;
            let good = seen.iter().filter(|seen| **seen == (status, true)).count();
            assert_eq!(good, RUNS, "{path} tls {is_tls}: {seen:?}");
        }
        // A server that closes with unread input discards the unsent part of its response.
        // The part that arrived is forwarded and does not look complete.
        let seen = statuses(&gateway, "/large").await;
        assert!(
            seen.iter().all(|seen| seen.0 == 413),
            "tls {is_tls}: {seen:?}"
        );
    }
}

/// Over HTTP/2, as much as the window allows.
async fn upload_http2(gateway: &Gateway, path: &str) -> u16 {
    let tls = connected(gateway, &["h2"]).await;
    let (mut send, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("https://localhost{path}"))
        .header("authorization", &key_field()[15..])
        .header("content-length", UPLOAD)
        .body(())
        .unwrap();
    let (response, mut body) = send.send_request(request, false).unwrap();
    let sending = tokio::spawn(async move {
        body.reserve_capacity(UPLOAD);
        while let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await {
            if body.send_data(vec![0; room].into(), false).is_err() {
                return;
            }
            body.reserve_capacity(UPLOAD);
        }
    });
    let response = tokio::time::timeout(Duration::from_secs(20), response).await;
    sending.abort();
    let response = response.unwrap().unwrap();
    response.status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_response_reaches_an_http2_client() {
    for is_tls in [false, true] {
        let upstream = ScriptedUpstream::start(responses, is_tls).await;
        let gateway = upstream.gate("", "").await;
        for (path, status) in [("/at-once", 413), ("/connection-close", 403), ("/old", 413)] {
            for run in 0..RUNS / 4 {
                let seen = upload_http2(&gateway, path).await;
                assert_eq!(seen, status, "{path} tls {is_tls} run {run}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_only_after_sending_gets_an_early_response_too() {
    let upstream = ScriptedUpstream::plain(responses).await;
    let gateway = upstream.gate("", "").await;
    for _ in 0..4 {
        let mut line = plain(&gateway).await;
        let length = 20_000_000;
        let head = upload_head("/at-once", &format!("Content-Length: {length}"));
        line.write_all(head.as_bytes()).await.unwrap();
        // Four seconds without a pause.
        for _ in 0..200 {
            line.write_all(&vec![0; length / 200]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let received = read_response(&mut line, false).await;
        assert_eq!((received.status, received.text().as_str()), (413, "large"));
        assert_eq!(line.read(&mut [0]).await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_only_resets_is_a_502_at_once() {
    for is_tls in [false, true] {
        let upstream = ScriptedUpstream::start(responses, is_tls).await;
        let gateway = upstream.gate("", "").await;
        let began = std::time::Instant::now();
        for _ in 0..5 {
            let received = upload(plain(&gateway).await, "/reset").await;
            assert_eq!((received.status, received.is_whole), (502, true));
        }
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            began.elapsed()
        );
    }
}
