//! An upstream of raw sockets with scripted logins and paths, and a gate in
//! front of it without a profile, with one route and one API key.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use super::upstream::read_request;
use super::{Client, Gateway, sha256};

pub(crate) const KEY: &str = "field-case-key-1";
const WEEK: i64 = 604_800;

/// A request with one of the tokens that this upstream has issued.
#[derive(Clone, Debug)]
pub(crate) struct PathRequest {
    pub(crate) method: String,
    pub(crate) path: String,
    /// The number of the login, from 1; 0 for a foreign token.
    pub(crate) token: usize,
    /// The number of issued tokens.
    pub(crate) minted: usize,
    /// The number of the request, from 1, without logins.
    pub(crate) nth: usize,
}

/// The response to the next login.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LoginReply {
    /// A token with this lifetime in seconds.
    Token(i64),
    Status(u16),
}

type Paths = dyn Fn(&PathRequest) -> u16 + Send + Sync;
type Logins = dyn Fn(usize) -> LoginReply + Send + Sync;

/// Lives until the test's runtime ends.
#[derive(Clone)]
pub(crate) struct LoginUpstream {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    paths: Arc<Paths>,
    logins: Arc<Logins>,
    delay: Duration,
    login_times: Vec<std::time::Instant>,
    minted: usize,
    received: Vec<PathRequest>,
}

impl LoginUpstream {
    /// `paths` returns the status of each request.
    pub(crate) async fn start(paths: impl Fn(&PathRequest) -> u16 + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(State {
                paths: Arc::new(paths),
                logins: Arc::new(|_| LoginReply::Token(WEEK)),
                delay: Duration::ZERO,
                login_times: Vec::new(),
                minted: 0,
                received: Vec::new(),
            })),
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

    /// Sets the responses to logins, by their number from 1.
    pub(crate) fn set_logins(&self, logins: impl Fn(usize) -> LoginReply + Send + Sync + 'static) {
        self.state.lock().unwrap().logins = Arc::new(logins);
    }

    pub(crate) fn set_paths(&self, paths: impl Fn(&PathRequest) -> u16 + Send + Sync + 'static) {
        self.state.lock().unwrap().paths = Arc::new(paths);
    }

    /// Sets how long each request to a path takes.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.state.lock().unwrap().delay = delay;
    }

    pub(crate) fn logins(&self) -> usize {
        self.state.lock().unwrap().login_times.len()
    }

    pub(crate) fn requests_to(&self, path: &str) -> Vec<PathRequest> {
        let state = self.state.lock().unwrap();
        let matching = state.received.iter().filter(|request| request.path == path);
        matching.cloned().collect()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn serve(&self, mut tcp: TcpStream) {
        while let Some(head) = read_request(&mut tcp).await {
            let reply = match head.starts_with("POST /v1/users/login") {
                true => self.log_in(),
                false => self.response(&head).await,
            };
            if tcp.write_all(reply.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn log_in(&self) -> String {
        let mut state = self.state.lock().unwrap();
        state.login_times.push(std::time::Instant::now());
        let reply = (state.logins)(state.login_times.len());
        match reply {
            LoginReply::Status(status) => response(status, "{}"),
            LoginReply::Token(seconds) => {
                state.minted += 1;
                let end = tollgate::clock::unix_seconds() + seconds;
                let end = tollgate::profiles::format_expiry(end);
                let token = format!("minted-{}-of-this-upstream", state.minted);
                response(
                    200,
                    &format!(r#"{{"users":[{{"token":"{token}","expires_after":"{end}"}}]}}"#),
                )
            }
        }
    }

    async fn response(&self, head: &str) -> String {
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let path = target.split('?').next().unwrap();
        let token = head.split("Bearer minted-").nth(1);
        let token = token.and_then(|rest| rest.split('-').next()?.parse().ok());
        let (reply, delay) = {
            let mut state = self.state.lock().unwrap();
            let request = PathRequest {
                method: method.to_owned(),
                path: path.to_owned(),
                token: token.unwrap_or(0),
                minted: state.minted,
                nth: state.received.len() + 1,
            };
            state.received.push(request.clone());
            let paths = Arc::clone(&state.paths);
            (paths(&request), state.delay)
        };
        sleep(delay).await;
        response(reply, "done")
    }
}

fn response(status: u16, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// The configuration; `upstream` has more lines for that section.
pub(crate) fn field_case(url: &str, upstream: &str) -> String {
    format!(
        r#"
profile = "none"
workers = 2

[[listener]]
address = "127.0.0.1:0"
tls = {{ certificates = [{{ certificate = "certs/server.pem", key = "certs/server.key" }}] }}

[operator]
address = "127.0.0.1:0"

[upstream.main]
url = "{url}"
login = {{ username = "admin", password = {{ file = "webapp-password" }} }}
{upstream}

[[route]]
name = "all"
path = "/*"
access = ["token", "api_key"]

[[api_key]]
name = "caller"
sha256 = "{digest}"
paths = "/*"

[limits]
max_in_flight = 100000

[store]
path = "memory"

[drain]
wait = "0s"
deadline = "20s"
"#,
        digest = sha256(KEY)
    )
}

/// A gate of `field_case`, and a client with its API key.
pub(crate) async fn gate_before(upstream: &LoginUpstream, lines: &str) -> (Gateway, KeyClient) {
    let gateway = Gateway::of_text(&field_case(&upstream.url(), lines)).await;
    let client = KeyClient(gateway.client());
    (gateway, client)
}

/// A client that presents the API key.
#[derive(Clone)]
pub(crate) struct KeyClient(pub(crate) Client);

impl KeyClient {
    pub(crate) async fn get(&self, path: &str) -> u16 {
        self.send(reqwest::Method::GET, path, Vec::new()).await
    }

    pub(crate) async fn send(&self, method: reqwest::Method, path: &str, body: Vec<u8>) -> u16 {
        let response = self.response(method, path, body).await;
        response.status().as_u16()
    }

    pub(crate) async fn response(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Vec<u8>,
    ) -> reqwest::Response {
        let request = self.0.request(method, path);
        let request = request.header("authorization", format!("Apikey {KEY}"));
        request.body(body).send().await.unwrap()
    }
}
