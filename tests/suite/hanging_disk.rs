//! The disk of a gate's store hangs under load and recovers: known tokens work throughout,
//! changes wait once, no confirmed change is lost, and the gate can be stopped meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, Response};
use serde_json::json;
use tempfile::TempDir;
use tollgate::emulator::Emulator;

use crate::harness::client::verdict;
use crate::harness::hung_disk::HungDisk;
use crate::harness::program::{Program, at_ports, free_port};
use crate::harness::{
    ADMIN, ADMIN_PASSWORD, Client, NO_LIMITS, Setup, emulator, eventually, secret, written,
};

/// `[store] timeout`.
const TIMEOUT: Duration = Duration::from_secs(2);
/// `[drain] deadline`.
const DEADLINE: Duration = Duration::from_secs(6);
const PASSWORD: &str = "Passw0rd!";
const SAID: &str = "the disk is not responding";

/// A gate's configuration and its disk.
struct GateOnDisk {
    folder: TempDir,
    config: PathBuf,
    disk: HungDisk,
}

impl GateOnDisk {
    fn before(webapp: &Emulator) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = "[store]\npath = \"disk/gate.redb\"\ntimeout = \"2s\"\n\
                     key = { file = \"store-key\" }";
        let setup = Setup::default()
            .upstream("min_login_interval = \"10ms\"\nlogins_per_hour = 1000")
            .rest(NO_LIMITS)
            .rest(store);
        let config = written(folder.path(), webapp, &setup, |text| {
            text.replace("deadline = \"20s\"", "deadline = \"6s\"")
        });
        let seal = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        secret(&folder.path().join("store-key"), seal);
        let disk = HungDisk::next_to(&config);
        Self {
            folder,
            config,
            disk,
        }
    }

    fn start(&self) -> Gate {
        let program = Program::start(self.disk.gate(&self.config));
        let client = client(self.folder.path(), &program);
        Gate { program, client }
    }
}

struct Gate {
    program: Program,
    client: Client,
}

fn client(folder: &Path, program: &Program) -> Client {
    Client::of(folder, &program.url(""), reqwest::Client::builder())
}

impl Gate {
    async fn log_in(&self, name: &str) -> Client {
        self.client.clone().logged_in(name, PASSWORD).await
    }

    /// Whether a token is known.
    async fn accepts(&self, client: &Client) -> bool {
        let client = self
            .client
            .clone()
            .with_token(client.token.as_ref().unwrap());
        match client.get("/v1/support").await.status().as_u16() {
            200 => true,
            401 => false,
            other => panic!("status {other}"),
        }
    }

    async fn operator(&self, path: &str) -> (u16, String) {
        operator(&self.program, path).await
    }

    async fn is_up(&self) -> bool {
        let (_, metrics) = self.operator("/metrics").await;
        metrics.lines().any(|line| line == "tollgate_store_up 1")
    }

    /// Its log lines about the disk, without access lines.
    fn disk_lines(&self, what: &str) -> Vec<String> {
        let lines = self.program.lines().into_iter();
        let lines = lines.filter(|line| !line.contains("tollgate::access"));
        lines.filter(|line| line.contains(what)).collect()
    }
}

/// What the operator's listener reports.
async fn operator(program: &Program, path: &str) -> (u16, String) {
    let url = format!("http://127.0.0.1:{}{path}", program.operator);
    let response = reqwest::get(url).await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

async fn log_out(client: &Client) -> Response {
    let request = client.request(Method::POST, "/v1/users/logout");
    request.send().await.unwrap()
}

/// Checks for a 503 with the Webapp's envelope and `Retry-After`.
async fn assert_put_off(response: Response) {
    let wait = response.headers()["retry-after"].to_str().unwrap();
    assert!(wait.parse::<u64>().unwrap() >= 1);
    assert_eq!(verdict(response).await, (503, 1011));
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let begin = Instant::now();
    (work.await, begin.elapsed())
}

/// Sends requests with a known token, one by one, until it is stopped. Returns their number
/// and the longest time. Each must succeed.
struct Load(
    Arc<AtomicBool>,
    Vec<tokio::task::JoinHandle<(u32, Duration)>>,
);

impl Load {
    fn with(client: &Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let lanes = (0..4).map(|_| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut count, mut longest) = (0, Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let request = async {
                        let response = client.get("/v1/support").await;
                        let status = response.status();
                        response.bytes().await.map(|_| status)
                    };
                    let (status, took) = timed(request).await;
                    assert_eq!(status.unwrap(), 200, "after {count}");
                    count += 1;
                    longest = longest.max(took);
                }
                (count, longest)
            })
        });
        let lanes = lanes.collect();
        Self(stop, lanes)
    }

    async fn end(self) {
        self.0.store(true, Ordering::Relaxed);
        for lane in self.1 {
            let (count, longest) = lane.await.unwrap();
            assert!(count > 20, "only {count} requests: the load is too small");
            assert!(longest < TIMEOUT, "a request waited for {longest:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_disk_hangs_known_tokens_work_and_no_confirmed_change_is_lost() {
    let webapp = emulator().await;
    let setup = GateOnDisk::before(&webapp);
    let gate = setup.start();
    let admin = gate.client.clone().logged_in(ADMIN, ADMIN_PASSWORD).await;
    for name in ["anna", "bert", "carl", "dora"] {
        let user = json!({ "username": name, "password": PASSWORD });
        assert_eq!(admin.post("/v1/users", &user).await.status(), 201);
    }
    let (anna, bert) = (gate.log_in("anna").await, gate.log_in("bert").await);
    let (carl, dora) = (gate.log_in("carl").await, gate.log_in("dora").await);
    assert_eq!(log_out(&bert).await.status(), 200);
    let load = Load::with(&admin);

    setup.disk.hang();
    let late = async {
        tokio::join!(
            timed(log_out(&anna)),
            timed(gate.client.login("carl", PASSWORD))
        )
    };
    let (out, login) = late.await;
    for (response, took) in [out, login] {
        assert!(took >= TIMEOUT, "the disk does not hang: {took:?}");
        assert!(took < TIMEOUT * 2, "waited for {took:?}");
        assert_put_off(response).await;
    }
    // Only the metrics scrapes read the store's state meanwhile.
    eventually("the gate notices", async || !gate.is_up().await).await;
    let (status, ready) = gate.operator("/readyz").await;
    assert_eq!(status, 200, "ready, because known tokens work");
    assert!(ready.contains(&format!("store: {SAID}")), "{ready}");
    refused_at_once(&gate, (&admin, &anna, &dora)).await;
    // The upstream's token can be renewed, although the new one cannot be stored.
    let logins = webapp.login_count();
    webapp.forget_all_tokens();
    assert!(gate.accepts(&carl).await);
    assert_eq!(webapp.login_count(), logins + 1);
    assert!(gate.accepts(&anna).await && gate.accepts(&dora).await);

    setup.disk.respond();
    eventually("logins work again", async || {
        gate.client.login("dora", PASSWORD).await.status() == 200
    })
    .await;
    load.end().await;
    assert!(gate.is_up().await);
    assert!(!gate.operator("/readyz").await.1.contains("store"));
    // One line about the disk and two about the lease that was not stored; no flood.
    let disk_lines = gate.disk_lines(SAID);
    let errors = disk_lines.iter().filter(|line| line.contains("ERROR"));
    assert_eq!(errors.count(), 1, "{disk_lines:#?}");
    assert!(disk_lines.len() <= 3, "{disk_lines:#?}");
    assert_eq!(gate.disk_lines("the disk responds again").len(), 1);
    // Changes in flight were made, refused ones were not.
    let after = gate.log_in("bert").await;
    let (live, dead) = ([&admin, &carl, &dora, &after], [&anna, &bert]);
    assert_known(&gate, live, dead).await;
    gate.program.signal("KILL");
    drop(gate);
    let gate = setup.start();
    assert_known(&gate, live, dead).await;
    let other = gate.client.login("dora", "0ther-Passw0rd").await;
    assert_eq!(other.status(), 401);
    assert_eq!(gate.client.login("emil", PASSWORD).await.status(), 401);
}

/// Every kind of change, also for a user with a change that already waits for the disk.
async fn refused_at_once(gate: &Gate, (admin, anna, dora): (&Client, &Client, &Client)) {
    let emil = json!({ "username": "emil", "password": PASSWORD });
    let password = json!({ "password": "0ther-Passw0rd" }).to_string();
    let change = admin.request(Method::PUT, "/v1/users/dora").body(password);
    let remove = admin.request(Method::DELETE, "/v1/users/bert");
    let refused = [
        ("logout", timed(log_out(dora)).await),
        ("late logout", timed(log_out(anna)).await),
        ("login", timed(gate.client.login("bert", PASSWORD)).await),
        (
            "late login",
            timed(gate.client.login("carl", PASSWORD)).await,
        ),
        ("user", timed(admin.post("/v1/users", &emil)).await),
        (
            "password",
            timed(async { change.send().await.unwrap() }).await,
        ),
        (
            "removal",
            timed(async { remove.send().await.unwrap() }).await,
        ),
    ];
    for (what, (response, took)) in refused {
        assert!(took < TIMEOUT, "{what} waited for {took:?}");
        assert_put_off(response).await;
    }
}

async fn assert_known(gate: &Gate, live: [&Client; 4], dead: [&Client; 2]) {
    for (at, client) in live.iter().enumerate() {
        assert!(gate.accepts(client).await, "live {at}");
    }
    for (at, client) in dead.iter().enumerate() {
        assert!(!gate.accepts(client).await, "dead {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_stopped_while_its_disk_hangs_ends_in_time_and_loses_no_confirmed_change() {
    let webapp = emulator().await;
    let setup = GateOnDisk::before(&webapp);
    let mut gate = setup.start();
    let admin = gate.client.clone().logged_in(ADMIN, ADMIN_PASSWORD).await;
    setup.disk.hang();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let client = gate.client.clone();
            tokio::spawn(async move { client.login(ADMIN, ADMIN_PASSWORD).await })
        })
        .collect();
    tokio::time::sleep(TIMEOUT / 4).await;
    gate.program.signal("TERM");
    let (status, took) = timed(async { gate.program.wait() }).await;
    assert_eq!(status.code(), Some(0), "no request in flight was dropped");
    assert!(took < DEADLINE + TIMEOUT, "took {took:?}");
    for response in waiting {
        assert_put_off(response.await.unwrap()).await;
    }
    let left = "closed without waiting for the disk";
    gate.program.wait_for(left);
    assert_eq!(gate.disk_lines(left).len(), 1);
    setup.disk.respond();
    let gate = setup.start();
    assert!(gate.accepts(&admin).await);
    gate.client.logged_in(ADMIN, ADMIN_PASSWORD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_a_hanging_disk_logs_it_can_be_stopped_and_continues_when_the_disk_recovers() {
    let webapp = emulator().await;
    let setup = GateOnDisk::before(&webapp);
    drop(setup.start()); // killed, so that the file exists
    setup.disk.hang();
    let slow = "the disk may be unresponsive";
    let ports = (free_port(), free_port());
    let config = std::fs::read_to_string(&setup.config).unwrap();
    std::fs::write(&setup.config, at_ports(&config, ports)).unwrap();
    let mut program = Program::with_ports(setup.disk.gate(&setup.config), ports);
    let line = program.wait_for(slow);
    assert!(
        line.contains("WARN") && line.contains("disk/gate.redb"),
        "{line}"
    );
    assert_eq!(operator(&program, "/healthz").await.0, 200, "alive");
    let (status, ready) = operator(&program, "/readyz").await;
    assert_eq!(status, 503);
    assert!(ready.contains("starting: the store"), "{ready}");
    assert_eq!(operator(&program, "/keys").await.0, 503);
    let (_, metrics) = operator(&program, "/metrics").await;
    assert!(metrics.contains("tollgate_ready 0\n"), "{metrics}");
    assert!(metrics.contains("tollgate_store_up 0\n"), "{metrics}");
    program.signal("TERM");
    let (status, took) = timed(async { program.wait() }).await;
    assert_eq!(status.code(), Some(0));
    assert!(took < DEADLINE, "took {took:?}");

    let program = Program::with_ports(setup.disk.gate(&setup.config), ports);
    program.wait_for(slow);
    setup.disk.respond();
    eventually("the gate is ready", async || {
        operator(&program, "/readyz").await.0 == 200
    })
    .await;
    let client = client(setup.folder.path(), &program);
    client.logged_in(ADMIN, ADMIN_PASSWORD).await;
    let disk_lines = program.lines().into_iter();
    let disk_lines = disk_lines.filter(|line| line.contains("the store is not open yet"));
    assert!(disk_lines.count() <= 4, "{:#?}", program.lines());
}
