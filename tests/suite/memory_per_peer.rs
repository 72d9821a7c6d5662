//! An idle or stalled peer holds a bounded amount of the gate's memory, which goes back to
//! the system when the peer disconnects.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tollgate::emulator::certificates;

use crate::harness::program::{Program, free_port};
use crate::harness::upstream::login;
use crate::harness::{WEBAPP_PASSWORD, secret};

/// Length of a large response: more than the kernel buffers for a client that does not read.
const ANSWER: usize = 9_000_000;
/// Maximum KiB for a peer that does not read, or whose body is not read.
const STALLED: f64 = 160.0;
/// The same while the upstream does not read the body.
const NOT_TAKEN: f64 = 288.0;
/// KiB of an idle HTTP/2 connection: it keeps buffers of 28 KiB that are partly used.
const IDLE: f64 = 28.0;
/// Maximum KiB that may remain of all peers together after they disconnect.
const LEFT: i64 = 5 * 1024;
/// If more remains, the allocator may keep it: the same peers once more must not add more than this.
const ADDED_AGAIN: i64 = 1024;

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}
type Peer = Box<dyn Socket>;

/// The program in front of the test's upstream.
struct Gate {
    program: Program,
    plain: u16,
    http1: TlsConnector,
    http2: TlsConnector,
    _folder: TempDir,
}

impl Gate {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certs = folder.path().join("certs");
        certificates::make(&certs).unwrap();
        secret(&folder.path().join("webapp-password"), WEBAPP_PASSWORD);
        let plain = free_port();
        let file = folder.path().join("config.toml");
        std::fs::write(&file, config(upstream().await, plain)).unwrap();
        let authority = CertificateDer::from_pem_file(certs.join("ca.pem")).unwrap();
        Self {
            program: Program::serve(&file),
            plain,
            http1: connector(&authority, b"http/1.1"),
            http2: connector(&authority, b"h2"),
            _folder: folder,
        }
    }

    /// Anonymous memory of the program, in KiB.
    fn memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.program.pid());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        line.unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap()
    }

    /// The same after the allocator has returned freed memory.
    async fn memory_after_purge(&self) -> u64 {
        sleep(Duration::from_secs(6)).await;
        let mut last = self.memory();
        for _ in 0..20 {
            sleep(Duration::from_secs(1)).await;
            let now = self.memory();
            if now.abs_diff(last) < 32 {
                break;
            }
            last = now;
        }
        self.memory()
    }

    /// KiB for each of `count` peers, and what remains of all of them after ten seconds.
    async fn kib_per_peer(&self, count: usize, open: impl AsyncFn(&Self) -> Peer) -> (f64, i64) {
        let mut first = Vec::new();
        for _ in 0..4 {
            first.push(open(self).await); // these cause the one-time allocations
        }
        sleep(Duration::from_millis(500)).await;
        drop(first);
        let before = self.memory_after_purge().await;
        let mut peers = Vec::new();
        for _ in 0..count {
            peers.push(open(self).await);
        }
        let memory = self.memory_after_purge().await;
        drop(peers);
        let each = (memory.saturating_sub(before)) as f64 / count as f64;
        let left = self.left(before, LEFT).await;
        if left <= LEFT {
            return (each, left);
        }
        let mut peers = Vec::new();
        for _ in 0..count {
            peers.push(open(self).await);
        }
        drop(peers);
        let most = left + ADDED_AGAIN;
        let again = self.left(before, most).await;
        (each, if again <= most { LEFT } else { again })
    }

    /// What remains beside the memory `before`, once that is `enough` or after ten seconds.
    async fn left(&self, before: u64, enough: i64) -> i64 {
        let left = || i64::try_from(self.memory()).unwrap() - i64::try_from(before).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while left() > enough && Instant::now() < end {
            sleep(Duration::from_millis(250)).await;
        }
        let left = left();
        println!("{left} KiB left");
        left
    }

    async fn tcp(&self, port: u16) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let tcp = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp
    }

    async fn plain(&self, bytes: &[u8]) -> Peer {
        let mut tcp = self.tcp(self.plain).await;
        tcp.write_all(bytes).await.unwrap();
        Box::new(tcp)
    }

    async fn secured(&self, bytes: &[u8]) -> Peer {
        self.over(&self.http1, bytes).await
    }

    /// An HTTP/2 connection with `window` for each response, which sends `frames`.
    async fn http2(&self, window: u32, frames: &[u8]) -> Peer {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let window = [&[0, 4], &window.to_be_bytes()[..]].concat();
        bytes.extend(frame(4, 0, 0, &window));
        bytes.extend(frame(4, 1, 0, b""));
        bytes.extend(frames);
        self.over(&self.http2, &bytes).await
    }

    async fn over(&self, connector: &TlsConnector, bytes: &[u8]) -> Peer {
        let tcp = self.tcp(self.program.listener).await;
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls = connector.connect(name, tcp).await.unwrap();
        tls.write_all(bytes).await.unwrap();
        tls.flush().await.unwrap();
        Box::new(tls)
    }
}

fn connector(authority: &CertificateDer<'static>, protocol: &[u8]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsConnector::from(Arc::new(config))
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// HEADERS of a GET on `stream`.
fn get_frame(stream: u32, path: &str) -> Vec<u8> {
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "localhost"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        block.extend([0, u8::try_from(name.len()).unwrap()]);
        block.extend(name.as_bytes());
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    }
    frame(1, 5, stream, &block)
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
}

fn post(path: &str, length: usize) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")
        .into_bytes()
}

/// Responds by the path: "/large", "/chunked", "/events"; any other with a short body. Does
/// not read the body sent to "/full".
async fn upstream() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(response(tcp));
        }
    });
    port
}

async fn response(mut tcp: TcpStream) -> Option<()> {
    let large = vec![b'x'; ANSWER];
    loop {
        let head = read_head(&mut tcp).await?;
        let path = head.split(' ').nth(1)?.to_owned();
        if path == "/full" {
            std::future::pending::<()>().await;
        }
        let length = head.to_ascii_lowercase();
        let length = length
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = (&mut tcp).take(length.unwrap_or(0));
        tokio::io::copy(&mut body, &mut tokio::io::sink())
            .await
            .ok()?;
        let bytes: Vec<u8> = match path.as_str() {
            "/v1/users/login" => login(),
            "/large" => [
                &b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n"[..],
                &large,
            ]
            .concat(),
            "/chunked" => {
                let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
                for piece in large.chunks(30_000) {
                    bytes.extend(format!("{:x}\r\n", piece.len()).as_bytes());
                    bytes.extend(piece);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
                bytes
            }
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nshort".to_vec(),
        };
        tcp.write_all(&bytes).await.ok()?;
    }
}

async fn read_head(tcp: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(tcp.read_u8().await.ok()?);
    }
    String::from_utf8(bytes).ok()
}

fn config(upstream: u16, plain: u16) -> String {
    format!(
        r#"
profile = "none"
workers = 2

[[listener]]
address = "127.0.0.1:0"
tls = {{ certificates = [{{ certificate = "certs/server.pem", key = "certs/server.key" }}] }}

[[listener]]
address = "127.0.0.1:{plain}"

[operator]
address = "127.0.0.1:0"

[upstream.main]
url = "http://127.0.0.1:{upstream}"
login = {{ username = "admin", password = {{ file = "webapp-password" }} }}
concurrency = 1000

[log]
format = "text"

[users]

[store]
path = "memory"

[http]
min_body_rate = 0

[[route]]
name = "all"
path = "/*"
access = "open"
max_body = "100MB"
"#
    )
}

async fn bounded(max_kib: f64, count: usize, open: impl AsyncFn(&Gate) -> Peer) {
    let (each, left) = Gate::start().await.kib_per_peer(count, open).await;
    println!("{each:.1} KiB each, {left} KiB left of all");
    assert!(each <= max_kib, "{each:.1} KiB each");
    assert!(left <= LEFT, "{left} KiB are not released");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_client_that_reads_nothing_holds_little_of_its_response() {
    bounded(STALLED, 100, async |gate| gate.plain(&get("/large")).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_client_that_reads_nothing_holds_little_of_its_response() {
    bounded(STALLED, 100, async |gate| {
        gate.secured(&get("/large")).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_holds_little_of_a_chunked_response() {
    let open = async |gate: &Gate| gate.secured(&get("/chunked")).await;
    bounded(STALLED, 100, open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_window_holds_little_of_its_response() {
    let frames = get_frame(1, "/large");
    bounded(STALLED, 100, async |gate| gate.http2(0, &frames).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_arrives_byte_by_byte_holds_no_buffer_for_each_byte() {
    let open = async |gate: &Gate| {
        let mut tcp = gate.tcp(gate.plain).await;
        tcp.write_all(&post("/", 1000)).await.unwrap();
        for _ in 0..200 {
            tcp.write_all(b"x").await.unwrap();
            sleep(Duration::from_millis(2)).await;
        }
        Box::new(tcp) as Peer
    };
    bounded(STALLED, 20, open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_the_upstream_does_not_read_is_buffered_in_small_part() {
    let open = async |gate: &Gate| {
        let mut peer = gate.secured(&post("/full", 2 * ANSWER)).await;
        let body = vec![b'x'; ANSWER];
        // Sends as much as the connection accepts.
        let _ = timeout(Duration::from_millis(300), peer.write_all(&body)).await;
        peer
    };
    let gate = Gate::start().await;
    // Freed when the upstream's timeout ends; nothing is read from the client meanwhile.
    let (each, _) = gate.kib_per_peer(50, open).await;
    println!("{each:.1} KiB each");
    assert!(each <= NOT_TAKEN, "{each:.1} KiB each");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_http2_connection_holds_little_and_its_memory_is_released() {
    let frames = get_frame(1, "/short");
    let open = async |gate: &Gate| {
        let mut peer = gate.http2(65_535, &frames).await;
        // Settings, their acknowledgement, the response's head and body, in any pieces.
        let mut bytes = [0; 4096];
        let _ = timeout(Duration::from_secs(5), peer.read(&mut bytes)).await;
        peer
    };
    bounded(IDLE, 500, open).await;
}
