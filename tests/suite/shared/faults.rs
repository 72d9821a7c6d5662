//! The store fails in every possible way under load. Known tokens stay valid, no client gets a
//! wrong 401, no revoked token comes back, and everything recovers without help.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tollgate::config::SharedStoreConfig as Settings;
use tollgate::secret::SecretSource;

use super::addresses::start_failure;
use super::{brisk, settings, status, store, three};
use crate::harness::client::verdict;
use crate::harness::program::{Program, at_ports, binary, free_port};
use crate::harness::redis::RedisServer;
use crate::harness::{
    ADMIN, ADMIN_PASSWORD, Client, Gateway, emulator, eventually, secret, written,
};

/// Clients that send requests all the time and count responses that must not occur.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicU64>,
    bad: Arc<AtomicU64>,
    took: Arc<Mutex<Vec<Duration>>>,
    running: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    pub(super) fn of(clients: &[Client]) -> Self {
        let (stop, good, bad) = (Arc::default(), Arc::default(), Arc::default());
        let mut load = Self {
            stop,
            good,
            bad,
            took: Arc::default(),
            running: Vec::new(),
        };
        for client in clients {
            let client = client.clone();
            let (stop, good, bad) = (load.stop.clone(), load.good.clone(), load.bad.clone());
            let took = Arc::clone(&load.took);
            load.running.push(tokio::spawn(async move {
                let stop: Arc<AtomicBool> = stop;
                while !stop.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    let count = match status(&client).await {
                        200 => &good,
                        _ => &bad,
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                    took.lock().unwrap().push(begin.elapsed());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }));
        }
        load
    }

    /// The median time of the responses.
    pub(super) fn median(&self) -> Duration {
        let mut took = self.took.lock().unwrap().clone();
        took.sort_unstable();
        took[took.len() / 2]
    }

    pub(super) async fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for one in self.running {
            one.await.unwrap();
        }
        (
            self.good.load(Ordering::Relaxed),
            self.bad.load(Ordering::Relaxed),
        )
    }
}

pub(super) fn has(gate: &Gateway, line: &str) -> bool {
    gate.metrics.text().lines().any(|have| have == line)
}

pub(super) async fn all_have(gates: &[Gateway], line: &str) {
    for gate in gates {
        eventually(line, async || has(gate, line)).await;
    }
}

/// A token of the first gate, known at all three.
pub(super) async fn known(gates: &[Gateway]) -> Vec<Client> {
    let one = gates[0].admin().await;
    let mut clients = Vec::new();
    for gate in gates {
        let client = gate.client().with_token(one.token.as_ref().unwrap());
        assert_eq!(status(&client).await, 200);
        clients.push(client);
    }
    clients
}

/// The response to a client while the store is down.
pub(super) async fn refuses_what_needs_the_store(gate: &Gateway) {
    let login = gate.client().login(ADMIN, ADMIN_PASSWORD).await;
    assert!(login.headers().contains_key("retry-after"));
    assert_eq!(verdict(login).await, (503, 1011));
    let unknown_token = gate.client().with_token("tg_known_to_another_gate_perhaps");
    let response = unknown_token.get("/v1/support").await;
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(verdict(response).await, (503, 1011));
    let ready = reqwest::get(gate.operator_url("/readyz")).await.unwrap();
    assert_eq!(ready.status(), 200, "known tokens are valid");
    assert!(ready.text().await.unwrap().contains("store"));
}

pub(super) async fn works_again(gates: &[Gateway]) {
    all_have(gates, "tollgate_store_up 1").await;
    for gate in gates {
        let client = gate.client();
        eventually("logins work again", async || {
            client.login(ADMIN, ADMIN_PASSWORD).await.status() == 200
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_store_that_restarts_empty_fails_no_request() {
    let (webapp, mut server) = (emulator().await, RedisServer::start());
    let gates = three(&webapp, &server, "").await;
    let clients = known(&gates).await;
    // Revoked before the fault: must stay revoked during and after it.
    let dead = gates[1].client().logged_in(ADMIN, ADMIN_PASSWORD).await;
    let made = json!({ "username": "worker", "password": "Worker-Passw0rd!" });
    assert_eq!(clients[0].post("/v1/users", &made).await.status(), 201);
    let worker = gates[0]
        .client()
        .logged_in("worker", "Worker-Passw0rd!")
        .await;
    let out = worker.post("/v1/users/logout", &json!({})).await;
    assert_eq!(out.status(), 200);
    drop(dead);
    let load = Load::of(&clients);
    for round in 0..2 {
        server.kill();
        all_have(&gates, "tollgate_store_up 0").await;
        for gate in &gates {
            refuses_what_needs_the_store(gate).await;
        }
        server.start_again();
        works_again(&gates).await;
        let revoked = gates[2].client().with_token(worker.token.as_ref().unwrap());
        let response = status(&revoked).await;
        assert!(
            response == 401 || response == 503,
            "{response} in round {round}"
        );
        // A user created at run time still exists, and so does the shared login.
        eventually("users are known again", async || {
            let login = gates[1].client().login("worker", "Worker-Passw0rd!").await;
            login.status() == 200
        })
        .await;
    }
    let (good, bad) = load.end().await;
    assert!(
        good > 50 && bad == 0,
        "{bad} of {good} known requests failed"
    );
    assert_eq!(
        webapp.login_count(),
        1,
        "no fault of the store causes a login"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_store_is_not_queried_until_it_responds_again() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let gates = three(&webapp, &server, "").await;
    let clients = known(&gates).await;
    let load = Load::of(&clients);
    server.freeze();
    all_have(&gates, "tollgate_store_up 0").await;
    for gate in &gates {
        refuses_what_needs_the_store(gate).await;
    }
    server.thaw();
    works_again(&gates).await;
    let (good, bad) = load.end().await;
    assert!(
        good > 50 && bad == 0,
        "{bad} of {good} known requests failed"
    );
    // Nothing was lost, so nothing was invalidated.
    assert!(
        gates
            .iter()
            .all(|gate| has(gate, "tollgate_store_invalidations_total 0"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_for_a_frozen_store_can_be_stopped() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    server.freeze();
    let folder = tempfile::tempdir().unwrap();
    let setup = brisk().rest(&store(&server.url(), ""));
    let ports = (free_port(), free_port());
    let config = written(folder.path(), &webapp, &setup, |text| {
        at_ports(&text, ports)
    });
    secret(&folder.path().join("store-key"), super::SEAL_KEY);
    let mut command = Command::new(binary());
    command.args(["serve", "--config"]).arg(&config);
    let mut program = Program::with_ports(command, ports);
    let health = format!("http://127.0.0.1:{}/healthz", program.operator);
    eventually("the program has begun to start", async || {
        reqwest::get(&health).await.is_ok()
    })
    .await;
    let begin = Instant::now();
    program.signal("TERM");
    assert_eq!(program.wait().code(), Some(0), "{:#?}", program.lines());
    // Otherwise it waits fifteen seconds.
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn known_grants_are_accepted_until_stale_for_and_not_longer() {
    let (webapp, mut server) = (emulator().await, RedisServer::start());
    let gates = three(&webapp, &server, "stale_for = \"3s\"").await;
    let clients = known(&gates).await;
    server.kill();
    assert_eq!(status(&clients[0]).await, 200);
    for (gate, client) in gates.iter().zip(&clients) {
        eventually("the tokens are refused after stale_for", async || {
            status(client).await == 503
        })
        .await;
        let ready = reqwest::get(gate.operator_url("/readyz")).await.unwrap();
        assert_eq!(ready.status(), 503);
    }
    server.start_again();
    for client in &clients {
        eventually("the tokens are valid again", async || {
            status(client).await == 200
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_out_of_memory_refuses_changes_and_keeps_what_it_has() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let gates = three(&webapp, &server, "").await;
    let clients = known(&gates).await;
    let load = Load::of(&clients);
    let _: () = server.query(&["CONFIG", "SET", "maxmemory", "1"]);
    for gate in &gates {
        let login = gate.client().login(ADMIN, ADMIN_PASSWORD).await;
        assert!(login.headers().contains_key("retry-after"));
        assert_eq!(verdict(login).await, (503, 1011));
        assert!(
            gate.metrics
                .text()
                .contains("tollgate_store_failures_total{reason=\"full\"}")
        );
    }
    let _: () = server.query(&["CONFIG", "SET", "maxmemory", "0"]);
    works_again(&gates).await;
    let (good, bad) = load.end().await;
    assert!(good > 20 && bad == 0, "{bad} of {good} failed");
}

const PASSWORD: &str = "canary-redis-password";

/// Allows the gates, by name and password, and an operator.
fn guard(server: &RedisServer) {
    let gate = format!(">{PASSWORD}");
    let rights = ["+@read", "+@write", "+@scripting", "+@connection", "+time"];
    let mut user = vec!["ACL", "SETUSER", "gate", "on", &gate, "~{tollgate}:*"];
    user.extend(rights);
    let _: () = server.query(&user);
    let operator = ["operator", "on", ">operator", "~*", "+@all"];
    let _: () = server.query(&[&["ACL", "SETUSER"], &operator[..]].concat());
    let _: () = server.query(&["ACL", "SETUSER", "default", "off"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_at_the_start_is_reported_and_never_shown() {
    let server = RedisServer::start();
    guard(&server);
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("redis-password");
    secret(&wrong, "canary-that-is-wrong");
    let settings = Settings {
        username: Some("gate".to_owned()),
        password: Some(SecretSource::File(wrong)),
        ..settings(&server)
    };
    let reason = start_failure(settings, "Password authentication failed").await;
    assert!(!reason.contains("canary"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_becomes_wrong_is_reported_never_shown_and_read_again() {
    let webapp = emulator().await;
    let server = RedisServer::start();
    guard(&server);
    let more = "password = { file = \"redis-password\" }\nusername = \"gate\"";
    let secrets = [("store-key", super::SEAL_KEY), ("redis-password", PASSWORD)];
    let mut gates = Vec::new();
    for _ in 0..3 {
        let setup = brisk().rest(&store(&server.url(), more));
        gates.push(Gateway::with_secrets(&webapp, setup, &secrets).await);
    }
    let load = Load::of(&known(&gates).await);
    // The password is rotated at the server: the gates' connections are cut.
    let url = format!("redis://operator:operator@127.0.0.1:{}", server.port);
    let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    let mut run = |words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).exec(&mut connection).unwrap();
    };
    run(&["ACL", "SETUSER", "gate", "resetpass", ">canary-rotated"]);
    run(&["CLIENT", "KILL", "USER", "gate"]);
    all_have(&gates, "tollgate_store_up 0").await;
    for gate in &gates {
        refuses_what_needs_the_store(gate).await;
        let ready = reqwest::get(gate.operator_url("/readyz")).await.unwrap();
        let ready = ready.text().await.unwrap();
        assert!(!ready.contains("canary"), "{ready}");
        secret(&gate.folder.path().join("redis-password"), "canary-rotated");
    }
    works_again(&gates).await;
    let (good, bad) = load.end().await;
    assert!(good > 20 && bad == 0, "{bad} of {good} failed");
}
