//! Every form in which two parsers could read one request as two.

use super::*;

/// A second request that must never be seen by the service.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";

const BAD: &[(&str, &str)] = &[
    (
        "length and coding",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "coding and length",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    ),
    (
        "equal lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    ),
    (
        "lengths of zero",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "different lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\ncontent-length: 4\r\n\r\nabc",
    ),
    (
        "length list",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc",
    ),
    (
        "signed length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
    ),
    (
        "negative length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\nabc",
    ),
    (
        "hex length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc",
    ),
    (
        "empty length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
    ),
    (
        "blank length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:  \r\n\r\n",
    ),
    (
        "length with a gap",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3 3\r\n\r\nabc",
    ),
    (
        "huge length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\nabc",
    ),
    (
        "space before colon",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc",
    ),
    (
        "coding, space before colon",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "coding twice",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "coding list",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "another coding first",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "unknown coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
    ),
    (
        "longer coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunkedx\r\n\r\n0\r\n\r\n",
    ),
    (
        "shorter coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunke\r\n\r\n0\r\n\r\n",
    ),
    (
        "quoted coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    ),
    (
        "coding after a vertical tab",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "coding in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "folded field",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n",
    ),
    (
        "folded coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "space before first field",
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    ),
    (
        "bare LF after request line",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
    ),
    ("bare LF after field", "GET / HTTP/1.1\r\nHost: a\n\r\n"),
    ("bare LF as empty line", "GET / HTTP/1.1\r\nHost: a\r\n\n"),
    ("bare LF everywhere", "GET / HTTP/1.1\nHost: a\n\n"),
    ("bare LF before it", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        "bare CR in a value",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    ),
    (
        "bare CR after length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\rX\r\n\r\nabc",
    ),
    ("CR CR LF", "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n"),
    (
        "empty lines before it",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "NUL in a value",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    ),
    (
        "NUL in a name",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length\0: 3\r\n\r\nabc",
    ),
    ("NUL in the target", "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("no colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"),
    ("empty name", "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\nX: a\r\n\r\n"),
    ("no field", "GET / HTTP/1.1\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    ("host list", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    (
        "another host in the target",
        "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "user in the target",
        "GET http://x@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    ("no version", "GET /\r\nHost: a\r\n\r\n"),
    ("other version", "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    ("two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        "tab in the request line",
        "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "space in the target",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
];

/// Bodies with errors after a valid head; the service may see the first request.
const BAD_BODY: &[(&str, &str)] = &[
    ("size without digits", "\r\nabc\r\n0\r\n\r\n"),
    ("prefixed size", "0x3\r\nabc\r\n0\r\n\r\n"),
    ("signed size", "+3\r\nabc\r\n0\r\n\r\n"),
    ("space before size", " 3\r\nabc\r\n0\r\n\r\n"),
    ("space after size", "3 \r\nabc\r\n0\r\n\r\n"),
    ("empty extension", "3;\r\nabc\r\n0\r\n\r\n"),
    ("NUL in extension", "3;a=\0\r\nabc\r\n0\r\n\r\n"),
    ("open quote", "3;a=\"\r\nabc\r\n0\r\n\r\n"),
    ("huge size", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    ("bare LF after size", "3\nabc\r\n0\r\n\r\n"),
    ("bare LF in extension", "3;a\nabc\r\n0\r\n\r\n"),
    ("bare CR after size", "3\rX\nabc\r\n0\r\n\r\n"),
    ("bare LF after chunk", "3\r\nabc\n0\r\n\r\n"),
    ("longer chunk", "3\r\nabcd\r\n0\r\n\r\n"),
    ("bare LF after last size", "3\r\nabc\r\n0\n\r\n"),
    ("bare LF at the end", "3\r\nabc\r\n0\r\n\n"),
    ("bare LF in trailer", "3\r\nabc\r\n0\r\nX: 1\n\r\n"),
    (
        "length in trailer",
        "3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n",
    ),
    (
        "coding in trailer",
        "3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    ("folded trailer", "3\r\nabc\r\n0\r\nX: 1\r\n 2\r\n\r\n"),
];

const CHUNKED: &str = "POST /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

#[tokio::test]
async fn ambiguous_requests_get_400_and_the_connection_closes() {
    let gate = Gate::start(settings());
    for (name, text) in BAD {
        let response = gate.exchange(format!("{text}{HIDDEN}")).await;
        assert!(
            response.starts_with("HTTP/1.1 400") || response.starts_with("HTTP/1.0 400"),
            "{name}: {response:?}"
        );
        assert_eq!(
            response.matches("HTTP/1.").count(),
            1,
            "{name}: {response:?}"
        );
        assert!(
            response.ends_with("refused"),
            "the response of the service: {response:?}"
        );
    }
    let all = BAD.len() as u64;
    eventually("each is counted", || {
        gate.ends(ConnectionEnd::Protocol) == all
    })
    .await;
}

#[tokio::test]
async fn ambiguous_requests_are_refused_when_they_arrive_byte_by_byte() {
    let gate = Gate::start(settings());
    for (name, text) in BAD {
        let mut raw = gate.connect().await;
        raw.0.set_nodelay(true).unwrap();
        for byte in text.as_bytes() {
            raw.send([*byte]).await;
            tokio::task::yield_now().await;
        }
        let response = raw.rest().await;
        assert!(response.contains(" 400 "), "{name}: {response:?}");
        assert_eq!(
            response.matches("HTTP/1.").count(),
            1,
            "{name}: {response:?}"
        );
    }
}

#[tokio::test]
async fn ambiguous_requests_are_refused_after_a_valid_request() {
    let gate = Gate::start(settings());
    let good: &[&str] = &[
        "GET /first HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        &format!("{CHUNKED}3\r\nabc\r\n0\r\nX: y\r\n\r\n"),
    ];
    for first in good {
        for (name, text) in BAD {
            let response = gate.exchange(format!("{first}{text}{HIDDEN}")).await;
            assert!(response.contains("[/first "), "{name}: {response:?}");
            assert!(response.contains(" 400 "), "{name}: {response:?}");
            assert!(!response.contains("[/hidden"), "{name}: {response:?}");
        }
    }
}

#[tokio::test]
async fn a_body_with_malformed_chunks_ends_the_connection() {
    let gate = Gate::start(settings());
    for (name, body) in BAD_BODY {
        let response = gate.exchange(format!("{CHUNKED}{body}{HIDDEN}")).await;
        assert!(response.starts_with("HTTP/1.1 400"), "{name}: {response:?}");
        assert!(!response.contains("[/hidden"), "{name}: {response:?}");
    }
}

#[tokio::test]
async fn good_requests_follow_each_other_on_one_connection() {
    let gate = Gate::start(settings());
    let text = [
        "GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length:  3  \r\n\r\nabc",
        // Old clients send one empty line after a body.
        "\r\nPOST /c HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
        "POST /d HTTP/1.1\r\nHost: a\r\ntransfer-encoding:Chunked\r\nTrailer: x\r\n\r\n",
        "003;name=\"value\"\r\nabc\r\nA ; b\r\n0123456789\r\n0\r\nTe: a\r\nContent-Type: b\r\n\r\n",
        "GET http://a:80/e HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n",
    ];
    let response = gate.exchange(text.concat()).await;
    for seen in ["[/a 0]", "[/b 3]", "[/c 0]", "[/d 13]", "[/e 0]"] {
        assert!(response.contains(seen), "{seen} in {response:?}");
    }
    assert_eq!(gate.ends(ConnectionEnd::Protocol), 0);
}

#[tokio::test]
async fn a_head_over_the_limits_is_431() {
    let gate = Gate::start(settings());
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(20_000)
    );
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(51));
    let endless = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(200_000));
    for text in [long, many, endless] {
        let response = gate.exchange(text).await;
        assert!(response.starts_with("HTTP/1.1 431"), "{response:?}");
    }
    // The limit is exact, with an empty line before the head too: hyper refuses no head that the guard accepts.
    for before in ["", "\r\n"] {
        let head = |size: usize| {
            let begin = format!("{before}GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: ");
            let value = "x".repeat(size - begin.len() - 4);
            format!("{begin}{value}\r\n\r\n")
        };
        let limit = settings().max_header_bytes;
        let response = gate.exchange(head(limit)).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response:?}");
        let response = gate.exchange(head(limit + 1)).await;
        assert!(response.starts_with("HTTP/1.1 431"), "{response:?}");
        assert!(
            response.ends_with("refused"),
            "the response of the service: {response:?}"
        );
    }
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let gate = Gate::start(settings());
    let head = "POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n";
    let response = gate
        .exchange(format!("{head}{}", "x".repeat(1_000_000)))
        .await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response:?}");
    assert!(response.ends_with("early"));
}
