//! Tests of the emulated Webapp over real sockets.

mod control;
mod faults;
mod material;
mod nodes;
mod tls;
mod users;

use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use super::{Emulator, Settings, Tls};
use crate::lifecycle::{TaskScope, TaskSet};
use crate::profiles::BasicCredentials;
use crate::secret::Secret;

/// An emulated Webapp and one client.
struct TestEmulator {
    emulator: Emulator,
    scope: TaskScope,
}

struct TestResponse {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Bytes,
}

impl TestResponse {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("the response is JSON")
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    fn code(&self) -> u64 {
        self.json()["errors"][0]["code"].as_u64().unwrap_or(0)
    }

    /// Status and error code.
    fn status_and_code(&self) -> (u16, u64) {
        (self.status.as_u16(), self.code())
    }
}

impl TestEmulator {
    async fn start() -> Self {
        Self::with(Settings::for_tests()).await
    }

    async fn with(settings: Settings) -> Self {
        let scope = TaskScope::new(Handle::current());
        let settings = Settings {
            tls: Tls::Plain,
            ..settings
        };
        let emulator = Emulator::start(settings, &scope).await.unwrap();
        Self { emulator, scope }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        exchange(&self.scope.tasks, self.emulator.address(), request).await
    }

    async fn call(&self, method: &str, path: &str, credential: &str, body: &str) -> TestResponse {
        let response = self.send(request(method, path, credential, body)).await;
        read(response.expect("there is a response")).await
    }

    async fn get(&self, path: &str, credential: &str) -> TestResponse {
        self.call("GET", path, credential, "").await
    }

    async fn log_in(&self, username: &str, password: &str, body: &str) -> TestResponse {
        let basic = BasicCredentials::header(username, &Secret::new(password));
        self.call("POST", "/v1/users/login", basic.expose(), body)
            .await
    }

    async fn admin_log_in(&self) -> TestResponse {
        self.log_in("admin", "Webapp-Passw0rd!", "").await
    }

    /// `Bearer <token>` of a new login.
    async fn bearer(&self) -> String {
        bearer(&self.admin_log_in().await)
    }
}

fn bearer(response: &TestResponse) -> String {
    let reply = response.json();
    let token = reply["users"][0]["token"].as_str();
    format!("Bearer {}", token.expect("the login succeeded"))
}

fn request(method: &str, path: &str, credential: &str, body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "webapp");
    if !credential.is_empty() {
        request = request.header(AUTHORIZATION, credential);
    }
    request.body(Full::from(body.to_owned())).unwrap()
}

async fn exchange(
    tasks: &TaskSet,
    address: std::net::SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tasks.spawn("test client", async move {
        let _ = connection.await;
    });
    sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())
}

async fn read(response: Response<Incoming>) -> TestResponse {
    let (parts, body) = response.into_parts();
    TestResponse {
        status: parts.status,
        headers: parts.headers,
        bytes: body.collect().await.expect("a whole body").to_bytes(),
    }
}

/// Waits until a condition is true.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "timeout: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
