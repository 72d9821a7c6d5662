//! A server that may evict records of revoked tokens: a gate does not start with it, unless
//! configured to, and reports it while it runs. Real servers, alone and as a cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate::config::{MasterDiscovery, SharedStoreConfig as Settings};
use tollgate::lifecycle::TaskScope;
use tollgate::metrics::Metrics;
use tollgate::secret::SecretSource;
use tollgate::store::shared::{EvictingServer, EvictionFound, SharedStore, reach};

use super::servers::cluster;
use super::{brisk, gate, settings, store};
use crate::check_command::connected;
use crate::harness::redis::RedisServer;
use crate::harness::{
    Gateway, Setup, WEBAPP_PASSWORD, emulator, eventually, prepare, secret, text,
};

/// The error of a start with this store, or None.
async fn refusal(settings: Settings) -> Option<String> {
    let scope = TaskScope::new(tokio::runtime::Handle::current());
    let store = Arc::new(SharedStore::new(settings, Metrics::new()));
    let begin = Instant::now();
    let started = store.start(&scope).await;
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "the refusal comes at once"
    );
    started.err().map(|error| error.to_string())
}

fn evicts(found: &EvictionFound, with: &str) -> bool {
    matches!(found, EvictionFound::Evicts(EvictingServer { policy, .. }) if policy == with)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_does_not_start_with_a_server_that_evicts_unless_configured_to() {
    let server = RedisServer::start();
    for policy in [
        "volatile-ttl",
        "volatile-lru",
        "allkeys-lfu",
        "allkeys-random",
    ] {
        let _: () = server.query(&["CONFIG", "SET", "maxmemory-policy", policy]);
        let reason = refusal(settings(&server)).await.expect(policy);
        for part in [policy, "noeviction", "allow_eviction"] {
            assert!(reason.contains(part), "{reason}");
        }
        assert!(evicts(&reach(&settings(&server)).await.unwrap(), policy));
        let accepted = Settings {
            allow_eviction: true,
            ..settings(&server)
        };
        assert_eq!(refusal(accepted).await, None);
    }
    let _: () = server.query(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    assert_eq!(refusal(settings(&server)).await, None);
    let found = reach(&settings(&server)).await;
    assert_eq!(found.unwrap(), EvictionFound::Keeps);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_ends_with_the_reason() {
    let server = RedisServer::with(&["--maxmemory-policy", "volatile-ttl"]);
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), &webapp);
    secret(&folder.path().join("store-key"), super::SEAL_KEY);
    let setup = brisk().rest(&store(&server.url(), ""));
    let file = folder.path().join("config.toml");
    std::fs::write(
        &file,
        text(&setup, &format!("https://{}", webapp.address())),
    )
    .unwrap();
    let mut command = std::process::Command::new(crate::harness::program::binary());
    let output = command.arg("serve").arg("--config").arg(&file).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("volatile-ttl") && stderr.contains("allow_eviction"),
        "{stderr}"
    );
}

async fn ready(gateway: &Gateway) -> (u16, String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = client.get(gateway.operator_url("/readyz")).send();
    let response = response.await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_change_while_a_gate_runs_is_reported_and_so_is_its_end() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let gateway = gate(&webapp, brisk(), &store(&server.url(), "")).await;
    assert_eq!(gateway.metrics.store_eviction_enabled.get(), 0);
    let _: () = server.query(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
    eventually("the metric shows the policy", async || {
        gateway.metrics.store_eviction_enabled.get() == 1
    })
    .await;
    let (status, text) = ready(&gateway).await;
    assert_eq!(status, 200, "known tokens stay valid");
    assert!(text.contains("volatile-ttl"), "{text}");
    let _: () = server.query(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    eventually("the policy is safe again", async || {
        gateway.metrics.store_eviction_enabled.get() == 0
    })
    .await;
    assert!(!ready(&gateway).await.1.contains("evicts"));

    // A new connection, for instance after a failover, checks at once; the gate continues.
    let _: () = server.query(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let begin = Instant::now();
    let _: u32 = server.query(&["CLIENT", "KILL", "TYPE", "normal"]);
    eventually("the policy is reported", async || {
        gateway.metrics.store_eviction_enabled.get() == 1
    })
    .await;
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "before the next periodic check"
    );
    eventually("the store is connected again", async || {
        gateway.metrics.store_up.get() == 1
    })
    .await;
    assert!(ready(&gateway).await.1.contains("allkeys-lru"));
}

/// The store as seen by an ACL user with these rights.
fn limited(server: &RedisServer, rights: &[&str], folder: &tempfile::TempDir) -> Settings {
    let base = [
        "ACL",
        "SETUSER",
        "gate",
        "reset",
        "on",
        ">gate-secret",
        "~*",
        "+@read",
    ];
    let more = ["+@write", "+@scripting", "+@connection", "+time"];
    let words = [&base[..], &more[..], rights].concat();
    let _: () = server.query(&words);
    let file = folder.path().join("redis-password");
    secret(&file, "gate-secret");
    Settings {
        username: Some("gate".to_owned()),
        password: Some(SecretSource::File(file)),
        ..settings(server)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_is_read_by_either_command_and_a_hidden_one_does_not_stop_the_start() {
    let server = RedisServer::with(&["--maxmemory-policy", "volatile-lfu"]);
    let folder = tempfile::tempdir().unwrap();
    for rights in ["+info", "+config|get"] {
        let settings = limited(&server, &[rights], &folder);
        let reason = refusal(settings).await.expect(rights);
        assert!(reason.contains("volatile-lfu"), "{rights}: {reason}");
    }
    let settings = limited(&server, &[], &folder);
    let found = reach(&settings).await.unwrap();
    assert!(matches!(found, EvictionFound::Hidden(_)), "{found:?}");
    assert_eq!(refusal(settings).await, None, "a warning in the log");
    // Servers as hosting providers run them.
    let server = RedisServer::with(&[
        "--maxmemory-policy",
        "volatile-lru",
        "--rename-command",
        "CONFIG",
        "",
    ]);
    assert!(
        refusal(super::settings(&server))
            .await
            .unwrap()
            .contains("volatile-lru")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_master_of_a_cluster_is_checked() {
    let nodes = cluster().await;
    let settings = Settings {
        finding: MasterDiscovery::Cluster,
        ..settings(&nodes[0])
    };
    assert_eq!(reach(&settings).await.unwrap(), EvictionFound::Keeps);
    for node in &nodes {
        let _: () = node.query(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
        let found = reach(&settings).await.unwrap();
        assert!(evicts(&found, "volatile-ttl"), "{found:?}");
        let reason = refusal(settings.clone()).await.unwrap();
        let named = format!("127.0.0.1:{} evicts", node.port);
        assert!(reason.contains(&named), "{reason}");
        let _: () = node.query(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_connect_queries_the_store() {
    let webapp = emulator().await;
    let (keeps, evicts) = (
        RedisServer::start(),
        RedisServer::with(&["--maxmemory-policy", "volatile-ttl"]),
    );
    let connect = |url: &str| {
        let setup = Setup::default().rest(&format!("[store]\nurl = \"{url}\""));
        connected(&webapp, &setup, WEBAPP_PASSWORD)
    };
    let (code, out, stderr) = connect(&keeps.url());
    assert_eq!(code, 0, "{stderr}");
    assert!(
        out.contains("store.url: redis://") && out.contains("answers"),
        "{out}"
    );
    for (url, reason) in [
        (evicts.url(), "volatile-ttl"),
        ("redis://127.0.0.1:1".to_owned(), "store.url"),
    ] {
        let (code, _, stderr) = connect(&url);
        assert_eq!(code, 1);
        assert!(stderr.contains(reason), "{stderr}");
    }
}
