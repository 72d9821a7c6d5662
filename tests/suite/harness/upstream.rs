//! An upstream with scripted bytes, for responses that the emulator
//! does not send. Plain HTTP; logins get responses automatically.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The number of the request on its connection, from 1, without logins.
    pub(crate) nth: usize,
    pub(crate) head: String,
}

impl Call {
    /// Method and path.
    pub(crate) fn line(&self) -> &str {
        let line = self.head.lines().next().unwrap_or_default();
        line.trim_end_matches(" HTTP/1.1")
    }
}

/// The response; afterwards the connection is closed or stays open.
pub(crate) enum Reply {
    Stay(Vec<u8>),
    Close(Vec<u8>),
}

impl Reply {
    pub(crate) fn ok(body: &str) -> Self {
        let length = body.len();
        Self::Stay(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into())
    }
}

type Script = dyn Fn(&Call) -> Reply + Send + Sync;

/// Lives until the test's runtime ends.
#[derive(Clone)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    script: Arc<Script>,
    /// The script also responds to logins.
    scripts_logins: bool,
}

impl Upstream {
    pub(crate) async fn start(script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        Self::serving(script, false).await
    }

    /// The same; the script also responds to logins, except the gate's own as `admin`.
    pub(crate) async fn scripted(script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        Self::serving(script, true).await
    }

    async fn serving(
        script: impl Fn(&Call) -> Reply + Send + Sync + 'static,
        scripts_logins: bool,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Self {
            address: listener.local_addr().unwrap(),
            calls: Arc::default(),
            script: Arc::new(script),
            scripts_logins,
        };
        let serving = upstream.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move { serving.serve(tcp).await });
            }
        });
        upstream
    }

    /// The number of requests with this method and path.
    pub(crate) fn count(&self, line: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| call.line() == line).count()
    }

    async fn serve(&self, mut tcp: TcpStream) {
        let mut nth = 0;
        while let Some(head) = read_request(&mut tcp).await {
            // "admin:" in Basic.
            let is_ours = !self.scripts_logins || head.contains("Basic YWRtaW46");
            if head.starts_with("POST /v1/users/login") && is_ours {
                let _ = tcp.write_all(&login()).await;
                continue;
            }
            nth += 1;
            let call = Call { nth, head };
            self.calls.lock().unwrap().push(call.clone());
            match (self.script)(&call) {
                Reply::Stay(bytes) => {
                    let _ = tcp.write_all(&bytes).await;
                }
                Reply::Close(bytes) => {
                    let _ = tcp.write_all(&bytes).await;
                    return;
                }
            }
        }
    }
}

/// The head of the next request; its body is read and discarded.
pub(crate) async fn read_request(tcp: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(tcp.read_u8().await.ok()?);
    }
    let head = String::from_utf8(bytes).ok()?;
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    tcp.read_exact(&mut vec![0; length]).await.ok()?;
    Some(head)
}

/// The response to a login: a token for a week.
pub(crate) fn login() -> Vec<u8> {
    login_with("scripted-token")
}

/// The same with this token.
pub(crate) fn login_with(token: &str) -> Vec<u8> {
    let week = i64::try_from(Duration::from_secs(604_800).as_secs()).unwrap();
    let now = tollgate::clock::unix_seconds();
    let end = tollgate::profiles::format_expiry(now + week);
    let body =
        format!(r#"{{"users":[{{"token":"{token}","expires_after":"{end}"}}],"meta":{{}}}}"#);
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into()
}
