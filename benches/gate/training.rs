//! The load by which the shipped program is trained (`deploy/build-pgo.sh`): every kind of request a
//! gate gets, small ones most often, over HTTP/1.1, HTTP/2 and TLS, before an upstream in plain HTTP
//! and before the emulator in TLS, with logins, refusals, renewals, reloads and a scrape.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::runtime::Handle;
use tokio::task::{JoinSet, spawn_blocking};
use tollgate::emulator::{Emulator, Settings};
use tollgate::lifecycle::TaskScope;

use crate::support::flow::Flow;
use crate::support::gate::{ADMIN, Gate, PASSWORD, Setup};
use crate::support::streams;
use crate::support::webapp;
use crate::support::wire::{Wire, request, trusting};

/// Of each kind of load, before each upstream.
const TIME: Duration = Duration::from_secs(8);
const CONNECTIONS: usize = 32;
const H2_REQUESTS: usize = 400;
/// Renewed after a third of it.
const TOKEN_LIFE: Duration = Duration::from_secs(6);

pub(crate) fn run(words: &[String]) -> ExitCode {
    let mut binary = PathBuf::from(env!("CARGO_BIN_EXE_tollgate"));
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--binary" => binary = std::path::absolute(words.next().expect("a path")).unwrap(),
            other => panic!("unknown word {other}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let scope = TaskScope::new(Handle::current());
        let emulator = Emulator::start(Settings::for_tests(), &scope)
            .await
            .unwrap();
        emulator.token_lifetime(TOKEN_LIFE);
        let setup = Setup {
            tls: true,
            workers: 2,
            binary,
            ..Setup::default()
        };
        train(Setup {
            upstream: format!("url = \"http://{}\"", webapp::start(Duration::ZERO)),
            ..setup.clone()
        })
        .await;
        let lines = "ca = \"webapp-ca.pem\"\nserver_name = \"localhost\"\nrenew_at = 0.3\n\
                     min_login_interval = \"10ms\"\nlogins_per_hour = 36000";
        train(Setup {
            upstream: format!("url = \"https://{}\"\n{lines}", emulator.address()),
            files: vec![("webapp-ca.pem", emulator.authority_pem().to_owned())],
            ..setup
        })
        .await;
    });
    ExitCode::SUCCESS
}

async fn train(setup: Setup) {
    let mut gate = spawn_blocking(move || Gate::start(&setup)).await.unwrap();
    let (port, http1) = (gate.port, trusting(gate.folder(), &["http/1.1"]));
    let http2 = trusting(gate.folder(), &["h2"]);
    let client = Arc::clone(&http1);
    let token = spawn_blocking(move || logins(port, &client)).await.unwrap();
    let requests: Arc<[Vec<u8>]> = kinds(&token).into();
    let mut load = JoinSet::new();
    for index in 0..CONNECTIONS {
        let (requests, client) = (Arc::clone(&requests), Arc::clone(&http1));
        load.spawn(async move {
            let mut flow = Flow::open(port, &client, index).await;
            let end = Instant::now() + TIME;
            for request in requests.iter().cycle().skip(index) {
                let status = flow.ask(request).await.unwrap();
                assert!(status < 500, "{status}");
                if Instant::now() > end {
                    return;
                }
            }
        });
    }
    gate.reload_after_change("concurrency = 1000", "concurrency = 900");
    while load.join_next().await.is_some() {}
    let end = Instant::now() + TIME;
    while Instant::now() < end {
        for path in ["/v1/groups", "/v1/groups", "/v1/media/1"] {
            let to = (port, Arc::clone(&http2));
            streams::burst(to, (path, &token), H2_REQUESTS).await;
        }
        let to = (port, Arc::clone(&http2));
        streams::posts(to, ("/v1/messages", &token), 1024, H2_REQUESTS).await;
    }
    let folder = gate.folder().to_owned();
    let connect = move || handshakes(port, &http1, || trusting(&folder, &["http/1.1"]), &token);
    spawn_blocking(connect).await.unwrap();
    let _ = gate.counted("tollgate_requests_total");
    spawn_blocking(move || gate.stop()).await.unwrap();
}

/// Requests in the proportions of a busy gate, with bodies of every size.
fn kinds(token: &str) -> Vec<Vec<u8>> {
    let get = request("GET", "/v1/groups", token, "");
    let post = |size: usize| request("POST", "/v1/messages", token, &"x".repeat(size));
    let unknown = "0".repeat(token.len());
    let chunked = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         Transfer-Encoding: chunked\r\n\r\n400\r\n{}\r\n0\r\n\r\n",
        "x".repeat(1024)
    );
    let mut kinds = vec![get; 12];
    kinds.extend([
        post(100),
        post(1024),
        post(1024),
        post(1024),
        post(4096),
        post(16_384),
    ]);
    kinds.push(request("POST", "/v1/media", token, &"x".repeat(65_536)));
    kinds.push(request("POST", "/v1/media", token, &"x".repeat(65_536)));
    kinds.push(request("GET", "/v1/media/1", token, ""));
    kinds.push(request("GET", "/v1/media/1", token, ""));
    kinds.push(request("GET", "/v1/groups", &unknown, ""));
    kinds.push(request("GET", "/v1/groups", &unknown, ""));
    kinds.push(request("GET", "/v1/users/admin", token, ""));
    kinds.push(request("GET", "/no/such/path", token, ""));
    kinds.push(request("PATCH", "/v1/groups", token, ""));
    kinds.push(chunked.into_bytes());
    kinds
}

/// Some logins and logouts, and a wrong password; returns a token.
fn logins(port: u16, client: &Arc<ClientConfig>) -> String {
    let mut wire = Wire::tls(port, client);
    for _ in 0..10 {
        let token = wire.log_in(ADMIN, PASSWORD);
        let logout = request("POST", "/v1/users/logout", &token, "");
        wire.ask(&logout);
    }
    wire.log_in(ADMIN, PASSWORD)
}

/// Connections with one request each: resumed ones, and new ones.
fn handshakes(
    port: u16,
    known: &Arc<ClientConfig>,
    unknown: impl Fn() -> Arc<ClientConfig>,
    token: &str,
) {
    let request = request("GET", "/v1/groups", token, "");
    let end = Instant::now() + TIME / 2;
    while Instant::now() < end {
        Wire::tls(port, known).ask(&request);
        Wire::tls(port, &unknown()).ask(&request);
    }
}
