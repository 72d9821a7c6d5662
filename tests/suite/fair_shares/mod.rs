//! No client can hold what the others need: beside a client with heavy load, another one keeps its
//! responses and its speed.

mod bodies;
mod requests;
mod windows;

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::harness::upstream::login;
use crate::harness::{Client, Gateway, NO_LIMITS, Setup, sha256};

const FIRST_CLIENT: &str = "first-key-0123456789";
const OTHER_CLIENT: &str = "other-key-0123456789";
/// Length of the response to `/large`.
const LARGE: usize = 50_000_000;
/// The time that a busy machine may take for a request under load.
const FLOOR: Duration = Duration::from_secs(1);

/// An upstream in plain HTTP/1.1: `/x/large` has a large response, `/x/slow` takes 100 ms,
/// `/x/sink` never reads a body, `/x/early` begins its response before it reads the body,
/// everything else is read and gets a response at once.
async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp));
        }
    });
    address
}

async fn serve(mut tcp: TcpStream) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        if head.contains(" /x/sink") {
            sleep(Duration::from_secs(600)).await;
        }
        if head.starts_with("post /v1/users/login") {
            tcp.write_all(&login()).await?;
            continue;
        }
        if head.contains(" /x/early") {
            let start = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
            tcp.write_all(start.as_bytes()).await?;
        }
        let body = read_body(&mut tcp, &head).await?;
        if head.contains(" /x/slow") {
            sleep(Duration::from_millis(100)).await;
        }
        if head.contains(" /x/large") {
            let start = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
            tcp.write_all(start.as_bytes()).await?;
            let piece = [b'x'; 50_000];
            for _ in 0..LARGE / piece.len() {
                tcp.write_all(&piece).await?;
            }
            continue;
        }
        let text = body.to_string();
        let response = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        tcp.write_all(response.as_bytes()).await?;
    }
}

/// Returns the body's length.
async fn read_body(tcp: &mut TcpStream, head: &str) -> std::io::Result<usize> {
    let length = |line: &str| line.strip_prefix("content-length: ")?.parse().ok();
    if let Some(length) = head.lines().find_map(length) {
        tcp.read_exact(&mut vec![0; length]).await?;
        return Ok(length);
    }
    if !head.contains("transfer-encoding: chunked") {
        return Ok(0);
    }
    let (mut all, mut total) = (Vec::new(), 0);
    while !all.ends_with(b"0\r\n\r\n") {
        all.push(tcp.read_u8().await?);
        total += 1;
    }
    Ok(total)
}

/// A gate with two keys and routes to that upstream.
async fn gate(upstream: SocketAddr, setup: Setup) -> Gateway {
    let keys = [("first", FIRST_CLIENT), ("other", OTHER_CLIENT)].map(|(name, key)| {
        let digest = sha256(key);
        format!("[[api_key]]\nname = \"{name}\"\nsha256 = [\"{digest}\"]\npaths = [\"/*\"]\n")
    });
    let limits = if setup.rest.contains("[limits]") {
        ""
    } else {
        NO_LIMITS
    };
    let rest = format!(
        r#"{limits}
[[route]]
name = "x.watch"
path = "/x/watch"
access = ["api_key"]
monitoring = true

[[route]]
name = "x"
path = "/x/*"
access = ["api_key"]
max_body = "100MiB"
timeout = "10m"

{}"#,
        keys.concat()
    );
    Gateway::before(&format!("http://{upstream}"), setup.rest(&rest)).await
}

/// A client with one connection pool and one key.
struct KeyClient {
    client: Client,
    key: &'static str,
}

impl KeyClient {
    fn new(gateway: &Gateway, key: &'static str) -> Self {
        let client = Client::http1(gateway);
        Self { client, key }
    }

    async fn get(&self, path: &str) -> reqwest::Result<StatusCode> {
        let request = self.client.request(Method::GET, path);
        let response = request.header("x-api-key", self.key).send().await?;
        let status = response.status();
        response.bytes().await?;
        Ok(status)
    }

    /// Sends `count` requests one by one. Returns how many got 200, and the longest time excluding
    /// the slowest few.
    async fn tries(&self, path: &str, count: usize) -> (usize, Duration) {
        let (mut good, mut times) = (0, Vec::new());
        for _ in 0..count {
            let began = Instant::now();
            let response = timeout(Duration::from_secs(20), self.get(path)).await;
            good += usize::from(matches!(response, Ok(Ok(StatusCode::OK))));
            times.push(began.elapsed());
        }
        times.sort();
        (good, times[count * 99 / 100 - 1])
    }
}

/// Checks that the other client is served as if it were alone.
async fn assert_other_client_is_served(gateway: &Gateway, idle_latency: Duration, what: &str) {
    let other_client = KeyClient::new(gateway, OTHER_CLIENT);
    for path in ["/x/quick", "/x/watch"] {
        let (good, slowest) = other_client.tries(path, 100).await;
        assert!(good >= 95, "{what}: {good} of 100 to {path}");
        let limit = FLOOR.max(idle_latency * 5);
        assert!(
            slowest < limit,
            "{what}: {slowest:?} to {path}, without load {idle_latency:?}"
        );
    }
}

/// The time of the other client's requests without load.
async fn idle_latency(gateway: &Gateway) -> Duration {
    let other_client = KeyClient::new(gateway, OTHER_CLIENT);
    other_client.tries("/x/watch", 3).await;
    let (good, slowest) = other_client.tries("/x/quick", 100).await;
    assert_eq!(good, 100);
    slowest
}
