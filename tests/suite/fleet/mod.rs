//! One gate in front of several upstreams: which of them a request reaches, and that none of them
//! concerns the others.

mod emulated;
mod independence;
mod relayed_users;
mod restricted_keys;
mod restricted_users;
mod routing;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::harness::login_upstream::KEY;
use crate::harness::raw::connected;
use crate::harness::received::{Received, exchange, exchange_http2};
use crate::harness::upstream::{Reply, Upstream, read_request};
use crate::harness::{Gateway, sha256};

/// The login of the gate at each upstream.
const LOGIN: &str = "login = { username = \"gate\", password = { file = \"webapp-password\" } }";

/// A configuration without shipped routes, and with an API key for all paths.
fn config(sections: &str) -> String {
    format!("profile = \"none\"\n{}", common(sections))
}

fn common(sections: &str) -> String {
    format!(
        r#"
workers = 2
[[listener]]
address = "127.0.0.1:0"
tls = {{ certificates = [{{ certificate = "certs/server.pem", key = "certs/server.key" }}] }}
[operator]
address = "127.0.0.1:0"
[store]
path = "memory"
[drain]
wait = "0s"
[[api_key]]
name = "caller"
sha256 = "{digest}"
paths = "/*"
{sections}
"#,
        digest = sha256(KEY)
    )
}

/// An upstream that responds with its name and the head of the request. Its token holds the name too.
async fn echo(name: &'static str) -> Upstream {
    Upstream::scripted(move |call| {
        if call.line() == "POST /v1/users/login" {
            return Reply::ok(&login_body(&format!("token-of-{name}")));
        }
        // The gate would remove its own token from the response.
        let head = call.head.replace("token-of-", "token of ");
        Reply::ok(&format!("{name}\n{head}"))
    })
    .await
}

/// What an `echo` says about the request that reached it.
struct Echoed {
    status: u16,
    name: String,
    target: String,
    head: String,
}

impl Echoed {
    fn of(received: &Received) -> Self {
        let text = received.text();
        let (name, head) = text.split_once('\n').unwrap_or_default();
        Self {
            status: received.status,
            name: name.to_owned(),
            target: head.split(' ').nth(1).unwrap_or_default().to_owned(),
            head: head.to_ascii_lowercase(),
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// GET over HTTP/1.1 with this request target and `Host`.
async fn get(gateway: &Gateway, target: &str, host: &str) -> Echoed {
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Apikey {KEY}\r\n\r\n");
    let tls = connected(gateway, &["http/1.1"]).await;
    Echoed::of(&exchange(tls, request.as_bytes(), false).await)
}

/// GET over HTTP/2 with this `:authority`.
async fn get_http2(gateway: &Gateway, path: &str, authority: &str) -> Echoed {
    let request = Request::builder()
        .uri(format!("https://{authority}{path}"))
        .header("authorization", format!("Apikey {KEY}"))
        .body(())
        .unwrap();
    Echoed::of(&exchange_http2(gateway, request).await)
}

/// A server for several users: the token of each names its user. Counts the connections that carried
/// tokens of more than one.
struct SharedServer {
    address: SocketAddr,
    mixed: Arc<AtomicUsize>,
}

impl SharedServer {
    fn mixed(&self) -> usize {
        self.mixed.load(Ordering::Relaxed)
    }
}

async fn shared_server() -> SharedServer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = SharedServer {
        address: listener.local_addr().unwrap(),
        mixed: Arc::default(),
    };
    let mixed = Arc::clone(&server.mixed);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let mixed = Arc::clone(&mixed);
            tokio::spawn(async move {
                let tokens = serve_users(tcp).await;
                mixed.fetch_add(usize::from(tokens > 1), Ordering::Relaxed);
            });
        }
    });
    server
}

/// Serves one connection; returns how many tokens it has carried.
async fn serve_users(mut tcp: TcpStream) -> usize {
    let mut tokens = BTreeSet::new();
    while let Some(head) = read_request(&mut tcp).await {
        let value = |scheme: &str| {
            let value = head.split(scheme).nth(1)?;
            value.split("\r\n").next().map(str::to_owned)
        };
        let reply = if head.starts_with("POST /v1/users/login") {
            let basic = STANDARD.decode(value("Basic ").unwrap()).unwrap();
            let basic = String::from_utf8(basic).unwrap();
            let user = basic.split(':').next().unwrap();
            let body = login_body(&format!("token-for-{user}"));
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        } else {
            tokens.extend(value("Bearer "));
            let body = format!("both\n{}", head.replace("token-for-", "token for "));
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        if tcp.write_all(reply.as_bytes()).await.is_err() {
            break;
        }
    }
    tokens.len()
}

fn login_body(token: &str) -> String {
    let end = tollgate::clock::unix_seconds() + 604_800;
    let end = tollgate::profiles::format_expiry(end);
    format!(r#"{{"users":[{{"token":"{token}","expires_after":"{end}"}}],"meta":{{}}}}"#)
}
