//! A raw HTTP/1.1 server that can be told to fail, hang, die and come back at the same address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::harness::upstream::login_with;

/// What the server does with each request but logins and health checks.
#[derive(Clone, Debug)]
pub(super) enum Behaviour {
    /// Reads the request and responds with this status after the time.
    Respond(u16, Duration),
    /// Reads the request and closes the connection without a response.
    Close,
    /// Reads the head and so many bytes of the body, then resets the connection.
    Reset(usize),
    /// Reads the request and responds with these bytes, then closes.
    Bytes(&'static str),
    /// Reads the request and never responds.
    Hang,
}

/// Lives until the test's runtime ends, or until it is killed.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    behaviour: Behaviour,
    /// The same for logins; None: a token.
    logins: Option<Behaviour>,
    /// The status for `/health`.
    health: u16,
    health_delay: Duration,
    /// Tokens that it has issued, if it takes no others; None: it takes any.
    own_tokens: Option<Vec<String>>,
    seen: BTreeMap<String, usize>,
    tasks: Vec<AbortHandle>,
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::with(Behaviour::Respond(200, Duration::ZERO)).await
    }

    pub(super) async fn with(behaviour: Behaviour) -> Self {
        let server = Self::unheard(behaviour);
        server.listen();
        server
    }

    /// An address at which no server listens yet.
    pub(super) fn unheard(behaviour: Behaviour) -> Self {
        let socket = bound("127.0.0.1:0".parse().unwrap());
        Self {
            address: socket.local_addr().unwrap(),
            state: Arc::new(Mutex::new(State {
                behaviour,
                logins: None,
                health: 200,
                health_delay: Duration::ZERO,
                own_tokens: None,
                seen: BTreeMap::new(),
                tasks: Vec::new(),
            })),
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn set(&self, behaviour: Behaviour) {
        self.state.lock().behaviour = behaviour;
    }

    pub(super) fn respond(&self, status: u16) {
        self.set(Behaviour::Respond(status, Duration::ZERO));
    }

    /// What it does with logins; None: it issues a token.
    pub(super) fn set_logins(&self, behaviour: Option<Behaviour>) {
        self.state.lock().logins = behaviour;
    }

    /// Takes no token but those that it issues from now on.
    pub(super) fn take_own_tokens_only(&self) {
        self.state.lock().own_tokens = Some(Vec::new());
    }

    pub(super) fn logins(&self) -> usize {
        self.count("POST /v1/users/login")
    }

    pub(super) fn set_health(&self, status: u16) {
        self.state.lock().health = status;
    }

    /// The time that a health check takes.
    pub(super) fn delay_health(&self, delay: Duration) {
        self.state.lock().health_delay = delay;
    }

    /// Requests to this method and path.
    pub(super) fn count(&self, line: &str) -> usize {
        self.state.lock().seen.get(line).copied().unwrap_or(0)
    }

    pub(super) fn checks(&self) -> usize {
        self.count("GET /health")
    }

    /// Requests of clients.
    pub(super) fn requests(&self) -> usize {
        self.seen().values().sum()
    }

    /// Each request with its number, without those of the gate: logins, probes and health checks.
    pub(super) fn seen(&self) -> BTreeMap<String, usize> {
        let mut seen = self.state.lock().seen.clone();
        let own = ["GET /health", "POST /v1/users/login", "GET /"];
        seen.retain(|line, _| !own.contains(&line.as_str()));
        seen
    }

    /// Closes its port and all its connections, as the end of a process does.
    pub(super) fn kill(&self) {
        for task in self.state.lock().tasks.drain(..) {
            task.abort();
        }
    }

    /// Listens, again after `kill`.
    pub(super) fn listen(&self) {
        let listener = bound(self.address).listen(1024).unwrap();
        let server = self.clone();
        let task = tokio::spawn(async move { server.accept(listener).await });
        self.state.lock().tasks.push(task.abort_handle());
    }

    async fn accept(self, listener: TcpListener) {
        while let Ok((tcp, _)) = listener.accept().await {
            let server = self.clone();
            let mut state = self.state.lock();
            let task = tokio::spawn(async move {
                let _ = server.serve(tcp).await;
            });
            state.tasks.push(task.abort_handle());
        }
    }

    async fn serve(&self, mut tcp: TcpStream) -> std::io::Result<()> {
        loop {
            let head = head(&mut tcp).await?;
            let line = head.lines().next().unwrap_or_default();
            let line = line.trim_end_matches(" HTTP/1.1").to_owned();
            let behaviour = {
                let mut state = self.state.lock();
                *state.seen.entry(line.clone()).or_default() += 1;
                match line.as_str() {
                    "GET /health" => Behaviour::Respond(state.health, state.health_delay),
                    "POST /v1/users/login" => {
                        let token = Behaviour::Respond(0, Duration::ZERO);
                        state.logins.clone().unwrap_or(token)
                    }
                    _ if !state.accepts(&head) => Behaviour::Respond(401, Duration::ZERO),
                    _ => state.behaviour.clone(),
                }
            };
            if let Behaviour::Reset(bytes) = behaviour {
                tcp.read_exact(&mut vec![0; bytes]).await?;
                tcp.set_zero_linger()?;
                return Ok(());
            }
            let length = length(&head);
            tcp.read_exact(&mut vec![0; length]).await?;
            match behaviour {
                Behaviour::Respond(0, _) => {
                    let token = self.state.lock().issue(self.address);
                    tcp.write_all(&login_with(&token)).await?;
                }
                Behaviour::Respond(status, delay) => {
                    sleep(delay).await;
                    let body = format!("{} {length}", self.address);
                    let (size, empty) = (body.len(), head.starts_with("HEAD "));
                    let body = if empty { "" } else { &body };
                    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {size}\r\n");
                    let retry = if status == 503 {
                        "Retry-After: 7\r\n"
                    } else {
                        ""
                    };
                    let response = format!("{head}{retry}\r\n{body}");
                    tcp.write_all(response.as_bytes()).await?;
                }
                Behaviour::Bytes(bytes) => return tcp.write_all(bytes.as_bytes()).await,
                Behaviour::Hang => sleep(Duration::from_secs(600)).await,
                Behaviour::Close | Behaviour::Reset(_) => return Ok(()),
            }
        }
    }
}

impl State {
    fn issue(&mut self, address: SocketAddr) -> String {
        let Some(own) = &mut self.own_tokens else {
            return "scripted-token".to_owned();
        };
        own.push(format!("token-{}-of-{address}", own.len()));
        own[own.len() - 1].clone()
    }

    fn accepts(&self, head: &str) -> bool {
        let Some(own) = &self.own_tokens else {
            return true;
        };
        let mut lines = head.lines();
        let bearer = lines.find_map(|line| line.strip_prefix("authorization: Bearer "));
        bearer.is_some_and(|bearer| own.iter().any(|token| token == bearer))
    }
}

fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn head(tcp: &mut TcpStream) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(tcp.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn length(head: &str) -> usize {
    let head = head.to_ascii_lowercase();
    let mut lines = head.lines();
    let length = lines.find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    length.unwrap_or(0)
}

/// An address that takes no connection and refuses none: its backlog is full.
pub(super) struct BlackHole {
    pub(super) address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    pub(super) async fn start() -> Self {
        let listener = bound("127.0.0.1:0".parse().unwrap()).listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        let limit = Duration::from_millis(300);
        while let Ok(tcp) = tokio::time::timeout(limit, TcpStream::connect(address)).await {
            queued.push(tcp.unwrap());
        }
        Self {
            address,
            _listener: listener,
            _queued: queued,
        }
    }
}
