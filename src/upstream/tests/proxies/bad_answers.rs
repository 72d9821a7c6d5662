//! Answers of a proxy that open no tunnel.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::raw_proxy::{ProxyReply, RawProxy};
use super::{PASSWORD, connections, get, setup};
use crate::error_chain::chain;
use crate::upstream::SendErrorKind;

/// An answer of the proxy, and what the gate says of it.
struct BadAnswer {
    bytes: Vec<u8>,
    kind: SendErrorKind,
    key: &'static str,
    expected: &'static str,
}

fn bad(bytes: impl Into<Vec<u8>>, key: &'static str, expected: &'static str) -> BadAnswer {
    BadAnswer {
        bytes: bytes.into(),
        kind: SendErrorKind::ConnectFailed,
        key,
        expected,
    }
}

fn bad_answers() -> Vec<BadAnswer> {
    let late = BadAnswer {
        kind: SendErrorKind::ConnectTimeout,
        ..bad(
            "HTTP/1.1 504 Gateway Timeout\r\n\r\n",
            "proxy",
            "in time (504 Gateway Timeout)",
        )
    };
    vec![
        bad(
            "HTTP/1.1 403 Filtered\r\nContent-Length: 3\r\n\r\nno\n",
            "proxy",
            "does not allow CONNECT to webapp.invalid:4443 (403 Filtered)",
        ),
        bad("HTTP/1.1 405 No\r\n\r\n", "proxy", "does not allow CONNECT"),
        bad(
            "HTTP/1.1 502 Bad Gateway\r\n\r\n",
            "proxy",
            "cannot reach webapp.invalid:4443 (502",
        ),
        bad(
            "HTTP/1.0 503 Down\r\n\r\n",
            "proxy",
            "cannot reach webapp.invalid:4443 (503",
        ),
        bad(
            "HTTP/1.1 302 Found\r\nLocation: http://evil/\r\n\r\n",
            "proxy",
            "does not open a tunnel",
        ),
        bad(
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "proxy",
            "closed the connection before",
        ),
        bad(
            "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            "proxy",
            "sent 19 bytes after its response",
        ),
        bad(
            "HTTP/1.1 200 OK\r\nX",
            "proxy",
            "closed the connection before",
        ),
        bad("", "proxy", "closed the connection before"),
        late,
    ]
}

fn unreadable_answers() -> Vec<BadAnswer> {
    let huge = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(101));
    let spoofed = "HTTP/1.1 403 \u{1b}[31mred and very long, so that a log line stays short after all, and more\r\n\r\n";
    vec![
        bad(
            "SSH-2.0-OpenSSH_9.2\r\n",
            "proxy",
            "does not speak plain HTTP",
        ),
        bad(
            b"\x15\x03\x01\x00\x02\x02\x46",
            "proxy",
            "does not speak plain HTTP",
        ),
        bad(spoofed, "proxy", "does not speak plain HTTP"),
        bad(huge, "proxy", "longer than 16384 bytes"),
        bad(many, "proxy", "100 fields"),
    ]
}

#[tokio::test]
async fn every_bad_answer_is_told_apart_and_no_message_has_the_login() {
    let mut rows = vec![];
    for has_login in [true, false] {
        rows.extend(
            bad_answers()
                .into_iter()
                .chain(unreadable_answers())
                .map(|row| (has_login, row)),
        );
    }
    let asks = "HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm=\"p\"\r\n\r\n";
    let wrong = "HTTP/1.1 401 Unauthorized\r\n\r\n";
    rows.push((true, bad(wrong, "proxy_login", "refuses the login")));
    rows.push((
        true,
        bad(
            asks,
            "proxy_login",
            "refuses the login in upstream.main.proxy_login (407 Who)",
        ),
    ));
    rows.push((
        false,
        bad(asks, "proxy_login", "set upstream.main.proxy_login"),
    ));
    for (has_login, row) in rows {
        let proxy = RawProxy::start(ProxyReply::Close(row.bytes)).await;
        let setup = setup(proxy.address, has_login).without_login();
        let connections = connections(&setup);
        let (kind, text) = get(&connections).await.unwrap_err();
        assert!(text.contains(row.expected), "{}: {text}", row.expected);
        assert_eq!(kind, row.kind, "{text}");
        let reached = connections.upstream().reach().await.unwrap_err();
        assert_eq!(reached.key(), row.key, "{reached:?}");
        for text in [text, chain(&reached), format!("{reached:?}")] {
            let pair = STANDARD.encode(format!("gate:{PASSWORD}"));
            let is_silent = !text.contains(PASSWORD) && !text.contains(&pair);
            assert!(is_silent && !text.contains(char::is_control), "{text}");
        }
    }
}
