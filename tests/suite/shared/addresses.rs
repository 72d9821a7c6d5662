//! The store's server by name, and over TLS.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tollgate::config::{ServerAddress, SharedStoreConfig as Settings, StoreTls};
use tollgate::lifecycle::TaskScope;
use tollgate::metrics::Metrics;
use tollgate::store::shared::SharedStore;

use super::{SEAL_KEY, brisk, gate, settings, status, store};
use crate::harness::redis::{RedisServer, free_port};
use crate::harness::{Gateway, emulator, eventually};

/// Waits until a gate with these settings reports this text as the reason why it has no store.
pub(super) async fn start_failure(settings: Settings, expected: &str) -> String {
    let scope = TaskScope::new(tokio::runtime::Handle::current());
    let store = std::sync::Arc::new(SharedStore::new(settings, Metrics::new()));
    let seen = async {
        let mut reason = None;
        eventually(&format!("the store reports {expected}"), async || {
            reason = store.trouble().filter(|text| text.contains(expected));
            reason.is_some()
        })
        .await;
        reason.unwrap().to_string()
    };
    let reason = tokio::select! {
        started = store.start(&scope) => {
            let text = started.expect_err("this store cannot be used").to_string();
            assert!(text.contains(expected), "{text}");
            text
        }
        reason = seen => reason,
    };
    assert!(!store.is_up());
    reason
}

fn at(host: &str, port: u16) -> Vec<ServerAddress> {
    vec![ServerAddress {
        host: host.to_owned(),
        port,
    }]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_found_by_its_name_and_an_unknown_name_is_reported() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let url = format!("redis://localhost:{}", server.port);
    let gate = gate(&webapp, brisk(), &store(&url, "")).await;
    assert_eq!(status(&gate.admin().await).await, 200);
    let unnamed = Settings {
        servers: at("a..b", server.port),
        ..settings(&server)
    };
    start_failure(unnamed, "cannot find the address of a..b: not a host name").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_of_another_prefix_or_database_share_nothing_with_the_rest() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let mut gates = Vec::new();
    let lines = [
        "",
        "database = 1",
        "prefix = \"other\"",
        "prefix = \"other\"",
    ];
    for more in lines {
        gates.push(gate(&webapp, brisk(), &store(&server.url(), more)).await);
    }
    let admin = gates[2].admin().await;
    let token = admin.token.as_ref().unwrap();
    let mut responses = Vec::new();
    for gate in &gates {
        responses.push(status(&gate.client().with_token(token)).await);
    }
    assert_eq!(responses, [401, 401, 200, 200]);
    let other = gates[0].admin().await;
    let out = other.post("/v1/users/logout", &serde_json::json!({})).await;
    assert_eq!(out.status(), 200);
    assert_eq!(status(&other).await, 401);
    assert_eq!(
        status(&admin).await,
        200,
        "another gate's user of that name"
    );
    eventually("one login for the gates that share a store", async || {
        webapp.login_count() == 3
    })
    .await;
}

/// A redis-server with TLS on a second port, with a certificate for `localhost` only, and the
/// CA that signed it.
struct TlsRedis {
    server: RedisServer,
    port: u16,
    folder: TempDir,
}

impl TlsRedis {
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let authority = authority();
        let ca = write("ca.pem", authority.pem());
        write("other.pem", self::authority().pem());
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &authority).unwrap();
        let certificate = write("server.pem", leaf.pem());
        let key = write("server.key", key.serialize_pem());
        let port = free_port();
        let server = RedisServer::with(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &ca,
            "--tls-auth-clients",
            "no",
        ]);
        Self {
            server,
            port,
            folder,
        }
    }

    fn settings(&self, host: &str, authorities: Option<&str>) -> Settings {
        let path = |name: &str| -> PathBuf { self.folder.path().join(name) };
        Settings {
            servers: at(host, self.port),
            tls: Some(StoreTls {
                authorities: authorities.map(path),
            }),
            ..settings(&self.server)
        }
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_over_tls_is_used_only_with_a_certificate_of_the_ca() {
    let (webapp, secured) = (emulator().await, TlsRedis::start());
    let ca = std::fs::read_to_string(secured.folder.path().join("ca.pem")).unwrap();
    let url = format!("rediss://localhost:{}", secured.port);
    let setup = brisk().rest(&store(&url, "ca = \"store-ca.pem\""));
    let files = [("store-key", SEAL_KEY), ("store-ca.pem", ca.as_str())];
    let gate = Gateway::with_secrets(&webapp, setup, &files).await;
    let admin = gate.admin().await;
    assert_eq!(status(&admin).await, 200);
    let users: u64 = secured.server.query(&["HLEN", "{tollgate}:users"]);
    assert_eq!(users, 1, "the admin is in that server");

    for (host, authority) in [
        ("localhost", None),
        ("localhost", Some("other.pem")),
        ("127.0.0.1", Some("ca.pem")),
    ] {
        start_failure(secured.settings(host, authority), "certificate").await;
    }
}
