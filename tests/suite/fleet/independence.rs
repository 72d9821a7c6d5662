//! An upstream that cannot be had costs its own routes only (row U7): a healthy one beside one that
//! hangs in its login, one with a wrong password and one whose name does not exist, under load, over
//! reloads that add, change, rename and remove upstreams.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tollgate::metrics::ReloadResult;

use super::{LOGIN, config};
use crate::harness::login_upstream::{KEY, LoginReply, LoginUpstream};
use crate::harness::program::binary;
use crate::harness::{Client, Gateway, eventually, secret};

const NOT_REQUIRED: &str = "required = false";
/// Far below every timeout of the upstreams that cannot be had, far above a busy machine's pauses.
const LONGEST: Duration = Duration::from_secs(2);

/// Sections `[upstream.NAME]`, each with a route `/ROUTE/*`.
#[derive(Clone, Default)]
struct Fleet(BTreeMap<String, String>);

impl Fleet {
    fn with(mut self, name: &str, route: &str, url: &str, lines: &str) -> Self {
        let section = format!(
            "[upstream.{name}]\nurl = \"{url}\"\n{LOGIN}\nlogin_timeout = \"1s\"\n\
             allow_plaintext = true\n{lines}\n\
             [[route]]\nname = \"{route}\"\nupstream = \"{name}\"\npath = \"/{route}/*\"\n\
             strip_prefix = \"/{route}\"\naccess = \"api_key\"\ntimeout = \"3s\"\n"
        );
        self.0.insert(name.to_owned(), section);
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.0.remove(name).unwrap();
        self
    }

    fn text(&self) -> String {
        config(&Vec::from_iter(self.0.values().cloned()).join("\n"))
    }
}

/// A client with the API key, over HTTP/2.
#[derive(Clone)]
struct Caller(Client);

impl Caller {
    async fn get(&self, path: &str) -> u16 {
        let request = self.0.request(reqwest::Method::GET, path);
        let request = request.header("authorization", format!("Apikey {KEY}"));
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        // Streams whose responses are not read count as errors of the client's own.
        response.bytes().await.unwrap();
        status
    }
}

/// A server that takes connections and never responds.
async fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((tcp, _)) = listener.accept().await {
            kept.push(tcp);
        }
    });
    address
}

/// Requests to `/good/x` until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<usize>>,
}

impl Load {
    fn start(client: &Caller) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let run = |stop: Arc<AtomicBool>, client: Caller| async move {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                assert_eq!(client.get("/good/x").await, 200, "request {sent}");
                let took = start.elapsed();
                assert!(took < LONGEST, "request {sent} took {took:?}");
                sent += 1;
            }
            sent
        };
        let tasks = (0..4).map(|_| tokio::spawn(run(Arc::clone(&stop), client.clone())));
        Self {
            tasks: tasks.collect(),
            stop,
        }
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut sent = 0;
        for task in self.tasks {
            sent += task.await.expect("no request failed or waited");
        }
        sent
    }
}

/// A gate, its upstreams, and requests to the healthy one all the time.
struct FleetGate {
    gateway: Gateway,
    client: Caller,
    load: Load,
    reloads: u64,
}

/// The servers behind the gate.
struct Servers {
    good: LoginUpstream,
    other: LoginUpstream,
    wrong: LoginUpstream,
    hanging: String,
}

impl Servers {
    async fn start() -> Self {
        let wrong = LoginUpstream::start(|_| 200).await;
        wrong.set_logins(|_| LoginReply::Status(401));
        Self {
            good: LoginUpstream::start(|_| 200).await,
            other: LoginUpstream::start(|_| 200).await,
            wrong,
            hanging: format!("http://{}", silent().await),
        }
    }

    fn fleet(&self) -> Fleet {
        Fleet::default()
            .with("good", "good", &self.good.url(), "")
            .with("hang", "hang", &self.hanging, NOT_REQUIRED)
            .with("wrong", "wrong", &self.wrong.url(), NOT_REQUIRED)
    }
}

impl FleetGate {
    async fn start(fleet: &Fleet) -> Self {
        let gateway = Gateway::of_text(&fleet.text()).await;
        let client = Caller(gateway.client());
        let first = client.clone();
        eventually("the first login", async || {
            first.get("/good/x").await == 200
        })
        .await;
        Self {
            load: Load::start(&client),
            gateway,
            client,
            reloads: 0,
        }
    }

    async fn reload(&mut self, fleet: &Fleet) {
        std::fs::write(self.gateway.config_file(), fleet.text()).unwrap();
        self.reloads += 1;
        let reloads = &self.gateway.metrics.reloads;
        eventually("the reload", async || {
            reloads.value(ReloadResult::Applied) == self.reloads
        })
        .await;
    }

    async fn readiness(&self) -> (u16, String) {
        let response = reqwest::get(self.gateway.operator_url("/readyz")).await;
        let response = response.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn becomes(&self, path: &str, status: u16) {
        let what = format!("{path} to get {status}");
        eventually(&what, async || self.client.get(path).await == status).await;
    }

    /// No request to the healthy upstream has failed or waited.
    async fn end(self) {
        let sent = self.load.end().await;
        assert!(sent > 100, "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_cannot_be_had_costs_its_own_routes_only() {
    let servers = Servers::start().await;
    let first = servers.fleet();
    let mut gate = FleetGate::start(&first).await;

    gate.becomes("/wrong/x", 503).await;
    gate.becomes("/hang/x", 503).await;
    let (status, text) = gate.readiness().await;
    assert_eq!(status, 200, "{text}");
    for line in [
        "upstream hang: login: no response in time",
        "upstream wrong: login: wrong password",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!text.contains("good"), "{text}");

    let lost = "http://nowhere.invalid:80";
    let added = first.with("late", "late", &servers.other.url(), "").with(
        "lost",
        "lost",
        lost,
        NOT_REQUIRED,
    );
    gate.reload(&added).await;
    gate.becomes("/late/x", 200).await;
    gate.becomes("/lost/x", 503).await;

    // A required one that is down makes the gate unready, and says which.
    let hang = added.with("hang", "hang", &servers.hanging, "concurrency = 7");
    gate.reload(&hang).await;
    let (status, text) = gate.readiness().await;
    assert_eq!(status, 503);
    assert!(text.starts_with("upstream hang: login"), "{text}");
    assert_eq!(servers.wrong.logins(), 1, "no reload has changed it");
    gate.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_that_rename_move_and_remove_upstreams_lose_no_request() {
    let servers = Servers::start().await;
    let first = servers
        .fleet()
        .with("late", "late", &servers.other.url(), "");
    let mut gate = FleetGate::start(&first).await;
    gate.becomes("/late/x", 200).await;

    let renamed = first
        .without("good")
        .with("fine", "good", &servers.good.url(), "")
        .without("wrong")
        .with("wrong2", "wrong", &servers.wrong.url(), NOT_REQUIRED);
    gate.reload(&renamed).await;
    assert_eq!(gate.client.get("/late/x").await, 200);
    assert_eq!(servers.good.logins(), 2, "one for each name");

    let moved =
        renamed
            .without("hang")
            .without("late")
            .with("fine", "good", &servers.other.url(), "");
    let before = servers.other.requests_to("/x").len();
    gate.reload(&moved).await;
    eventually("the move", async || {
        servers.other.requests_to("/x").len() > before + 10
    })
    .await;
    let old = servers.good.requests_to("/x").len();
    for path in ["/late/x", "/hang/x"] {
        assert_eq!(gate.client.get(path).await, 404, "removed");
    }
    let (status, text) = gate.readiness().await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(servers.good.requests_to("/x").len(), old, "it has moved");
    assert!(servers.wrong.logins() <= 2, "one for each name");
    gate.end().await;
}

/// One is removed and another one added in the same reload, which hangs: it is not taken for the first
/// under a new name, whose server would get its requests.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_upstream_is_not_taken_for_the_one_that_was_removed() {
    let servers = Servers::start().await;
    let first = servers
        .fleet()
        .with("late", "late", &servers.other.url(), "");
    let mut gate = FleetGate::start(&first).await;
    gate.becomes("/late/x", 200).await;
    let new = first
        .without("late")
        .with("newer", "late", &servers.hanging, NOT_REQUIRED);
    let before = servers.other.requests_to("/x").len();
    gate.reload(&new).await;
    gate.becomes("/late/x", 503).await;
    assert_eq!(servers.other.requests_to("/x").len(), before);
    gate.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_passwords_for_one_user_at_one_address_are_refused() {
    let servers = Servers::start().await;
    let twice = servers
        .fleet()
        .with("good2", "good2", &servers.good.url(), "");
    let gate = FleetGate::start(&twice).await;
    let other = twice
        .text()
        .replacen("webapp-password", "other-password", 1);
    secret(
        &gate.gateway.folder.path().join("other-password"),
        "Another-1!",
    );
    std::fs::write(gate.gateway.config_file(), other).unwrap();
    let reloads = &gate.gateway.metrics.reloads;
    eventually("the refusal", async || {
        reloads.value(ReloadResult::Refused) == 1
    })
    .await;
    gate.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tries_the_upstreams_at_the_same_time_and_prints_them_in_order() {
    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
    let mut fleet = Fleet::default();
    for name in NAMES {
        let url = format!("http://{}", silent().await);
        fleet = fleet.with(name, name, &url, NOT_REQUIRED);
    }
    let folder = tempfile::tempdir().unwrap();
    secret(&folder.path().join("webapp-password"), "Webapp-Passw0rd!");
    let file = folder.path().join("config.toml");
    let lines = fleet.text();
    let lines = lines.lines().filter(|line| !line.starts_with("tls = "));
    std::fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let mut check = Command::new(binary());
    check.args(["check", "--connect", "--config"]).arg(&file);
    let begin = Instant::now();
    let output = tokio::task::spawn_blocking(move || check.output().unwrap());
    let output = output.await.unwrap();
    let time = begin.elapsed();
    assert!(
        time < Duration::from_secs(4),
        "one after the other: {time:?}"
    );
    let text = String::from_utf8(output.stderr).unwrap();
    let found = NAMES.map(|name| text.find(&format!("upstream.{name}.login")));
    assert!(
        found.iter().all(Option::is_some) && found.is_sorted(),
        "{text}"
    );
}
