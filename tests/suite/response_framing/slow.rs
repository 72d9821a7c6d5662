//! Slow is not stalled: timeouts apply to the side that has to send the next bytes.

use std::time::{Duration, Instant};

use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tollgate::metrics::Blame;

use crate::harness::Gateway;
use crate::harness::received::{ClientProtocol, read_response, send_request};
use crate::harness::scripted::{ScriptedUpstream, Step, key_field, not_found, say};

fn pause(millis: u64) -> Step {
    Step::Pause(Duration::from_millis(millis))
}

/// `count` times `piece`, with a pause between.
fn trickle(head: &str, piece: &str, count: usize, millis: u64) -> Vec<Step> {
    let mut steps = vec![say(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n"))];
    for _ in 0..count {
        steps.extend([pause(millis), say(piece)]);
    }
    steps
}

fn responses(head: &str) -> Vec<Step> {
    let chunked = "Transfer-Encoding: chunked";
    let ping = "8\r\n: ping\n\n\r\n";
    match head.split(' ').nth(1).unwrap() {
        "/pings" => {
            let fields = format!("Content-Type: text/event-stream\r\n{chunked}");
            let mut steps = trickle(&fields, ping, 8, 2_000);
            steps.push(say("0\r\n\r\n"));
            steps
        }
        // Ten times longer than the longest allowed pause, in pieces that are never late.
        "/known-length" => trickle("Content-Length: 10000", &"x".repeat(500), 20, 700),
        "/until-close" => {
            let mut steps = trickle("X-Slow: yes", "x", 20, 700);
            steps.push(Step::Close);
            steps
        }
        "/silent" => vec![
            say(&format!("HTTP/1.1 200 OK\r\n{chunked}\r\n\r\n{ping}")),
            pause(60_000),
        ],
        "/silent-small" => vec![
            say("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n"),
            pause(60_000),
        ],
        // Reads the body only after a while.
        "/late-reader" => vec![
            pause(14_000),
            Step::Take(3_000_000),
            say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ],
        _ => vec![not_found()],
    }
}

async fn gate(upstream: &ScriptedUpstream) -> Gateway {
    upstream.gate("body_idle_timeout = \"4s\"", "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_lives_while_its_pieces_come_within_body_idle_timeout() {
    let upstream = ScriptedUpstream::plain(responses).await;
    let gateway = gate(&upstream).await;
    let all = [
        (ClientProtocol::Http11, "/pings", 64),
        (ClientProtocol::Http2, "/pings", 64),
        (ClientProtocol::Http11, "/known-length", 10_000),
        (ClientProtocol::Http2, "/known-length", 10_000),
        (ClientProtocol::Http10, "/until-close", 20),
        (ClientProtocol::Http2, "/until-close", 20),
    ];
    let requests = all.map(|(how, path, length)| {
        let gateway = &gateway;
        async move {
            let received = send_request(gateway, how, &Method::GET, path).await;
            let seen = (received.status, received.body.len(), received.is_whole);
            assert_eq!(seen, (200, length, true), "{how:?} {path}");
        }
    });
    futures_util::future::join_all(requests).await;
    assert_eq!(gateway.metrics.responses.value(Blame::Client), 0);
    assert_eq!(gateway.metrics.responses.value(Blame::Upstream), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_silent_upstream_is_blamed() {
    let upstream = ScriptedUpstream::plain(responses).await;
    let gateway = gate(&upstream).await;
    let (cut, refused) = tokio::join!(
        send_request(&gateway, ClientProtocol::Http11, &Method::GET, "/silent"),
        send_request(
            &gateway,
            ClientProtocol::Http2,
            &Method::GET,
            "/silent-small"
        ),
    );
    assert_eq!((cut.status, cut.body.len(), cut.is_whole), (200, 8, false));
    assert_eq!((refused.status, refused.is_whole), (504, true));
    assert_eq!(gateway.metrics.responses.value(Blame::Upstream), 2);
    assert_eq!(gateway.metrics.responses.value(Blame::Client), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_body_the_upstream_does_not_read_is_not_slow() {
    let upstream = ScriptedUpstream::plain(responses).await;
    let gateway = gate(&upstream).await;
    let mut line = TcpStream::connect(gateway.addresses.listeners[1])
        .await
        .unwrap();
    let head = format!(
        "POST /late-reader HTTP/1.1\r\nHost: localhost\r\n{}\r\nContent-Length: 3000000\r\n\r\n",
        key_field()
    );
    line.write_all(head.as_bytes()).await.unwrap();
    let (mut from, mut to) = line.into_split();
    let sending = tokio::spawn(async move {
        to.write_all(&vec![0; 3_000_000]).await.unwrap();
        to
    });
    let received = read_response(&mut from, false).await;
    assert_eq!((received.status, received.text().as_str()), (200, "ok"));
    drop(sending.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_byte_by_byte_is_too_slow() {
    let upstream = ScriptedUpstream::plain(responses).await;
    let gateway = gate(&upstream).await;
    let mut line = TcpStream::connect(gateway.addresses.listeners[1])
        .await
        .unwrap();
    let head = format!(
        "POST /late-reader HTTP/1.1\r\nHost: localhost\r\n{}\r\nContent-Length: 3000000\r\n\r\n",
        key_field()
    );
    line.write_all(head.as_bytes()).await.unwrap();
    let began = Instant::now();
    let (mut from, mut to) = line.into_split();
    let sending = tokio::spawn(async move {
        while to.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    let received = read_response(&mut from, false).await;
    assert_eq!(received.status, 408);
    assert!(
        began.elapsed() < Duration::from_secs(13),
        "{:?}",
        began.elapsed()
    );
    sending.abort();
}

/// The token of `login` begins with `s`; a piece that ends so is held back for milliseconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_may_begin_the_token_is_held_back_for_milliseconds() {
    let upstream = ScriptedUpstream::plain(|head| match head.split(' ').nth(1).unwrap() {
        "/alive" => vec![
            say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nyes s\r\n"),
            pause(3_000),
            say("3\r\ncr!\r\n"),
            pause(3_000),
            say("12\r\nscripted-token and\r\n0\r\n\r\n"),
        ],
        // In two pieces, with a pause between.
        "/echo" => vec![
            say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n: sc\r\n"),
            pause(500),
            say("c\r\nripted-token\r\n0\r\n\r\n"),
        ],
        "/echo-later" => vec![
            say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n: scripted\r\n"),
            pause(500),
            say("6\r\n-token\r\n0\r\n\r\n"),
        ],
        _ => vec![not_found()],
    })
    .await;
    let gateway = upstream.gate("", "").await;
    let mut line = TcpStream::connect(gateway.addresses.listeners[1])
        .await
        .unwrap();
    let head = format!(
        "GET /alive HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n",
        key_field()
    );
    line.write_all(head.as_bytes()).await.unwrap();
    let began = Instant::now();
    let mut seen = Vec::new();
    while !seen.ends_with(b"1\r\ns\r\n") {
        seen.push(line.read_u8().await.unwrap());
    }
    let took = began.elapsed();
    assert!(took < Duration::from_millis(1_500), "{took:?}");
    let mut rest = vec![0; 8];
    line.read_exact(&mut rest).await.unwrap();
    assert_eq!(rest, b"3\r\ncr!\r\n");
    assert!(began.elapsed() < Duration::from_millis(4_500));
    drop(line);
    for (path, shown) in [
        ("/echo", ": sc************"),
        ("/echo-later", ": **************"),
    ] {
        for how in [ClientProtocol::Http11, ClientProtocol::Http2] {
            let received = send_request(&gateway, how, &Method::GET, path).await;
            assert_eq!(received.text(), shown, "{how:?}");
        }
    }
}
