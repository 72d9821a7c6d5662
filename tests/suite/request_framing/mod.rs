//! Requests to the upstream: one message that gate and upstream read in the same way, or nothing.
//! docs/FRAMING.md has the rules.

mod fields;
mod matrix;
mod nginx;
mod recorder;
mod refusals;
mod relayed;
mod targets;

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::login_upstream::KEY;
use crate::harness::{Gateway, sha256};
use recorder::Recorder;

const TLS: usize = 0;
const PLAIN: usize = 1;

/// A gate with a TLS listener, the first, and a plain one.
async fn gate(upstream: &Recorder, http: &str, routes: &str) -> Gateway {
    Gateway::of_text(&config(&upstream.url(), http, routes)).await
}

fn config(url: &str, http: &str, routes: &str) -> String {
    format!(
        r#"
profile = "none"
workers = 2

[[listener]]
address = "127.0.0.1:0"
tls = {{ certificates = [{{ certificate = "certs/server.pem", key = "certs/server.key" }}] }}

[[listener]]
address = "127.0.0.1:0"

[operator]
address = "127.0.0.1:0"

[upstream.main]
url = "{url}"
login = {{ username = "admin", password = {{ file = "webapp-password" }} }}

{routes}

[[route]]
name = "open"
path = "/open/*"
access = "open"

[[route]]
name = "all"
path = "/all/*"
access = ["token", "api_key"]

[[api_key]]
name = "caller"
sha256 = "{digest}"
paths = "/*"

[http]
{http}

[store]
path = "memory"

[log]
format = "text"

[drain]
wait = "0s"
deadline = "20s"
"#,
        digest = sha256(KEY)
    )
}

/// Sends `bytes` to the plain listener; returns all bytes until the gate closes.
async fn exchange(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> String {
    let mut tcp = TcpStream::connect(gateway.addresses.listeners[PLAIN])
        .await
        .unwrap();
    // The gate may close before everything is sent.
    let _ = tcp.write_all(bytes.as_ref()).await;
    let mut text = Vec::new();
    let read = tcp.read_to_end(&mut text);
    let _ = tokio::time::timeout(Duration::from_secs(10), read).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// One HTTP/1.1 request with `fields`, each ended by CRLF; returns the whole response.
async fn send_request(gateway: &Gateway, line: &str, fields: &str) -> String {
    let head = format!(
        "{line} HTTP/1.1\r\nHost: gate.example:8443\r\nAuthorization: Apikey {KEY}\r\nConnection: close\r\n{fields}\r\n"
    );
    exchange(gateway, head).await
}

/// The status of a response.
fn status(response: &str) -> &str {
    response.get(9..12).unwrap_or(response)
}

/// An HTTP/2 client over TLS.
fn http2(gateway: &Gateway) -> reqwest::Client {
    let pem = std::fs::read(gateway.folder.path().join("certs/ca.pem")).unwrap();
    reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(&pem).unwrap()])
        .http2_prior_knowledge()
        .build()
        .unwrap()
}

fn http2_url(gateway: &Gateway, path: &str) -> String {
    format!(
        "https://localhost:{}{path}",
        gateway.addresses.listeners[TLS].port()
    )
}
