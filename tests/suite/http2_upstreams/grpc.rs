//! The real client and server of gRPC, with the gate between them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use http::Response;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tollgate::emulator::certificates;

use super::config;
use crate::harness::login_upstream::KEY;
use crate::harness::{Gateway, sha256};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/http2_upstreams");

fn python() -> Command {
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/bin/python");
    assert!(
        Path::new(python).exists(),
        "grpcio: tests/run.sh installs it"
    );
    Command::new(python)
}

/// The server; ends with the test.
struct GrpcServer {
    process: Child,
    port: u16,
    folder: TempDir,
}

impl GrpcServer {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certs = folder.path().join("certs");
        certificates::make(&certs).unwrap();
        let mut process = python()
            .arg(format!("{FOLDER}/grpc_server.py"))
            .args([certs.join("server.pem"), certs.join("server.key")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        Self {
            process,
            port: line.trim().parse().unwrap(),
            folder,
        }
    }
}

impl Drop for GrpcServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A server whose streams end without trailers.
async fn cut_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            tokio::spawn(async move {
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let head = Response::builder().header("content-type", "application/grpc");
                    let head = head.body(()).unwrap();
                    let mut stream = respond.send_response(head, false).unwrap();
                    let message = Bytes::from_static(b"\0\0\0\0\x03one");
                    stream.send_data(message, true).unwrap();
                }
            });
        }
    });
    port
}

fn route(name: &str, upstream: &str, access: &str) -> String {
    format!(
        "[[route]]\nname = \"{name}\"\npath = \"/{name}.Calls/*\"\nupstream = \"{upstream}\"\n\
         access = [\"{access}\"]\nclass = \"{name}\"\ntimeout = \"2s\"\nmax_body = \"10MB\"\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_client_sees_the_status_of_each_call() {
    let server = GrpcServer::start();
    let ca = server.folder.path().join("certs/ca.pem");
    let sections = format!(
        r#"
[[api_key]]
name = "other"
sha256 = "{other}"
paths = "/other/*"
[upstream.calls]
url = "https://127.0.0.1:{port}"
server_name = "localhost"
ca = "{ca}"
http2 = "auto"
first_byte_timeout = "1s"
body_idle_timeout = "1s"
[upstream.cut]
url = "http://127.0.0.1:{cut}"
http2 = "always"
[upstream.dead]
url = "http://127.0.0.1:1"
http2 = "always"
[upstream.locked]
url = "http://127.0.0.1:1"
http2 = "always"
required = false
login = {{ username = "gate", password = {{ file = "webapp-password" }} }}
[[limit]]
name = "few"
key = "peer"
classes = ["few"]
rate = "1/m"
{routes}
"#,
        other = sha256("other-case-key-2"),
        port = server.port,
        ca = ca.display(),
        cut = cut_server().await,
        routes = [
            route("test", "calls", "open"),
            route("few", "calls", "open"),
            route("cut", "cut", "open"),
            route("dead", "dead", "open"),
            route("locked", "locked", "api_key"),
        ]
        .concat(),
    );
    let gateway = Gateway::of_text(&config(&sections)).await;
    let port = gateway.addresses.listeners[0].port().to_string();
    let authority = gateway.folder.path().join("certs/ca.pem");
    let client = tokio::task::spawn_blocking(move || {
        python()
            .arg(format!("{FOLDER}/grpc_client.py"))
            .arg(port)
            .arg(authority)
            .arg(KEY)
            .output()
            .unwrap()
    });
    let output = client.await.unwrap();
    let (out, error) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    for expected in [
        "echo: hello [0]",
        "not found:  [5] no such thing: 100 % sure",
        "two: one two [10] enough",
        "quiet: one two [0]",
        "no key:  [16] Invalid credentials",
        "forbidden:  [7]",
        "no route:  [12] No such path on this gateway",
        "slow:  [4]",
        "client's deadline:  [4]",
        "unreachable:  [14]",
        "remaining: True",
        "trailers: whole",
        "count: 3000000",
        "many: 2000",
        "chat: 0 True",
        "after: well [0]",
        "limited:  [8] Too many requests, slow down",
    ] {
        assert!(out.contains(expected), "{expected}\n{out}\n{error}");
    }
    // The client may drop a message whose stream ends without trailers right behind it.
    let cut = out.lines().find(|line| line.starts_with("cut: "));
    assert!(cut.is_some_and(|cut| !cut.contains("[0]")), "{out}");
    assert!(output.status.success(), "{error}");
}
