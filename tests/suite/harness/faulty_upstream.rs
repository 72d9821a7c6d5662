//! An upstream that works, refuses connections, hangs, closes, or sends nonsense. Plain HTTP;
//! logins get responses while it works.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::upstream::{login, read_request};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamState {
    Well,
    /// Does not listen; connections are closed.
    Gone,
    /// Accepts connections and reads requests, but never responds.
    Hangs,
    /// Closes each connection when a request has arrived.
    HangsUp,
    /// Responds with bytes that are not HTTP.
    Babbles,
}

/// Lives until the test's runtime ends.
#[derive(Clone)]
pub(crate) struct FaultyUpstream {
    pub(crate) address: SocketAddr,
    state: Arc<watch::Sender<UpstreamState>>,
    heads: Arc<AtomicUsize>,
}

impl FaultyUpstream {
    pub(crate) async fn start(state: UpstreamState) -> Self {
        // Bound without listening: keeps the port while the upstream is down.
        let reserved = bound("127.0.0.1:0".parse().unwrap());
        let upstream = Self {
            address: reserved.local_addr().unwrap(),
            state: Arc::new(watch::Sender::new(state)),
            heads: Arc::default(),
        };
        let serving = upstream.clone();
        tokio::spawn(async move {
            let _reserved = reserved;
            let mut states = serving.state.subscribe();
            loop {
                let is_up = |state: &UpstreamState| *state != UpstreamState::Gone;
                states.wait_for(is_up).await.unwrap();
                let listener = bound(serving.address).listen(1024).unwrap();
                tokio::select! {
                    () = serving.accept(&listener) => {}
                    changed = states.wait_for(|state| !is_up(state)) => drop(changed.unwrap()),
                }
            }
        });
        upstream
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn is(&self, state: UpstreamState) {
        self.state.send_replace(state);
    }

    /// Requests read so far, including logins and probes.
    pub(crate) fn heads(&self) -> usize {
        self.heads.load(Ordering::SeqCst)
    }

    async fn accept(&self, listener: &TcpListener) {
        loop {
            if let Ok((tcp, _)) = listener.accept().await {
                let serving = self.clone();
                tokio::spawn(async move {
                    let mut states = serving.state.subscribe();
                    tokio::select! {
                        () = serving.serve(tcp) => {}
                        changed = states.wait_for(|state| *state == UpstreamState::Gone) => drop(changed),
                    }
                });
            }
        }
    }

    /// `/v1/stickerpacks` gets no response unless the state says otherwise. A response of 10 MB
    /// is sent in pieces over two seconds, whatever the state is by then.
    async fn serve(&self, mut tcp: TcpStream) {
        if *self.state.borrow() == UpstreamState::Babbles {
            // A handshake or a request, whichever arrived.
            let _ = tcp.readable().await;
            let _ = tcp.write_all(GREETING).await;
            return;
        }
        while let Some(head) = read_request(&mut tcp).await {
            self.heads.fetch_add(1, Ordering::SeqCst);
            let state = *self.state.borrow();
            match state {
                UpstreamState::Well if head.starts_with("POST /v1/users/login") => {
                    let _ = tcp.write_all(&login()).await;
                }
                UpstreamState::Well if head.starts_with("GET /v1/stickerpacks") => {
                    std::future::pending::<()>().await;
                }
                UpstreamState::Well if head.starts_with("GET /v1/media/long") => {
                    stream(&mut tcp).await
                }
                UpstreamState::Well => {
                    let response = b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nok";
                    let _ = tcp.write_all(response).await;
                }
                UpstreamState::Gone | UpstreamState::Hangs => std::future::pending::<()>().await,
                UpstreamState::HangsUp => return,
                UpstreamState::Babbles => {
                    let _ = tcp.write_all(GREETING).await;
                    return;
                }
            }
        }
    }
}

const GREETING: &[u8] = b"220 mail.example ESMTP\r\n";

async fn stream(tcp: &mut TcpStream) {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n";
    let _ = tcp.write_all(head).await;
    for _ in 0..20 {
        let _ = tcp.write_all(&vec![7; 500_000]).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}
