//! A scripted HTTP/1.1 server that sends the bytes of the test.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::clock;
use crate::lifecycle::{ShutdownSignal, TaskSet};
use crate::profiles::format_expiry;

/// One request as received.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Counts requests of all connections, from 1.
    pub(super) number: usize,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Call {
    pub(super) fn has_line(&self, line: &str) -> bool {
        self.head
            .lines()
            .any(|have| have.eq_ignore_ascii_case(line))
    }
}

/// The server's reaction to a request.
pub(super) struct Reply {
    bytes: Vec<u8>,
    permits: Option<Arc<Semaphore>>,
    /// A permit that closing waits for.
    last: Option<Arc<Semaphore>>,
    closes: bool,
}

impl Reply {
    pub(super) fn raw(text: impl Into<Vec<u8>>) -> Self {
        Self {
            bytes: text.into(),
            permits: None,
            last: None,
            closes: false,
        }
    }

    pub(super) fn with(status: u16, headers: &str, body: &str) -> Self {
        let length = body.len();
        Self::raw(format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        ))
    }

    /// A good login; `skew` is how far this server's clock is ahead.
    pub(super) fn login_at(token: &str, life: i64, skew: i64) -> Self {
        let date = clock::wall() + std::time::Duration::from_secs(7200)
            - std::time::Duration::from_secs(u64::try_from(7200 - skew).unwrap());
        let now = date
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let end = format_expiry(i64::try_from(now).unwrap() + life);
        let date = httpdate::fmt_http_date(date);
        let body =
            format!(r#"{{"users":[{{"token":"{token}","expires_after":"{end}"}}],"meta":{{}}}}"#);
        Self::with(200, &format!("Date: {date}\r\n"), &body)
    }

    pub(super) fn login(token: &str, life: i64) -> Self {
        Self::login_at(token, life, 0)
    }

    /// Sent only after the test adds a permit.
    pub(super) fn after(mut self, permits: &Arc<Semaphore>) -> Self {
        self.permits = Some(Arc::clone(permits));
        self
    }

    /// Sent at once; the connection closes when the test adds a permit.
    pub(super) fn then_close_after(mut self, permits: &Arc<Semaphore>) -> Self {
        self.last = Some(Arc::clone(permits));
        self.then_close()
    }

    pub(super) fn then_close(mut self) -> Self {
        self.closes = true;
        self
    }
}

pub(super) fn permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(0))
}

type Script = dyn Fn(&Call) -> Reply + Send + Sync;

/// The server; lives until the test's runtime ends.
pub(super) struct Webapp {
    pub(super) address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    ended: AtomicUsize,
    calls: Mutex<Vec<Call>>,
}

impl Webapp {
    pub(super) async fn start(script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), None, script).await
    }

    pub(super) async fn start_at(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        script: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let script: Arc<Script> = Arc::new(script);
        let tasks = TaskSet::new(Handle::current());
        let (ours, on) = (Arc::clone(&seen), tasks.clone());
        tasks.spawn("scripted server", async move {
            while let Ok((tcp, _)) = listener.accept().await {
                ours.connections.fetch_add(1, Ordering::SeqCst);
                let (seen, script, tls) = (Arc::clone(&ours), Arc::clone(&script), tls.clone());
                on.spawn("scripted connection", async move {
                    match tls {
                        None => serve(tcp, &seen, &script).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(tcp).await {
                                serve(stream, &seen, &script).await;
                            }
                        }
                    }
                    seen.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, seen }
    }

    /// Serves plain HTTP at a Unix socket until `stop` drains; then all its connections are closed too.
    pub(super) fn start_at_socket(
        path: &Path,
        stop: &ShutdownSignal,
        script: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let seen = Arc::new(Seen::default());
        let script: Arc<Script> = Arc::new(script);
        let tasks = TaskSet::new(Handle::current());
        let (ours, on, stop) = (Arc::clone(&seen), tasks.clone(), stop.clone());
        tasks.spawn("scripted socket", async move {
            loop {
                let stream = tokio::select! {
                    () = stop.draining() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                ours.connections.fetch_add(1, Ordering::SeqCst);
                let (seen, script, stop) = (Arc::clone(&ours), Arc::clone(&script), stop.clone());
                on.spawn("scripted connection", async move {
                    tokio::select! {
                        () = stop.draining() => {}
                        () = serve(stream, &seen, &script) => {}
                    }
                    seen.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        let address = "127.0.0.1:0".parse().unwrap();
        Self { address, seen }
    }

    pub(super) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub(super) fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    /// Connections that are over.
    pub(super) fn ended(&self) -> usize {
        self.seen.ended.load(Ordering::SeqCst)
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.seen.calls.lock().unwrap().clone()
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    seen: &Seen,
    script: &Arc<Script>,
) {
    let mut read = Vec::new();
    while let Some((head, length, rest)) = read_head(&mut stream, &mut read).await {
        let number = seen.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let mut call = Call {
            number,
            head,
            body: rest,
        };
        // `Early: yes` requests the response before the body is read.
        while call.body.len() < length && !call.has_line("early: yes") {
            if stream.read_buf(&mut call.body).await.unwrap_or(0) == 0 {
                return;
            }
        }
        seen.calls.lock().unwrap().push(call.clone());
        let reply = script(&call);
        if let Some(permits) = reply.permits {
            let mut waste = [0; 1];
            tokio::select! {
                permit = permits.acquire() => permit.unwrap().forget(),
                // A client that gives up closes the connection.
                _ = stream.read(&mut waste) => return,
            }
        }
        let is_written = stream.write_all(&reply.bytes).await.is_ok();
        if let Some(last) = reply.last {
            last.acquire().await.unwrap().forget();
        }
        if !is_written || reply.closes {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

/// Head, length of the body, and the part of the body that was read with the head.
async fn read_head<S: AsyncRead + Unpin>(
    stream: &mut S,
    read: &mut Vec<u8>,
) -> Option<(String, usize, Vec<u8>)> {
    read.clear();
    loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..at]).into_owned();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let is_length = name.eq_ignore_ascii_case("content-length");
                is_length.then(|| value.trim().parse().unwrap())
            });
            return Some((head, length.unwrap_or(0), read[at + 4..].to_vec()));
        }
        if stream.read_buf(read).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}
