//! Contradictory lengths and codings (RFC 9112 6.1 and 6.3), and switches of protocol.

use std::sync::Arc;

use http::Method;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::harness::received::{ClientProtocol, exchange, send_request};
use crate::harness::scripted::{ScriptedUpstream, Step, key_field, not_found, say};

/// The responses by path.
fn responses(head: &str) -> Vec<Step> {
    let target = head.split(' ').nth(1).unwrap();
    let (fields, body) = match target {
        "/length-and-chunked" => (
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "2\r\nok\r\n0\r\n\r\n",
        ),
        "/chunked-and-length" => (
            "Transfer-Encoding: CHUNKED\r\ncontent-length: 100000",
            "2\r\nok\r\n0\r\n\r\n",
        ),
        "/two-equal" => ("Content-Length: 2\r\nContent-Length: 2", "ok"),
        "/list-of-equal" => ("Content-Length: 2, 2", "ok"),
        "/two-different" => ("Content-Length: 2\r\nContent-Length: 3", "oko"),
        "/none" => ("Content-Length: two", "ok"),
        "/gzip-chunked" => ("Transfer-Encoding: gzip, chunked", "2\r\nok\r\n0\r\n\r\n"),
        "/gzip-chunked-in-two" => (
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
            "2\r\nok\r\n0\r\n\r\n",
        ),
        "/gzip" => ("Transfer-Encoding: gzip", "ok"),
        "/identity" => ("Transfer-Encoding: identity", "ok"),
        "/identity-with-length" => ("Transfer-Encoding: identity\r\nContent-Length: 2", "ok"),
        "/chunked-gzip" => ("Transfer-Encoding: chunked, gzip", "2\r\nok\r\n0\r\n\r\n"),
        "/twice" => (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "2\r\nok\r\n0\r\n\r\n",
        ),
        "/good" => ("Content-Length: 2", "ok"),
        // Bytes after a response without a body must not be read as the next response.
        "/empty-with-length" => {
            return vec![
                say("HTTP/1.1 204 No Content\r\nContent-Length: 38\r\n\r\n"),
                Step::Pause(std::time::Duration::from_millis(50)),
                say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ];
        }
        "/old-coded" => {
            return vec![
                say("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
                Step::Close,
            ];
        }
        _ => return vec![not_found()],
    };
    let response = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}");
    vec![say(&response), Step::Close]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coding_overrides_the_length_and_equal_lengths_are_one() {
    let upstream = ScriptedUpstream::plain(responses).await;
    let gateway = upstream.gate("", "").await;
    for how in [
        ClientProtocol::Http10,
        ClientProtocol::Http11,
        ClientProtocol::Http2,
    ] {
        for (path, lengths) in [
            ("/length-and-chunked", &[][..]),
            ("/chunked-and-length", &[]),
            ("/two-equal", &["2"]),
            ("/list-of-equal", &["2"]),
        ] {
            let received = send_request(&gateway, how, &Method::GET, path).await;
            let seen = (received.status, received.text(), received.is_whole);
            assert_eq!(seen, (200, "ok".to_owned(), true), "{how:?} {path}");
            let given = received.all("content-length");
            assert!(
                given == lengths || (lengths.is_empty() && given == ["2"]),
                "{how:?} {path}: {given:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_with_bad_framing_or_unknown_coding_is_a_502_of_the_gate() {
    let upstream = ScriptedUpstream::plain(responses).await;
    let gateway = upstream.gate("", "").await;
    for how in [ClientProtocol::Http11, ClientProtocol::Http2] {
        for path in [
            "/two-different",
            "/none",
            "/gzip-chunked",
            "/gzip-chunked-in-two",
            "/gzip",
            "/identity",
            "/identity-with-length",
            "/chunked-gzip",
            "/twice",
            "/old-coded",
        ] {
            let received = send_request(&gateway, how, &Method::GET, path).await;
            assert_eq!(
                (received.status, received.is_whole),
                (502, true),
                "{how:?} {path}"
            );
            assert!(
                received.text().contains("\"status\":502"),
                "{path}: {}",
                received.text()
            );
        }
        let good = send_request(&gateway, how, &Method::GET, "/good").await;
        assert_eq!((good.status, good.text().as_str()), (200, "ok"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_may_continue_is_the_last_of_its_connection() {
    let upstream = ScriptedUpstream::plain(responses).await;
    let text = upstream
        .config("", "")
        .replace("workers = 2", "workers = 1");
    let gateway = upstream.gate_of(&text).await;
    let before = upstream.connections();
    for _ in 0..5 {
        let empty = send_request(
            &gateway,
            ClientProtocol::Http11,
            &Method::GET,
            "/empty-with-length",
        )
        .await;
        assert_eq!((empty.status, empty.all("content-length").len()), (204, 0));
        let next = send_request(&gateway, ClientProtocol::Http11, &Method::GET, "/good").await;
        assert_eq!((next.status, next.text().as_str()), (200, "ok"));
    }
    assert!(
        upstream.connections() - before >= 10,
        "a connection was used again"
    );
}

/// Responses to requests that may have an Upgrade field.
fn switching(head: &str) -> Vec<Step> {
    match head.split(' ').nth(1).unwrap() {
        "/switch" => vec![say("HTTP/1.1 101 Switching Protocols\r\n\
                 Connection: upgrade\r\nUpgrade: websocket\r\n\r\n\0 not HTTP")],
        "/switch-without-name" => vec![say("HTTP/1.1 101 X\r\nContent-Length: 0\r\n\r\n")],
        "/good" => vec![say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")],
        _ => vec![not_found()],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unrequested_protocol_switch_is_a_502_of_the_gate() {
    let upstream = ScriptedUpstream::plain(switching).await;
    let gateway = upstream.gate("", "").await;
    for how in [
        ClientProtocol::Http10,
        ClientProtocol::Http11,
        ClientProtocol::Tls11,
        ClientProtocol::Http2,
    ] {
        for path in ["/switch", "/switch-without-name"] {
            let received = send_request(&gateway, how, &Method::GET, path).await;
            let seen = (received.status, received.is_whole);
            assert_eq!(seen, (502, true), "{how:?} {path}");
            assert!(received.all("upgrade").is_empty(), "{how:?} {path}");
        }
        let good = send_request(&gateway, how, &Method::GET, "/good").await;
        assert_eq!((good.status, good.text().as_str()), (200, "ok"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_another_protocol_is_forwarded_without_upgrade() {
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let seen = Arc::clone(&heads);
    let script = move |head: &str| {
        seen.lock().push(head.to_ascii_lowercase());
        switching(head)
    };
    let upstream = ScriptedUpstream::plain(script).await;
    let gateway = upstream.gate("", "").await;
    for protocol in ["websocket", "h2c", "TLS/1.2, echo"] {
        for (path, status) in [("/good", 200), ("/switch", 502)] {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: localhost\r\n{}\r\nConnection: Upgrade, X-Named\r\n\
                 Upgrade: {protocol}\r\nX-Named: 1\r\nX-Other: 1\r\n\r\n",
                key_field()
            );
            heads.lock().clear();
            let tcp = TcpStream::connect(gateway.addresses.listeners[1]).await;
            let received = exchange(tcp.unwrap(), request.as_bytes(), false).await;
            assert_eq!(received.status, status, "{protocol} {path}");
            assert!(received.all("upgrade").is_empty(), "{protocol} {path}");
            let heads = heads.lock();
            let is_asked = |head: &&String| head.starts_with(&format!("get {path} "));
            let head = heads.iter().find(is_asked).unwrap();
            assert!(head.contains("\r\nx-other: 1"), "{head}");
            assert!(
                !head.contains("upgrade") && !head.contains("x-named"),
                "{head}"
            );
        }
    }
}
