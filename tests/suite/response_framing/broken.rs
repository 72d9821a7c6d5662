//! Responses that end early, at each possible point.

use std::process::Command;
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::harness::eventually;
use crate::harness::program::{Program, binary};
use crate::harness::received::{ClientProtocol, Received, exchange, send_request};
use crate::harness::scripted::{ScriptedUpstream, Step, key_field, not_found, say};

const LARGE: usize = 100_000;

fn head(version: &str, fields: &str) -> Step {
    say(&format!("HTTP/{version} 200 OK\r\n{fields}\r\n"))
}

fn some(length: usize) -> Step {
    Step::Say(vec![b'x'; length])
}

/// A pause, so that the bytes are read before the connection ends.
fn settle() -> Step {
    Step::Pause(Duration::from_millis(100))
}

fn responses(request: &str) -> Vec<Step> {
    let chunk = || say(&format!("{LARGE:x}\r\n{}\r\n", "x".repeat(LARGE)));
    let chunked = || head("1.1", "Transfer-Encoding: chunked\r\n");
    let length = || head("1.1", &format!("Content-Length: {LARGE}\r\n"));
    match request.split(' ').nth(1).unwrap() {
        "/old" => vec![head("1.0", ""), some(LARGE), Step::Close],
        "/old-reset" => vec![head("1.0", ""), some(LARGE), settle(), Step::Reset],
        "/old-length-reset" => {
            let fields = format!("Content-Length: {}\r\n", LARGE + 1);
            vec![head("1.0", &fields), some(LARGE), settle(), Step::Reset]
        }
        "/close-reset" => vec![head("1.1", ""), some(LARGE), settle(), Step::Reset],
        // Over TLS this ends without close_notify.
        "/close-cut" => vec![head("1.1", ""), some(LARGE), settle(), Step::Cut],
        "/close" => vec![head("1.1", ""), some(LARGE), settle(), Step::Close],
        "/length-cut" => vec![length(), some(LARGE / 2), settle(), Step::Close],
        "/chunked-cut" => vec![chunked(), chunk(), settle(), Step::Close],
        "/chunked-broken" => vec![chunked(), chunk(), settle(), say("zz\r\n")],
        "/first-chunk-broken" => vec![chunked(), say("zz\r\nok\r\n0\r\n\r\n")],
        "/first-chunk-late-and-broken" => {
            let late = Step::Pause(Duration::from_millis(5));
            vec![chunked(), late, say("5"), say("zz\r\n")]
        }
        "/head-then-reset" => vec![chunked(), Step::Reset],
        "/head-then-close" => vec![chunked(), Step::Close],
        "/old-head-then-reset" => {
            vec![
                head("1.0", ""),
                Step::Pause(Duration::from_millis(5)),
                Step::Reset,
            ]
        }
        "/length-head-then-close" => vec![length(), Step::Close],
        "/empty" => vec![chunked(), say("0\r\n\r\n")],
        "/late" => {
            let late = Step::Pause(Duration::from_millis(1500));
            vec![chunked(), late, say("2\r\nok\r\n0\r\n\r\n")]
        }
        "/events" => {
            let fields = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n";
            let late = Step::Pause(Duration::from_millis(1500));
            vec![head("1.1", fields), late, say("0\r\n\r\n")]
        }
        _ => vec![not_found()],
    }
}

const ALL: [ClientProtocol; 4] = [
    ClientProtocol::Http10,
    ClientProtocol::Http11,
    ClientProtocol::Tls11,
    ClientProtocol::Http2,
];

#[tokio::test(flavor = "multi_thread")]
async fn an_http_1_0_response_is_sent_in_the_gates_own_version() {
    let upstream = ScriptedUpstream::plain(responses).await;
    let gateway = upstream.gate("", "").await;
    for how in ALL {
        let whole = send_request(&gateway, how, &Method::GET, "/old").await;
        assert_eq!(
            (whole.status, whole.body.len(), whole.is_whole),
            (200, LARGE, true)
        );
        let version = match how {
            ClientProtocol::Http10 => "HTTP/1.0",
            ClientProtocol::Http11 | ClientProtocol::Tls11 => "HTTP/1.1",
            ClientProtocol::Http2 => "",
        };
        assert_eq!(whole.version, version);
        let is_chunked = whole.all("transfer-encoding") == ["chunked"];
        assert_eq!(
            is_chunked,
            matches!(how, ClientProtocol::Http11 | ClientProtocol::Tls11)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_response_never_looks_complete() {
    for is_tls in [false, true] {
        let upstream = ScriptedUpstream::start(responses, is_tls).await;
        let gateway = upstream.gate("", "").await;
        let mut paths = vec![
            "/old-reset",
            "/old-length-reset",
            "/close-reset",
            "/length-cut",
            "/chunked-cut",
            "/chunked-broken",
        ];
        if is_tls {
            paths.push("/close-cut");
        }
        for how in ALL {
            for path in &paths {
                let broken = send_request(&gateway, how, &Method::GET, path).await;
                let seen = (broken.status, broken.is_whole);
                assert_eq!(seen, (200, false), "{how:?} {path} tls {is_tls}");
                assert!(!broken.body.is_empty(), "{how:?} {path} tls {is_tls}");
            }
            // The connection or stream ends as the version requires.
            let whole = send_request(&gateway, how, &Method::GET, "/close").await;
            assert_eq!((whole.body.len(), whole.is_whole), (LARGE, true), "{how:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_breaks_before_its_first_body_byte_is_a_502() {
    for is_tls in [false, true] {
        let upstream = ScriptedUpstream::start(responses, is_tls).await;
        let gateway = upstream.gate("", "").await;
        for how in ALL {
            for path in [
                "/first-chunk-broken",
                "/first-chunk-late-and-broken",
                "/head-then-reset",
                "/head-then-close",
                "/old-head-then-reset",
                "/length-head-then-close",
            ] {
                let mut refused = send_request(&gateway, how, &Method::GET, path).await;
                for _ in 0..2 {
                    if refused.status != 502 {
                        // On a busy machine the end may come after the head was sent.
                        assert!(!refused.is_whole && refused.body.is_empty());
                        refused = send_request(&gateway, how, &Method::GET, path).await;
                    }
                }
                let seen = (refused.status, refused.is_whole);
                assert_eq!(seen, (502, true), "{how:?} {path} tls {is_tls}");
            }
            let empty = send_request(&gateway, how, &Method::GET, "/empty").await;
            assert_eq!(
                (empty.status, empty.body.len(), empty.is_whole),
                (200, 0, true)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_whose_body_is_late_is_sent_at_once() {
    let upstream = ScriptedUpstream::plain(responses).await;
    let gateway = upstream.gate("", "").await;
    let client = gateway.client();
    for path in ["/late", "/events"] {
        let began = std::time::Instant::now();
        let request = client.request(Method::GET, path);
        let (name, value) = ("authorization", key_field()[15..].to_owned());
        let response = request.header(name, value).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(
            began.elapsed() < Duration::from_millis(700),
            "{:?}",
            began.elapsed()
        );
        let body = response.text().await.unwrap();
        assert_eq!(body, if path == "/late" { "ok" } else { "" });
    }
}

/// The access line of the request for `path`.
async fn record(program: &Program, path: &str) -> Value {
    let mut found = None;
    eventually(&format!("the access line of {path}"), async || {
        found = program.lines().into_iter().find_map(|line| {
            let line: Value = serde_json::from_str(&line).ok()?;
            (line["target"] == "tollgate::access" && line["path"] == path).then_some(line)
        });
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_line_names_the_failure_and_the_party_to_blame() {
    let upstream = ScriptedUpstream::plain(responses).await;
    let ports = (
        crate::harness::program::free_port(),
        crate::harness::program::free_port(),
    );
    let rest = "[log]\nformat = \"json\"";
    let text = upstream.config("", rest);
    // The plain listener and the operator have known ports.
    let text = text.replace(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n\n[operator]\naddress = \"127.0.0.1:0\"",
        &format!(
            "[[listener]]\naddress = \"127.0.0.1:{}\"\n\n[operator]\naddress = \"127.0.0.1:{}\"",
            ports.0, ports.1
        ),
    );
    let file = upstream.folder().join("config.toml");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(binary());
    command.args(["serve", "--config"]).arg(&file);
    let program = Program::with_ports(command, ports);
    program.wait_for("ready to accept");
    let get = async |path: &str| -> Received {
        let tcp = TcpStream::connect(("127.0.0.1", ports.0)).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n",
            key_field()
        );
        exchange(tcp, request.as_bytes(), false).await
    };
    for (path, status, end, reason) in [
        ("/old-reset", 200, "aborted", Value::Null),
        ("/chunked-cut", 200, "aborted", Value::Null),
        (
            "/first-chunk-broken",
            502,
            "complete",
            "bad_response".into(),
        ),
        ("/head-then-reset", 502, "complete", "bad_response".into()),
    ] {
        assert_eq!(get(path).await.status, status, "{path}");
        let line = record(&program, path).await;
        assert_eq!(line["outcome"], end, "{line}");
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(line["blame"], "upstream", "{line}");
        assert_eq!(line["reason"], reason, "{line}");
    }
}
