//! A store of several servers, and one behind a broken network link.

use std::process::Command;

use serde_json::json;

use super::faults::{Load, all_have, has, known, refuses_what_needs_the_store, works_again};
use super::{brisk, gate, status, store};
use crate::harness::redis::RedisServer;
use crate::harness::{ADMIN, ADMIN_PASSWORD, emulator, eventually};

#[expect(
    clippy::too_many_lines,
    reason = "one story: set up, fall behind, fail over"
)]
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_by_sentinel_is_followed_and_lost_changes_are_restored() {
    let webapp = emulator().await;
    let mut master = RedisServer::start();
    let port = master.port.to_string();
    let replica = RedisServer::with(&["--replicaof", "127.0.0.1", &port]);
    let sentinel = RedisServer::program(
        "redis-server",
        Some(&format!(
            "sentinel monitor gate 127.0.0.1 {port} 1\nsentinel down-after-milliseconds gate 1000\n\
             sentinel failover-timeout gate 5000\n"
        )),
        &["--sentinel", "--bind", "127.0.0.1"],
    );
    is_in_step(&replica).await;
    eventually("the Sentinel knows the replica", async || {
        sentinel
            .query::<String>(&["INFO", "sentinel"])
            .contains("slaves=1")
    })
    .await;
    let url = format!("redis://127.0.0.1:{}", sentinel.port);
    let more = "sentinel = \"gate\"";
    let mut gates = Vec::new();
    for _ in 0..3 {
        gates.push(gate(&webapp, brisk(), &store(&url, more)).await);
    }
    let clients = known(&gates).await;
    let worker = json!({ "username": "worker", "password": "Worker-Passw0rd!" });
    assert_eq!(clients[0].post("/v1/users", &worker).await.status(), 201);
    let dead = gates[0]
        .client()
        .logged_in("worker", "Worker-Passw0rd!")
        .await;
    let seen = gates[1].client().with_token(dead.token.as_ref().unwrap());
    assert_eq!(status(&seen).await, 200);
    eventually("the replica has all data", async || {
        let at = |server: &RedisServer| server.query::<String>(&["HGET", "{tollgate}:meta", "seq"]);
        at(&replica) == at(&master)
    })
    .await;
    // The replica falls behind and misses a logout; then the master is killed.
    replica.freeze();
    let _: u32 = master.query(&["CLIENT", "KILL", "TYPE", "replica"]);
    let out = dead.post("/v1/users/logout", &json!({})).await;
    assert_eq!(out.status(), 200);
    eventually("the other gates know of the logout", async || {
        status(&seen).await == 401
    })
    .await;
    let load = Load::of(&clients);
    master.kill();
    replica.thaw();
    // Sentinel closes the replica's other connections while it promotes it, so this query may
    // be cut off.
    eventually("the replica is the master", async || {
        has_role(&replica, "master")
    })
    .await;
    works_again(&gates).await;
    for gate in &gates {
        let revoked = gate.client().with_token(dead.token.as_ref().unwrap());
        eventually("the revoked token stays revoked", async || {
            status(&revoked).await == 401
        })
        .await;
    }
    let (good, bad) = load.end().await;
    assert!(
        good > 50 && bad == 0,
        "{bad} of {good} known requests failed"
    );
}

/// Three masters, each with a third of the slots; replicas are added later.
pub(super) async fn cluster() -> Vec<RedisServer> {
    let nodes: Vec<RedisServer> = (0..3).map(|_| node()).collect();
    let all: Vec<String> = nodes.iter().map(address).collect();
    let mut words = vec!["create"];
    words.extend(all.iter().map(String::as_str));
    words.extend(["--cluster-replicas", "0", "--cluster-yes"]);
    redis_cli(&words);
    for node in &nodes {
        eventually("the cluster is complete", async || {
            node.query::<String>(&["CLUSTER", "INFO"])
                .contains("cluster_state:ok")
        })
        .await;
    }
    nodes
}

fn node() -> RedisServer {
    RedisServer::with(&["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"])
}

fn address(node: &RedisServer) -> String {
    format!("127.0.0.1:{}", node.port)
}

fn redis_cli(words: &[&str]) {
    let done = Command::new("redis-cli")
        .arg("--cluster")
        .args(words)
        .output();
    let done = done.unwrap();
    let output = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_found_by_any_of_its_nodes() {
    let (webapp, nodes) = (emulator().await, cluster().await);
    let mut gates = Vec::new();
    for node in &nodes {
        let store = store(&node.url(), "cluster = true");
        gates.push(gate(&webapp, brisk(), &store).await);
    }
    let clients = known(&gates).await;
    let out = clients[2].post("/v1/users/logout", &json!({})).await;
    assert_eq!(out.status(), 200);
    for client in &clients {
        eventually("the token has ended at all gates", async || {
            status(client).await == 401
        })
        .await;
    }
    assert_eq!(webapp.login_count(), 1);
}

fn has_role(node: &RedisServer, role: &str) -> bool {
    let info: redis::RedisResult<String> = node.try_query(&["INFO", "replication"]);
    info.is_ok_and(|info| info.contains(&format!("role:{role}")))
}

async fn is_in_step(replica: &RedisServer) {
    eventually("the replica is in step", async || {
        replica
            .query::<String>(&["INFO", "replication"])
            .contains("master_link_status:up")
    })
    .await;
}

/// A replica of the cluster's node that has the gates' slot.
async fn replica(master: &RedisServer) -> RedisServer {
    let (id, replica) = (master.query::<String>(&["CLUSTER", "MYID"]), node());
    let (new, there) = (address(&replica), address(master));
    let role = ["--cluster-slave", "--cluster-master-id", &id];
    redis_cli(&[&["add-node", &new, &there], &role[..]].concat());
    is_in_step(&replica).await;
    replica
}

/// The replica's position in the master's replication stream.
fn offset(node: &RedisServer) -> String {
    let info = node.query::<String>(&["INFO", "replication"]);
    let mut lines = info.lines();
    let offset = lines.find_map(|line| line.strip_prefix("master_repl_offset:"));
    offset.unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_or_forced_failover_of_a_cluster_is_followed() {
    let (webapp, mut nodes) = (emulator().await, cluster().await);
    let owner = |node: &RedisServer| {
        node.try_query::<u32>(&["EXISTS", "{tollgate}:meta"])
            .is_ok()
    };
    nodes.sort_by_key(owner);
    let master = nodes.pop().unwrap();
    let mut replica = replica(&master).await;
    let all = [&nodes[0], &nodes[1], &replica, &master].map(|node| format!("{:?}", node.url()));
    let list = format!("[{}]", all.join(", "));
    let lines = store("LIST", "cluster = true").replace("\"LIST\"", &list);
    let mut gates = Vec::new();
    for _ in 0..3 {
        gates.push(gate(&webapp, brisk(), &lines).await);
    }
    let clients = known(&gates).await;
    let worker = json!({ "username": "worker", "password": "Worker-Passw0rd!" });
    assert_eq!(clients[0].post("/v1/users", &worker).await.status(), 201);
    let worker = gates[0].client();
    let dead = worker.logged_in("worker", "Worker-Passw0rd!").await;
    let load = Load::of(&clients);
    let _: String = replica.query(&["CLUSTER", "FAILOVER"]);
    eventually("master and replica have changed roles", async || {
        has_role(&replica, "master") && has_role(&master, "slave")
    })
    .await;
    works_again(&gates).await;
    let out = dead.post("/v1/users/logout", &json!({})).await;
    assert_eq!(out.status(), 200);
    eventually("the other node knows of the change", async || {
        offset(&replica) == offset(&master)
    })
    .await;
    replica.kill();
    eventually("the first one is master again", async || {
        has_role(&master, "master")
    })
    .await;
    works_again(&gates).await;
    for gate in &gates {
        let revoked = gate.client().with_token(dead.token.as_ref().unwrap());
        assert_eq!(
            status(&revoked).await,
            401,
            "the revoked token stays revoked"
        );
    }
    let (good, bad) = load.end().await;
    assert!(
        good > 50 && bad == 0,
        "{bad} of {good} known requests failed"
    );
    assert_eq!(webapp.login_count(), 1);
}

/// A network namespace with two links to it; removed when dropped.
struct Network(String);

impl Network {
    /// None without root, which this needs.
    fn new() -> Option<Self> {
        let name = format!("tg{}", std::process::id() % 100_000);
        if !ip(&["netns", "add", &name]) {
            return None;
        }
        let network = Self(name);
        for cable in [1, 2] {
            let (here, there) = (network.cable(cable), format!("p{cable}"));
            let name = network.0.as_str();
            ip(&[
                "link", "add", &here, "type", "veth", "peer", "name", &there, "netns", name,
            ]);
            ip(&["addr", "add", &format!("10.213.{cable}.1/24"), "dev", &here]);
            ip(&["link", "set", &here, "up"]);
            let inside = format!("10.213.{cable}.2/24");
            ip(&["-n", name, "addr", "add", &inside, "dev", &there]);
            ip(&["-n", name, "link", "set", &there, "up"]);
        }
        ip(&["-n", &network.0, "link", "set", "lo", "up"]);
        Some(network)
    }

    fn cable(&self, number: u8) -> String {
        format!("{}c{number}", self.0)
    }

    fn set(&self, number: u8, state: &str) {
        assert!(ip(&["link", "set", &self.cable(number), state]));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.0]);
    }
}

fn ip(words: &[&str]) -> bool {
    let done = Command::new("ip").args(words).output();
    done.is_ok_and(|done| done.status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_cut_off_continues_and_later_gets_the_missed_changes() {
    let Some(network) = Network::new() else {
        println!("SKIPPED: a partition needs root, for a network namespace");
        return;
    };
    let webapp = emulator().await;
    let server = RedisServer::in_network(&network.0, "10.213.1.2");
    let mut gates = Vec::new();
    for cable in [1, 1, 2] {
        let url = format!("redis://10.213.{cable}.2:{}", server.port);
        gates.push(gate(&webapp, brisk(), &store(&url, "allow_plaintext = true")).await);
    }
    let clients = known(&gates).await;
    let other = gates[0].client().logged_in(ADMIN, ADMIN_PASSWORD).await;
    let worker = json!({ "username": "worker", "password": "Worker-Passw0rd!" });
    assert_eq!(other.post("/v1/users", &worker).await.status(), 201);
    let out = gates[0]
        .client()
        .logged_in("worker", "Worker-Passw0rd!")
        .await;
    let there = gates[2].client().with_token(out.token.as_ref().unwrap());
    assert_eq!(status(&there).await, 200);
    let load = Load::of(&clients);
    network.set(2, "down");
    let end = out.post("/v1/users/logout", &json!({})).await;
    assert_eq!(end.status(), 200);
    all_have(&gates[2..], "tollgate_store_up 0").await;
    refuses_what_needs_the_store(&gates[2]).await;
    assert!(
        has(&gates[0], "tollgate_store_up 1"),
        "the other gates keep the store"
    );
    network.set(2, "up");
    works_again(&gates).await;
    eventually("the gate has received the logout", async || {
        status(&there).await == 401
    })
    .await;
    let (good, bad) = load.end().await;
    assert!(
        good > 50 && bad == 0,
        "{bad} of {good} known requests failed"
    );
}
