//! A server with scripted faults that counts what reaches it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::harness::upstream::login;

/// What happens to each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// 200 after this time, with the number of bytes of the body.
    Works(Duration),
    Status(u16, Duration),
    /// The whole request is read, then the connection ends.
    Closes,
    /// The head and this much of the body are read, then the connection is reset.
    Resets(usize),
    /// Nothing is answered.
    Hangs,
}

pub(super) const WORKS: Fault = Fault::Works(Duration::ZERO);

/// Lives until the test's runtime ends, or until it is killed.
#[derive(Clone)]
pub(super) struct EndpointServer {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    fault: Mutex<Fault>,
    /// The status of `/health`.
    health: AtomicUsize,
    checks: AtomicUsize,
    /// Request lines, without logins and the gate's own probes and checks.
    requests: Mutex<Vec<String>>,
    connections: Mutex<Vec<JoinHandle<()>>>,
    accepting: Mutex<Option<JoinHandle<()>>>,
    is_alive: AtomicBool,
}

impl EndpointServer {
    pub(super) async fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            shared: Arc::new(Shared {
                fault: Mutex::new(fault),
                health: AtomicUsize::new(200),
                checks: AtomicUsize::new(0),
                requests: Mutex::default(),
                connections: Mutex::default(),
                accepting: Mutex::default(),
                is_alive: AtomicBool::new(true),
            }),
        };
        server.accept(listener);
        server
    }

    fn accept(&self, listener: TcpListener) {
        let server = self.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let serving = server.clone();
                let connection = tokio::spawn(async move {
                    let _ = serving.serve(tcp).await;
                });
                server.shared.connections.lock().unwrap().push(connection);
            }
        });
        *self.shared.accepting.lock().unwrap() = Some(accepting);
    }

    /// Ends the listener and all connections, as the end of the process would.
    pub(super) fn kill(&self) {
        self.shared.is_alive.store(false, Ordering::SeqCst);
        if let Some(accepting) = self.shared.accepting.lock().unwrap().take() {
            accepting.abort();
        }
        let mut connections = self.shared.connections.lock().unwrap();
        connections.drain(..).for_each(|one| one.abort());
    }

    /// Listens at the same address again.
    pub(super) async fn revive(&self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        };
        self.shared.is_alive.store(true, Ordering::SeqCst);
        self.accept(listener);
    }

    pub(super) fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    pub(super) fn set_health(&self, status: u16) {
        self.shared.health.store(status.into(), Ordering::SeqCst);
    }

    pub(super) fn checks(&self) -> usize {
        self.shared.checks.load(Ordering::SeqCst)
    }

    /// The requests whose head has arrived.
    pub(super) fn requests(&self) -> usize {
        self.shared.requests.lock().unwrap().len()
    }

    /// Those with this method and path.
    pub(super) fn count(&self, line: &str) -> usize {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().filter(|one| *one == line).count()
    }

    async fn serve(&self, mut tcp: TcpStream) -> std::io::Result<()> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(tcp.read_u8().await?);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let line = head.lines().next().unwrap_or_default();
            let line = line.trim_end_matches(" HTTP/1.1").to_owned();
            if line == "GET /" {
                // The gate's own probe after a failure: it fails as requests do.
                match *self.shared.fault.lock().unwrap() {
                    Fault::Works(_) | Fault::Status(..) => {}
                    _ => return Ok(()),
                }
                tcp.write_all(&response(200, "probed")).await?;
                continue;
            }
            if line.starts_with("GET /health") {
                self.shared.checks.fetch_add(1, Ordering::SeqCst);
                let status = self.shared.health.load(Ordering::SeqCst);
                tcp.write_all(&response(status, "checked")).await?;
                continue;
            }
            if line == "POST /v1/users/login" {
                tcp.write_all(&login()).await?;
                continue;
            }
            self.shared.requests.lock().unwrap().push(line);
            let length = length(&head);
            let fault = *self.shared.fault.lock().unwrap();
            if let Fault::Resets(most) = fault {
                read(&mut tcp, length.min(most)).await?;
                tcp.set_zero_linger()?;
                return Ok(());
            }
            let read = read(&mut tcp, length).await?;
            match fault {
                Fault::Works(pause) => {
                    sleep(pause).await;
                    tcp.write_all(&response(200, &read.to_string())).await?;
                }
                Fault::Status(status, pause) => {
                    sleep(pause).await;
                    tcp.write_all(&response(status.into(), "failed")).await?;
                }
                Fault::Hangs => std::future::pending().await,
                Fault::Closes | Fault::Resets(_) => return Ok(()),
            }
        }
    }
}

async fn read(tcp: &mut TcpStream, length: usize) -> std::io::Result<usize> {
    let mut left = length;
    let mut piece = vec![0; 64 * 1024];
    while left > 0 {
        let most = left.min(piece.len());
        match tcp.read(&mut piece[..most]).await? {
            0 => break,
            count => left -= count,
        }
    }
    Ok(length - left)
}

fn length(head: &str) -> usize {
    let head = head.to_ascii_lowercase();
    let mut lines = head.lines();
    let length = lines.find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    length.unwrap_or(0)
}

fn response(status: usize, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}
