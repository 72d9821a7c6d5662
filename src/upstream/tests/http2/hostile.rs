//! Servers that break the rules of HTTP/2, or use them up.

use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::super::connections::text;
use super::super::{UpstreamSetup, eventually};
use super::raw_server::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, OK, PING, RST_STREAM, RawConnection,
    RawServer, SETTINGS, field, frame,
};
use super::{TEST_TIMEOUT, get, opened, setup};
use crate::config::Http2Mode;
use crate::error_chain::chain;
use crate::upstream::{FramingError, SendErrorKind};

/// The frames that answer stream 1, and why the response cannot be used.
async fn head_error(frames: &[(u8, u8, Vec<u8>)]) -> (SendErrorKind, String) {
    let server = RawServer::start().await;
    let setup = setup(&server);
    let connections = opened(&setup);
    let sent = get(&connections);
    let mut connection = server.accept(&[]).await;
    connection.request().await;
    for (kind, flags, payload) in frames {
        connection.send(*kind, *flags, 1, payload).await;
    }
    let failure = timeout(TEST_TIMEOUT, sent)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert!(!failure.is_unsent);
    (failure.kind, chain(&failure))
}

fn head(fields: &[Vec<u8>]) -> Vec<u8> {
    let mut head = OK.to_vec();
    head.extend(fields.concat());
    head
}

#[tokio::test]
async fn heads_that_http2_does_not_allow_are_refused() {
    for fields in [
        field("connection", "close"),
        field("transfer-encoding", "chunked"),
        field("upgrade", "websocket"),
        field("keep-alive", "timeout=5"),
        field("proxy-connection", "close"),
        field("Upper", "case"),
        field("x", "line\nfeed"),
        field(":status", "200"),
    ] {
        let (kind, text) =
            head_error(&[(HEADERS, END_HEADERS | END_STREAM, head(&[fields]))]).await;
        assert_eq!(kind, SendErrorKind::Protocol, "{text}");
    }
    let double = head(&[field("content-length", "1"), field("content-length", "2")]);
    let (kind, text) = head_error(&[(HEADERS, END_HEADERS, double)]).await;
    assert!(
        matches!(kind, SendErrorKind::Framing(_) | SendErrorKind::Protocol),
        "{text}"
    );
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused() {
    let field = field("x-filler", &"y".repeat(120));
    let large = head(&vec![field.clone(); 100]);
    // 100 fields are allowed, 101 are not, nor is more than 28 KiB.
    let many = head(&vec![field_of_one_byte(); 101]);
    let (kind, text) = head_error(&[(HEADERS, END_HEADERS, many)]).await;
    assert_eq!(kind, SendErrorKind::Protocol);
    assert!(text.contains("larger than 28672 bytes"), "{text}");
    let parts: Vec<_> = large.chunks(16_000).collect();
    let mut frames = vec![(HEADERS, 0, parts[0].to_vec())];
    for _ in 0..3 {
        frames.push((CONTINUATION, 0, large[1..].to_vec()));
    }
    frames.push((CONTINUATION, END_HEADERS, Vec::new()));
    let (kind, text) = head_error(&frames).await;
    assert_eq!(kind, SendErrorKind::Protocol, "{text}");
}

fn field_of_one_byte() -> Vec<u8> {
    field("x", "y")
}

#[tokio::test]
async fn informational_heads_are_counted_and_an_upgrade_is_refused() {
    let informational = |status: &str| vec![0x08, 3].into_iter().chain(status.bytes()).collect();
    let many: Vec<_> = (0..100)
        .map(|_| (HEADERS, END_HEADERS, informational("103")))
        .collect();
    let (kind, text) = head_error(&many).await;
    assert_eq!(kind, SendErrorKind::Protocol);
    assert!(text.contains("more than 64 informational"), "{text}");
    let (kind, _) = head_error(&[(HEADERS, END_HEADERS, informational("101"))]).await;
    assert_eq!(
        kind,
        SendErrorKind::Framing(FramingError::SwitchingProtocols)
    );
}

#[tokio::test]
async fn a_body_of_another_length_than_declared_is_an_error() {
    for (length, body, ends) in [
        ("3", "four", true),
        ("5", "four", true),
        ("5", "", true),
        ("4", "four", false),
    ] {
        let server = RawServer::start().await;
        let setup = setup(&server);
        let connections = opened(&setup);
        let sent = get(&connections);
        let mut connection = server.accept(&[]).await;
        connection.request().await;
        let head = head(&[field("content-length", length)]);
        connection.send(HEADERS, END_HEADERS, 1, &head).await;
        connection
            .send(DATA, u8::from(ends), 1, body.as_bytes())
            .await;
        if !ends {
            connection.send(RST_STREAM, 0, 1, &[0, 0, 0, 2]).await;
        }
        let outcome = match sent.await.unwrap() {
            Err(failure) => Err(chain(&failure)),
            Ok(response) => {
                let read = response.into_body().collect().await;
                read.map(|whole| whole.to_bytes())
                    .map_err(|failure| chain(&failure))
            }
        };
        assert!(outcome.is_err(), "{length} {body}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error() {
    for code in [None, Some(0), Some(2), Some(8)] {
        let server = RawServer::start().await;
        let setup = setup(&server);
        let connections = opened(&setup);
        let sent = get(&connections);
        let mut connection = server.accept(&[]).await;
        connection.request().await;
        connection.send(HEADERS, END_HEADERS, 1, OK).await;
        connection.send(DATA, 0, 1, b"part").await;
        match code {
            Some(code) => connection.send(RST_STREAM, 0, 1, &[0, 0, 0, code]).await,
            None => drop(connection),
        }
        let Ok(response) = sent.await.unwrap() else {
            continue; // the reset came before the head was read
        };
        assert!(response.into_body().collect().await.is_err(), "{code:?}");
    }
}

/// Writes `flood` until the connection ends, or for a while.
async fn flood(connection: &mut RawConnection, flood: &[u8]) {
    let writes = async { while connection.send_raw(flood).await {} };
    let _ = timeout(Duration::from_millis(500), writes).await;
}

#[tokio::test]
async fn floods_end_the_connection_or_change_nothing() {
    for one in [
        frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]),
        frame(PING, 0, 0, &[1; 8]),
        frame(SETTINGS, 0, 0, &[]),
        frame(DATA, 0, 1, &[]),
        frame(CONTINUATION, 0, 1, &[]),
        frame(99, 0, 0, &[0; 32]),
    ] {
        let server = RawServer::start().await;
        let mut setup = setup(&server);
        setup.settings.idle_timeout = Duration::from_secs(60);
        let connections = opened(&setup);
        let flooded = get(&connections);
        let mut connection = server.accept(&[]).await;
        connection.request().await;
        let many = one.repeat(1000);
        // The test reads nothing of what the gate writes back.
        flood(&mut connection, &many).await;
        drop(connection);
        let failure = timeout(TEST_TIMEOUT, flooded).await.unwrap().unwrap();
        assert!(failure.is_err(), "{one:?}");
        let gauge = &setup.metrics.upstream("main").upstream_connections_open;
        eventually("closed", || gauge.get() == 0).await;
        // The gate's own probe may come first.
        tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let mut connection = server.accept(&[]).await;
                let stream = connection.request().await;
                connection.respond(stream, b"good").await;
                open.push(connection);
            }
        });
        let next = get(&connections);
        let next = next.await.unwrap();
        let response =
            next.unwrap_or_else(|failure| panic!("{:?}: {}", &one[..9], chain(&failure)));
        assert_eq!(text(response).await, "good");
    }
}

#[tokio::test]
async fn a_server_that_speaks_http1_is_told_with_the_key() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = UpstreamSetup::of(listener.local_addr().unwrap()).without_login();
    setup.settings.http2 = Http2Mode::Always;
    let connections = opened(&setup);
    let sent = get(&connections);
    let (mut tcp, _) = listener.accept().await.unwrap();
    let mut preface = [0; 24];
    tcp.read_exact(&mut preface).await.unwrap();
    tcp.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let failure = sent.await.unwrap().unwrap_err();
    assert!(
        chain(&failure).contains("upstream.main.http2"),
        "{}",
        chain(&failure)
    );
}
