//! Load on the server of a shared store; starts a redis-server for it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate::config::{ServerAddress, SharedStoreConfig as Settings};
use tollgate::lifecycle::TaskScope;
use tollgate::metrics::Metrics;
use tollgate::profiles::Role;
use tollgate::store::shared::SharedStore;
use tollgate::token::{GrantRequest, Token, TokenDigest, TokenOrigin, TokenStore};

const TOKENS: usize = 100_000;
const USERS: usize = 1000;
const LANES: usize = 32;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server on a free port, and a connection to it; None: redis-server is not installed.
async fn server(folder: &Path) -> Option<(Server, u16, redis::Connection)> {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    drop(socket);
    let server = Command::new("redis-server")
        .args(["--save", "", "--bind", "127.0.0.1"])
        .args(["--port", &port.to_string()])
        .arg("--dir")
        .arg(folder)
        .stdout(Stdio::null())
        .spawn();
    let server = Server(server.ok()?);
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    loop {
        match client.get_connection() {
            Ok(connection) => return Some((server, port, connection)),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

pub(crate) async fn run(folder: &Path) -> String {
    let Some((_server, port, mut info)) = server(folder).await else {
        return "There is no redis-server here.".to_owned();
    };
    let scope = TaskScope::new(tokio::runtime::Handle::current());
    let (one, other) = (gate(port, &scope).await, gate(port, &scope).await);
    let before = (
        number(&mut info, "memory", "used_memory:"),
        scripts(&mut info),
    );
    let begin = Instant::now();
    let digests = log_in(&one).await;
    let rate = TOKENS as f64 / begin.elapsed().as_secs_f64();
    let per_login = (scripts(&mut info) - before.1) as f64 / TOKENS as f64;
    redis::cmd("DEL")
        .arg("{tollgate}:changes")
        .exec(&mut info)
        .unwrap();
    let bytes = (number(&mut info, "memory", "used_memory:") - before.0) / TOKENS as u64;
    let asked = scripts(&mut info);
    for digest in &digests {
        assert!(other.look_up(digest).await.unwrap().is_some());
    }
    let per_first = (scripts(&mut info) - asked) as f64 / digests.len() as f64;
    let asked = scripts(&mut info);
    for digest in digests.iter().cycle().take(1_000_000) {
        assert!(one.find(digest).is_some() && other.find(digest).is_some());
    }
    let per_request = (scripts(&mut info) - asked) as f64 / 2_000_000.0;
    format!(
        "| | |\n| --- | ---: |\n\
         | memory on the server, {TOKENS} tokens of {USERS} users | {bytes} bytes a token |\n\
         | scripts for one login | {per_login:.2} |\n\
         | scripts for a token's first request at another gate | {per_first:.2} |\n\
         | scripts for a validated request | {per_request:.6} |\n\
         | logins a second, hashing left out, {LANES} at once | {rate:.0} |\n\n\
         Each gate says every two seconds that it is there, which is what a validated request's share is made of."
    )
}

async fn gate(port: u16, scope: &TaskScope) -> Arc<TokenStore> {
    let address = ServerAddress {
        host: "127.0.0.1".to_owned(),
        port,
    };
    let settings = Settings {
        timeout: Duration::from_secs(10),
        ..Settings::at(vec![address])
    };
    let metrics = Metrics::new();
    let store = Arc::new(SharedStore::new(settings, Arc::clone(&metrics)));
    let tokens = TokenStore::sharing(&store, &scope.tasks, &super::settings(), metrics);
    store.start(scope).await.unwrap();
    tokens
}

async fn log_in(gate: &Arc<TokenStore>) -> Vec<TokenDigest> {
    let lanes = (0..LANES).map(|lane| {
        let gate = Arc::clone(gate);
        tokio::spawn(async move {
            let mut digests = Vec::new();
            for number in (lane..TOKENS).step_by(LANES) {
                let user = format!("user-{}", number % USERS);
                let digest = Token::mint().digest();
                let wanted = GrantRequest {
                    user: &user,
                    role: Some(Role::User),
                    lifetime: Duration::from_secs(7 * 86_400),
                    origin: TokenOrigin::Minted,
                    epoch: gate.epoch(&user),
                    revision: None,
                };
                gate.insert(digest, wanted).await.unwrap();
                digests.push(digest);
            }
            digests
        })
    });
    let mut all = Vec::new();
    for lane in lanes.collect::<Vec<_>>() {
        all.extend(lane.await.unwrap());
    }
    all
}

fn scripts(info: &mut redis::Connection) -> u64 {
    number(info, "commandstats", "cmdstat_evalsha:calls=")
}

fn number(info: &mut redis::Connection, section: &str, start: &str) -> u64 {
    let told: String = redis::cmd("INFO").arg(section).query(info).unwrap();
    let line = told.lines().find_map(|line| line.strip_prefix(start));
    let digits = |line: &str| line.split(',').next().map(str::trim).map(str::to_owned);
    line.and_then(digits)
        .map_or(0, |text| text.parse().unwrap())
}
