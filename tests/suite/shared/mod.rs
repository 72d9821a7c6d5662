//! Several gates with one store: each test uses a real redis-server, from Debian.

mod addresses;
mod bad_connections;
mod engine;
mod eviction;
mod faults;
mod gates;
mod limits;
mod login;
mod migration;
mod races;
mod revocation_delay;
mod servers;
mod token_counts;

use std::sync::Arc;
use std::time::Duration;

use tollgate::config::{ServerAddress, SharedStoreConfig as Settings};
use tollgate::lifecycle::TaskScope;
use tollgate::metrics::Metrics;
use tollgate::store::shared::SharedStore;

use crate::harness::redis::RedisServer;
use crate::harness::{Client, Gateway, NO_LIMITS, Setup};
use tollgate::emulator::Emulator;

pub(crate) fn settings(server: &RedisServer) -> Settings {
    let address = ServerAddress {
        host: "127.0.0.1".to_owned(),
        port: server.port,
    };
    Settings {
        stale_for: Duration::from_secs(60),
        timeout: Duration::from_secs(2),
        ..Settings::at(vec![address])
    }
}

/// The store as a gate opens it; ends with the test.
pub(crate) async fn open(settings: Settings) -> Arc<SharedStore> {
    let scope = TaskScope::new(tokio::runtime::Handle::current());
    let store = Arc::new(SharedStore::new(settings, Metrics::new()));
    store.start(&scope).await.unwrap();
    store
}

/// 32 bytes in base64; the same for all gates.
pub(crate) const SEAL_KEY: &str = "c2VhbC1rZXktb2YtdGhlLXRlc3RzLTMyLWJ5dGVzISE=";

/// A gate's `[store]` section, with additional lines.
pub(crate) fn store(url: &str, more: &str) -> String {
    format!(
        "[store]\nurl = \"{url}\"\nkey = {{ file = \"store-key\" }}\ntimeout = \"2s\"\n{more}\n"
    )
}

/// A gate with the store at `url`. `setup` has everything but the store.
pub(crate) async fn gate(webapp: &Emulator, setup: Setup, store: &str) -> Gateway {
    Gateway::with_secrets(webapp, setup.rest(store), &[("store-key", SEAL_KEY)]).await
}

/// Three gates with one server, with fast logins and no limits.
pub(crate) async fn three(webapp: &Emulator, server: &RedisServer, more: &str) -> Vec<Gateway> {
    let mut gates = Vec::new();
    for _ in 0..3 {
        gates.push(gate(webapp, brisk(), &store(&server.url(), more)).await);
    }
    gates
}

pub(crate) fn brisk() -> Setup {
    Setup::default()
        .upstream("min_login_interval = \"10ms\"\nlogins_per_hour = 1000")
        .rest(NO_LIMITS)
}

pub(crate) async fn status(client: &Client) -> u16 {
    client.get("/v1/support").await.status().as_u16()
}
