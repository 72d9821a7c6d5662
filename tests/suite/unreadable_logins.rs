//! Relayed logins: the gate requests a response that it can read, and forwards one that it
//! cannot read.

use std::time::Duration;

use reqwest::Method;
use tollgate::metrics::{ClientLoginOutcome, UnreadableLogin};

use crate::harness::upstream::{Call, Reply};
use crate::harness::{Client, Gateway, NO_LIMITS, Setup};

/// An upstream whose script also responds to logins, and a gate in front of it.
async fn relay(script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> (Gateway, Webapp) {
    let webapp = Webapp::scripted(script).await;
    let setup = Setup::default()
        .users("directory = \"webapp\"")
        .rest(NO_LIMITS);
    let url = format!("http://{}", webapp.address);
    let gateway = Gateway::before(&url, setup).await;
    (gateway, webapp)
}

use crate::harness::upstream::Upstream as Webapp;

fn response(head: &str, body: &[u8]) -> Reply {
    let length = body.len();
    let mut bytes =
        format!("HTTP/1.1 200 OK\r\n{head}Content-Length: {length}\r\n\r\n").into_bytes();
    bytes.extend_from_slice(body);
    Reply::Stay(bytes)
}

fn minted(token: &str) -> String {
    let end = tollgate::profiles::format_expiry(tollgate::clock::unix_seconds() + 604_800);
    format!(r#"{{"users":[{{"token":"{token}","expires_after":"{end}"}}],"meta":{{}}}}"#)
}

async fn login(client: &Client, fields: &[(&str, &str)]) -> (u16, Vec<u8>) {
    let mut request = client
        .request(Method::POST, "/v1/users/login")
        .basic_auth("anna", Some("Passw0rd!"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.bytes().await.unwrap().to_vec())
}

/// Compresses the response whenever the request allows it, and sends parts and 304s on request,
/// as a proxy in front of the Webapp does for okhttp, Python's requests, Postman and Go.
fn clever(call: &Call) -> Reply {
    let head = call.head.to_ascii_lowercase();
    let has = |text: &str| head.contains(text);
    if !call.line().starts_with("POST /v1/users/login") {
        return Reply::ok("fine");
    }
    if has("\r\nif-none-match:") || has("\r\nif-modified-since:") {
        return Reply::Stay(b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec());
    }
    if has("\r\nrange:") {
        return Reply::Stay(
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-3/99\r\nContent-Length: 4\r\n\r\n{\"us"
                .to_vec(),
        );
    }
    if has("\r\na-im:") || has("\r\nprefer:") {
        return Reply::Stay(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec());
    }
    let plain = has("\r\naccept-encoding: identity\r\n");
    match plain && head.matches("accept-encoding").count() == 1 {
        true => Reply::ok(&minted("learned-token")),
        false => response("Content-Encoding: gzip\r\n", b"\x1f\x8b not for the gate"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_response_is_readable_whatever_codings_the_client_accepts() {
    let fields: [&[(&str, &str)]; 8] = [
        &[("accept-encoding", "gzip, deflate, br, zstd")],
        &[("accept-encoding", "identity;q=0, *")],
        &[("accept-encoding", "gzip"), ("accept-encoding", "br")],
        &[("range", "bytes=0-3"), ("if-range", "\"x\"")],
        &[("if-none-match", "*")],
        &[("if-modified-since", "Mon, 30 Nov 2099 00:00:00 GMT")],
        &[("a-im", "gzip"), ("prefer", "return=minimal")],
        &[("accept-charset", "utf-16")],
    ];
    for fields in fields {
        let (gateway, _webapp) = relay(clever).await;
        for client in [Client::http1(&gateway), gateway.client()] {
            let (status, body) = login(&client, fields).await;
            let text = String::from_utf8_lossy(&body).into_owned();
            assert_eq!(status, 200, "{fields:?}");
            assert!(text.contains("learned-token"), "{fields:?}: {text}");
        }
        let known = gateway.client().with_token("learned-token");
        assert_eq!(known.get("/v1/support").await.status(), 200, "{fields:?}");
    }
}

/// Responses of an upstream that ignores the request's fields.
fn stubborn(what: &'static str) -> impl Fn(&Call) -> Reply + Send + Sync + 'static {
    move |call| {
        if !call.line().starts_with("POST /v1/users/login") {
            return Reply::ok("fine");
        }
        match what {
            "coded" => response(
                "Content-Encoding: gzip\r\nX-Own: 1\r\n",
                b"\x1f\x8b\x08\x00bytes",
            ),
            "html" => response("Content-Type: text/html\r\n", b"<p>signed in</p>"),
            "no token" => response("", br#"{"users":[{}],"meta":{}}"#),
            "ended" => response(
                "",
                br#"{"users":[{"token":"t","expires_after":"2001-01-01 00:00:00+00:00"}]}"#,
            ),
            "long" => response("", &long()),
            // Chunks and a trailer.
            _ => {
                let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
                for piece in long().chunks(30_000) {
                    bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                    bytes.extend_from_slice(piece);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
                Reply::Stay(bytes)
            }
        }
    }
}

/// Three times the size that the gate reads of a login's response.
fn long() -> Vec<u8> {
    (0..200_000_u32).map(|at| b'a' + (at % 23) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_login_response_passes_unchanged_and_is_counted() {
    let rows: [(&str, &[u8], UnreadableLogin); 6] = [
        (
            "coded",
            b"\x1f\x8b\x08\x00bytes",
            UnreadableLogin::ContentEncoding,
        ),
        ("html", b"<p>signed in</p>", UnreadableLogin::NotJson),
        (
            "no token",
            br#"{"users":[{}],"meta":{}}"#,
            UnreadableLogin::NoToken,
        ),
        (
            "ended",
            br#"{"users":[{"token":"t","expires_after":"2001-01-01 00:00:00+00:00"}]}"#,
            UnreadableLogin::Expired,
        ),
        ("long", &long(), UnreadableLogin::TooLong),
        ("long, in chunks", &long(), UnreadableLogin::TooLong),
    ];
    for (what, wanted, reason) in rows {
        let (gateway, _webapp) = relay(stubborn(what)).await;
        for client in [Client::http1(&gateway), gateway.client()] {
            let (status, body) = login(&client, &[]).await;
            assert_eq!(status, 200, "{what}");
            assert!(body == wanted, "{what}: {} bytes", body.len());
        }
        let counts = &gateway.metrics.unreadable_login_responses;
        assert_eq!(counts.value(reason), 2, "{what}");
        assert_eq!(
            gateway.metrics.client_logins.value(ClientLoginOutcome::Ok),
            2
        );
        assert_eq!(gateway.metrics.tokens.get(), 0, "{what}");
    }
}

/// A long response that stalls after the part that the gate reads: the client has that part.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_response_over_the_limit_is_streamed_at_once() {
    let webapp = Webapp::scripted(|call| {
        if !call.line().starts_with("POST /v1/users/login") {
            return Reply::ok("fine");
        }
        let mut bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n".to_vec();
        bytes.extend_from_slice(&[b'x'; 100_000]);
        Reply::Stay(bytes)
    })
    .await;
    let setup = Setup::default()
        .users("directory = \"webapp\"")
        .rest(NO_LIMITS);
    let gateway = Gateway::before(&format!("http://{}", webapp.address), setup).await;
    let client = Client::http1(&gateway);
    let request = client.request(Method::POST, "/v1/users/login");
    let mut response = request
        .basic_auth("anna", Some("Passw0rd!"))
        .send()
        .await
        .unwrap();
    let mut seen = 0;
    while seen < 100_000 {
        let piece = tokio::time::timeout(Duration::from_secs(10), response.chunk());
        seen += piece.await.expect("flows").unwrap().unwrap().len();
    }
    assert_eq!(response.status(), 200);
}
