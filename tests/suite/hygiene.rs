//! Messages that two parsers could read differently are refused; the gate's credential stays hidden.

use reqwest::Method;
use serde_json::Value;

use crate::harness::client::verdict;
use crate::harness::raw::Raw;
use crate::harness::{Gateway, NO_LIMITS, Setup, WEBAPP_PASSWORD, emulator};

async fn open_gate() -> (tollgate::emulator::Emulator, Gateway, String) {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let token = gateway.admin().await.token.unwrap();
    (webapp, gateway, token)
}

/// Status line of the first response, and whether the connection was closed after it.
async fn first_line(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut raw = Raw::connect(gateway).await;
    raw.send(bytes).await;
    let text = raw.read_to_end().await;
    text.lines().next().unwrap_or("closed").to_owned()
}

#[expect(clippy::too_many_lines, reason = "one row per form")]
#[tokio::test(flavor = "multi_thread")]
async fn smuggling_shapes_get_400_and_the_connection_ends() {
    let (webapp, gateway, token) = open_gate().await;
    let line = "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n";
    let auth = format!("Authorization: Bearer {token}\r\n");
    let shapes: Vec<(&str, String)> = vec![
        (
            "CL and TE",
            format!("{line}{auth}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "TE and CL",
            format!("{line}{auth}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"),
        ),
        (
            "two equal CL",
            format!("{line}{auth}Content-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}"),
        ),
        (
            "two different CL",
            format!("{line}{auth}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"),
        ),
        (
            "list CL",
            format!("{line}{auth}Content-Length: 2, 2\r\n\r\n{{}}"),
        ),
        (
            "signed CL",
            format!("{line}{auth}Content-Length: +2\r\n\r\n{{}}"),
        ),
        (
            "negative CL",
            format!("{line}{auth}Content-Length: -2\r\n\r\n{{}}"),
        ),
        (
            "hex CL",
            format!("{line}{auth}Content-Length: 0x2\r\n\r\n{{}}"),
        ),
        ("empty CL", format!("{line}{auth}Content-Length: \r\n\r\n")),
        (
            "unknown TE",
            format!("{line}{auth}Transfer-Encoding: gzip\r\n\r\n"),
        ),
        (
            "TE list",
            format!("{line}{auth}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "TE twice",
            format!(
                "{line}{auth}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "TE odd",
            format!("{line}{auth}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ),
        ("obs-fold", format!("{line}{auth}X-A: b\r\n c\r\n\r\n")),
        (
            "space before colon",
            format!("{line}{auth}Content-Length : 2\r\n\r\n{{}}"),
        ),
        (
            "bare LF line",
            format!("{line}{auth}X-A: b\nX-C: d\r\n\r\n"),
        ),
        ("bare LF end", format!("{line}{auth}\n")),
        ("bare CR", format!("{line}{auth}X-A: b\rX-C: d\r\n\r\n")),
        ("NUL", format!("{line}{auth}X-A: b\0c\r\n\r\n")),
        (
            "HTTP/1.0 with TE",
            format!(
                "POST /v1/messages HTTP/1.0\r\nHost: localhost\r\n{auth}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        ("no Host", format!("GET /v1/support HTTP/1.1\r\n{auth}\r\n")),
        (
            "two Host",
            format!("GET /v1/support HTTP/1.1\r\nHost: a\r\nHost: b\r\n{auth}\r\n"),
        ),
        (
            "bad chunk",
            format!("{line}{auth}Transfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n"),
        ),
    ];
    let before = webapp.request_count("/v1/messages");
    for (what, bytes) in shapes {
        let status = first_line(&gateway, bytes.as_bytes()).await;
        assert!(
            status.starts_with("HTTP/1.1 400") || status.starts_with("HTTP/1.0 400"),
            "{what}: {status}"
        );
    }
    assert_eq!(
        webapp.request_count("/v1/messages"),
        before,
        "nothing was sent to the Webapp"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_paths_are_refused() {
    let (_webapp, gateway, token) = open_gate().await;
    let paths = [
        "/v1/../v1/support",
        "/v1/./support",
        "/v1//support",
        "/v1%2fsupport",
        "/v1/%2e%2e/support",
        "/v1\\support",
        "/v1/support%00",
        "/v1/support%zz",
        "/v1%5csupport",
        "//v1/support",
    ];
    for path in paths {
        let bytes = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        let status = first_line(&gateway, bytes.as_bytes()).await;
        assert!(status.starts_with("HTTP/1.1 400"), "{path}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn escapes_and_a_final_dot_bypass_no_rule() {
    let webapp = emulator().await;
    let routes = r#"
[[route]]
name = "inside"
hosts = "inside.example.org"
path = "/v1/other"
target = "closed"

[[route]]
name = "no.support"
path = "/v1/support"
target = "closed"

[[route]]
name = "everything"
path = "/v1/{node}"
access = "token"
"#;
    let setup = Setup::default().rest(&format!("{NO_LIMITS}{routes}"));
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    assert_eq!(
        client.get("/v1/other").await.status(),
        404,
        "the Webapp's own response"
    );
    let before = webapp.request_count("/");
    for path in [
        "/v1/support",
        "/v1/%73upport",
        "/%76%31/support/",
        "/v1/suppor%74?x",
    ] {
        assert_eq!(verdict(client.get(path).await).await, (404, 1006), "{path}");
    }
    let token = client.token.as_ref().unwrap();
    for host in [
        "inside.example.org",
        "INSIDE.example.org.",
        "inside.example.org.:8443",
    ] {
        let mut raw = Raw::connect(&gateway).await;
        let head = format!(
            "GET /v1/other HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        raw.send(head.as_bytes()).await;
        let response = raw.read_to_end().await;
        assert!(response.contains("\"code\":1006"), "{host}: {response}");
    }
    assert_eq!(
        webapp.request_count("/"),
        before,
        "nothing was sent to the upstream"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_get_responses_in_order() {
    let (_webapp, gateway, token) = open_gate().await;
    let one = format!(
        "GET /v1/support HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    let two = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: 50\r\n\r\n{:50}",
        r#"{"to":"1","type":"text","text":{"body":"x"}}"#
    );
    let three = "GET /v1/nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut raw = Raw::connect(&gateway).await;
    raw.send(format!("{one}{two}{three}").as_bytes()).await;
    let text = raw.read_to_end().await;
    let statuses: Vec<&str> = text
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|response| &response[..3])
        .collect();
    assert_eq!(statuses, ["200", "201", "404"], "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn continue_is_sent_only_after_the_client_is_known() {
    let (_webapp, gateway, token) = open_gate().await;
    let body = r#"{"to":"1","type":"text","text":{"body":"x"}}"#;
    let head = |auth: &str| {
        format!(
            "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {auth}\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            body.len()
        )
    };
    let mut raw = Raw::connect(&gateway).await;
    raw.send(head("wrong").as_bytes()).await;
    assert!(
        raw.read_until("\r\n\r\n").await.starts_with("HTTP/1.1 401"),
        "no 100 for an unknown client"
    );
    let mut raw = Raw::connect(&gateway).await;
    raw.send(head(&token).as_bytes()).await;
    assert!(raw.read_until("\r\n\r\n").await.starts_with("HTTP/1.1 100"));
    raw.send(body.as_bytes()).await;
    assert!(raw.read_until("\r\n\r\n").await.starts_with("HTTP/1.1 201"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_gets_the_gates_fields_and_none_that_a_client_forged() {
    let (webapp, gateway, token) = open_gate().await;
    let client = gateway.client().with_token(&token);
    webapp.echo(true);
    let request = client
        .request(Method::GET, "/v1/support")
        .header("x-forwarded-for", "6.6.6.6")
        .header("forwarded", "for=6.6.6.6")
        .header("x-real-ip", "6.6.6.6")
        .header("x-tollgate-client", "root")
        .header(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        );
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let seen: Value = response.json().await.unwrap();
    let seen = &seen["received"];
    assert_eq!(seen["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen["x-forwarded-proto"], "https");
    assert_eq!(seen["x-tollgate-client"], "admin");
    assert_eq!(seen["forwarded"], Value::Null);
    assert_eq!(seen["x-real-ip"], Value::Null);
    let trace = seen["traceparent"].as_str().unwrap();
    assert!(
        trace.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-")
            && !trace.contains("00f067aa0ba902b7")
    );
    assert!(
        !seen["authorization"]
            .as_str()
            .unwrap_or("")
            .contains(&token),
        "the client's token is not forwarded"
    );

    let underscore = client
        .request(Method::GET, "/v1/support")
        .header("x_forwarded_for", "6.6.6.6");
    assert_eq!(underscore.send().await.unwrap().status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_to_a_client_that_accepts_them() {
    let (webapp, gateway, token) = open_gate().await;
    webapp.trailers(true);
    let head =
        "GET /v1/support HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nConnection: TE, close\r\n";
    let mut raw = Raw::connect(&gateway).await;
    raw.send(format!("{head}Authorization: Bearer {token}\r\n\r\n").as_bytes())
        .await;
    let text = raw.read_to_end().await.to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 200"), "{text}");
    let (_, trailers) = text.rsplit_once("\r\n0\r\n").expect("chunked");
    assert!(trailers.contains("x-emulator-sha256: "), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echoed_token_is_redacted() {
    let (webapp, gateway, token) = open_gate().await;
    webapp.echo(true);
    let client = gateway.client().with_token(&token);
    let response = client.get("/v1/support").await;
    let head = format!("{:?}", response.headers());
    let text = response.text().await.unwrap();
    assert!(text.contains("echo"), "{text}");
    let tokens = webapp.live_tokens();
    assert!(!tokens.is_empty());
    for token in tokens {
        assert!(!head.contains(token.expose()), "the token is in a header");
        assert!(!text.contains(token.expose()), "the token is in the body");
    }
    assert!(!gateway.metrics.text().contains(WEBAPP_PASSWORD));
}
