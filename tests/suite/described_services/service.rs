//! A server that notes what it is sent and responds as a test says.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// One request as it arrived.
pub(super) struct ServiceCall {
    pub(super) line: String,
    pub(super) head: String,
    pub(super) body: String,
}

impl ServiceCall {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1);
        lines.find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Status, header lines and body of a response.
pub(super) struct ServiceReply {
    pub(super) status: u16,
    pub(super) headers: String,
    pub(super) body: String,
}

pub(super) fn reply(status: u16, body: &str) -> ServiceReply {
    ServiceReply {
        status,
        headers: String::new(),
        body: body.to_owned(),
    }
}

/// Lives until the test's runtime ends.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) address: SocketAddr,
    pub(super) state: Arc<Mutex<ServiceState>>,
}

/// What the service does now.
pub(super) struct ServiceState {
    /// The token that it takes.
    pub(super) valid: String,
    pub(super) logins: usize,
    /// In place of the response to a login.
    pub(super) login_reply: Option<fn() -> ServiceReply>,
}

pub(super) type Behaviour = fn(&ServiceCall, &mut ServiceState) -> ServiceReply;

impl Service {
    pub(super) async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(ServiceState {
                valid: String::new(),
                logins: 0,
                login_reply: None,
            })),
        };
        let state = Arc::clone(&service.state);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(tcp, behaviour, Arc::clone(&state)));
            }
        });
        service
    }

    pub(super) fn logins(&self) -> usize {
        self.state.lock().logins
    }

    /// The token in use ends without notice.
    pub(super) fn revoke(&self) {
        self.state.lock().valid = "none".to_owned();
    }

    pub(super) fn respond_to_logins(&self, reply: Option<fn() -> ServiceReply>) {
        self.state.lock().login_reply = reply;
    }
}

async fn serve(
    mut tcp: TcpStream,
    behaviour: Behaviour,
    state: Arc<Mutex<ServiceState>>,
) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await?);
        }
        let head = String::from_utf8(head).unwrap();
        let line = head.lines().next().unwrap().replace(" HTTP/1.1", "");
        let mut call = ServiceCall {
            line,
            head,
            body: String::new(),
        };
        let length = call
            .header("content-length")
            .map_or(0, |text| text.parse().unwrap());
        let mut body = vec![0; length];
        tcp.read_exact(&mut body).await?;
        call.body = String::from_utf8(body).unwrap();
        let ServiceReply {
            status,
            headers,
            body,
        } = behaviour(&call, &mut state.lock());
        let length = body.len();
        let text =
            format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        tcp.write_all(text.as_bytes()).await?;
    }
}

/// Notes a login, and returns the token or what the test wants instead.
pub(super) fn login(
    state: &mut ServiceState,
    granted: impl Fn(&str) -> ServiceReply,
) -> ServiceReply {
    state.logins += 1;
    match state.login_reply {
        Some(other) => other(),
        None => {
            state.valid = format!("token-{}", state.logins);
            granted(&state.valid)
        }
    }
}
