//! Refusals by the listener look like all others: the envelope, a request id, and one access
//! line with reason and peer.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::recorder::Recorder;
use super::{PLAIN, TLS, config};
use crate::harness::program::{Program, binary};
use crate::harness::upstream::Upstream;
use crate::harness::{WEBAPP_PASSWORD, secret};
use tollgate::emulator::certificates;

/// A program with a TLS and a plain listener, its log as JSON.
struct Gate {
    program: Program,
    ports: [u16; 2],
    folder: tempfile::TempDir,
}

fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

fn serve(file: &std::path::Path, port: u16) -> Program {
    let mut command = Command::new(binary());
    command.args(["serve", "--config"]).arg(file);
    let program = Program::with_ports(command, (port, 0));
    program.wait_for("ready to accept");
    program
}

impl Gate {
    fn start(url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        certificates::make(&folder.path().join("certs")).unwrap();
        secret(&folder.path().join("webapp-password"), WEBAPP_PASSWORD);
        let ports = [free_port(), free_port()];
        let mut text = config(url, "", "").replace("format = \"text\"", "format = \"json\"");
        for port in ports {
            let address = format!("[[listener]]\naddress = \"127.0.0.1:{port}\"");
            text = text.replacen("[[listener]]\naddress = \"127.0.0.1:0\"", &address, 1);
        }
        let file = folder.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        let program = serve(&file, ports[PLAIN]);
        Self {
            program,
            ports,
            folder,
        }
    }

    async fn exchange(&self, port: u16, bytes: &[u8]) -> String {
        let mut tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let _ = tcp.write_all(bytes).await;
        let mut text = Vec::new();
        let read = tcp.read_to_end(&mut text);
        let _ = tokio::time::timeout(Duration::from_secs(20), read).await;
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The one access line of the request with this id.
    fn line_of(&self, id: &str) -> Value {
        let wanted = format!("\"id\":\"{id}\"");
        self.program.wait_for(&wanted);
        let lines = self.program.lines();
        let lines: Vec<_> = lines.iter().filter(|line| line.contains(&wanted)).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        serde_json::from_str(lines[0]).unwrap()
    }
}

/// Checks the form of a response and of its access line.
fn check(gate: &Gate, what: &str, response: &str, status: u16, cause: &str) {
    let (head, body) = response
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{what}: {response:?}"));
    assert!(
        head.starts_with(&format!("HTTP/1.1 {status} ")),
        "{what}: {response}"
    );
    assert_eq!(head.matches("HTTP/1.1 ").count(), 1, "{what}: {response}");
    let field = |name: &str| {
        let mut lines = head.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("{what}: no {name} in {head}"))
    };
    assert_eq!(field("content-type"), "application/problem+json");
    assert_eq!(field("connection"), "close");
    assert_eq!(field("content-length"), body.len().to_string());
    assert!(field("date").ends_with(" GMT"));
    let problem: Value = serde_json::from_str(body).unwrap();
    assert_eq!(problem["status"], status, "{what}");
    assert_eq!(problem["instance"], field("x-request-id"), "{what}");
    let line = gate.line_of(field("x-request-id"));
    assert_eq!(line["status"], status, "{what}: {line}");
    assert_eq!(line["peer"], "127.0.0.1", "{what}");
    assert_eq!(line["blame"], "client", "{what}");
    let logged_cause = line["cause"].as_str().unwrap();
    assert!(logged_cause.contains(cause), "{what}: {logged_cause}");
    assert_eq!(line["outcome"], "complete", "{what}: {line}");
}

#[expect(clippy::too_many_lines, reason = "one row per case")]
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_head_gets_problem_details_an_id_and_a_line() {
    let upstream = Recorder::start().await;
    let gate = Gate::start(&upstream.url());
    let host = "Host: a\r\n";
    let large = "x".repeat(70_000);
    let many = "X: y\r\n".repeat(101);
    let cases: &[(&str, String, u16, &str)] = &[
        (
            "bad length",
            format!("POST /open/x HTTP/1.1\r\n{host}Content-Length: abc\r\n\r\n"),
            400,
            "Content-Length",
        ),
        (
            "two lengths",
            format!(
                "POST /open/x HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 1\r\n\r\nx"
            ),
            400,
            "framed twice",
        ),
        (
            "large field",
            format!("GET /open/x HTTP/1.1\r\n{host}X: {large}\r\n\r\n"),
            431,
            "over the limit",
        ),
        (
            "many fields",
            format!("GET /open/x HTTP/1.1\r\n{host}{many}\r\n"),
            431,
            "over the limit",
        ),
        (
            "long target",
            format!("GET /open/{large} HTTP/1.1\r\n{host}\r\n"),
            414,
            "over the limit",
        ),
        ("no request", "hello\r\n\r\n".to_owned(), 400, "method"),
        (
            "no target",
            "GET  HTTP/1.1\r\n\r\n".to_owned(),
            400,
            "target",
        ),
        (
            "fragment",
            format!("GET /open/x#y HTTP/1.1\r\n{host}\r\n"),
            400,
            "target",
        ),
        (
            "odd target",
            format!("GET a:b:c HTTP/1.1\r\n{host}\r\n"),
            400,
            "target",
        ),
        (
            "other version",
            format!("GET /open/x HTTP/3.0\r\n{host}\r\n"),
            400,
            "version",
        ),
        (
            "HTTP/2 without TLS",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            400,
            "version",
        ),
        (
            "bad name",
            format!("GET /open/x HTTP/1.1\r\n{host}a b: c\r\n\r\n"),
            400,
            "field name",
        ),
        (
            "control",
            format!("GET /open/x HTTP/1.1\r\n{host}a: \u{1}\r\n\r\n"),
            400,
            "control",
        ),
        (
            "no host",
            "GET /open/x HTTP/1.1\r\n\r\n".to_owned(),
            400,
            "Host",
        ),
        (
            "TLS",
            "\u{16}\u{3}\u{1}\u{2}\u{0}".to_owned(),
            400,
            "began with TLS",
        ),
    ];
    for (what, text, status, cause) in cases {
        let response = gate.exchange(gate.ports[PLAIN], text.as_bytes()).await;
        check(&gate, what, &response, *status, cause);
    }
    assert!(upstream.take().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_on_the_tls_port_gets_that_reason() {
    let upstream = Recorder::start().await;
    let gate = Gate::start(&upstream.url());
    for (what, text) in [
        ("GET", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("lower case", "get / HTTP/1.1\r\n\r\n"),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ] {
        let response = gate.exchange(gate.ports[TLS], text.as_bytes()).await;
        check(&gate, what, &response, 400, "this port speaks https");
        assert!(response.contains("this port speaks https"));
    }
    let large = format!("POST / HTTP/1.1\r\nHost: a\r\n\r\n{}", "x".repeat(500_000));
    let response = gate.exchange(gate.ports[TLS], large.as_bytes()).await;
    check(
        &gate,
        "with content",
        &response,
        400,
        "this port speaks https",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_handshake_is_logged_with_peer_and_cause_at_a_limited_rate() {
    let upstream = Recorder::start().await;
    let gate = Gate::start(&upstream.url());
    // A ClientHello of TLS 1.0, and bytes that are not TLS.
    let old = [
        &[0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 1][..],
        &[7; 32],
        &[0, 0, 2, 0, 0x2f, 1, 0],
    ]
    .concat();
    for _ in 0..8 {
        gate.exchange(gate.ports[TLS], &old).await;
        gate.exchange(gate.ports[TLS], &[0, 1, 2, 3, 4, 5, 6, 7])
            .await;
    }
    let line = gate.program.wait_for("TLS handshake failed");
    let line: Value = serde_json::from_str(&line).unwrap();
    assert!(
        line["peer"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{line}"
    );
    assert!(!line["cause"].as_str().unwrap().is_empty(), "{line}");
    let warnings = gate.program.lines();
    let warnings = warnings
        .iter()
        .filter(|line| line.contains("TLS handshake failed"))
        .count();
    assert!(warnings <= 2, "one per worker: {warnings}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_comes_after_the_earlier_responses() {
    let upstream = Upstream::start(|_| crate::harness::upstream::Reply::ok("slow")).await;
    let gate = Gate::start(&format!("http://{}", upstream.address));
    let good = "GET /open/x HTTP/1.1\r\nHost: a\r\n\r\n";
    for bad in [
        "\n",
        "G\0T / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
    ] {
        let response = gate
            .exchange(
                gate.ports[PLAIN],
                format!("{good}{good}{bad}{good}").as_bytes(),
            )
            .await;
        let statuses: Vec<_> = response
            .split("HTTP/1.1 ")
            .skip(1)
            .map(|one| &one[..3])
            .collect();
        assert_eq!(statuses, ["200", "200", "400"], "{response}");
        let last = response.rsplit_once("HTTP/1.1 400").unwrap().1;
        check(&gate, "pipelined", &format!("HTTP/1.1 400{last}"), 400, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_head_gets_408_in_the_same_format() {
    let upstream = Recorder::start().await;
    let mut gate = Gate::start(&upstream.url());
    let file = gate.folder.path().join("config.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let plain = gate.ports[PLAIN];
    let line = format!("address = \"127.0.0.1:{plain}\"");
    std::fs::write(
        &file,
        text.replace(&line, &format!("{line}\nheader_timeout = \"500ms\"")),
    )
    .unwrap();
    drop(gate.program);
    gate.program = serve(&file, plain);
    let begin = Instant::now();
    let response = gate.exchange(plain, b"GET /open/x HTTP/1.1\r\nHost:").await;
    assert!(begin.elapsed() < Duration::from_secs(10));
    check(&gate, "slow", &response, 408, "over its time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_over_http2_gets_problem_details_too() {
    let upstream = Recorder::start().await;
    let gateway = super::gate(&upstream, "", "").await;
    let request = super::http2(&gateway).get(super::http2_url(&gateway, "/open/x"));
    let response = request
        .header("x-large", "x".repeat(70_000))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 431);
    assert!(response.headers().contains_key("x-request-id"));
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["status"], 431);
    assert!(upstream.take().is_empty());
}
