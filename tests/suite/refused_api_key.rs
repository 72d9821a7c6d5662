//! The upstream refuses the API key: that is logged once, as a state, and not tried with each request.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tollgate::metrics::ReloadResult;

use crate::harness::upstream::{Reply, Upstream};
use crate::harness::{Gateway, NO_LIMITS, Setup, eventually, secret};

const GOOD: &str = "good-api-key-0123";

/// An upstream that responds with `status` to requests with any other API key, and counts them.
async fn upstream(status: u16) -> (Upstream, Arc<AtomicUsize>) {
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let upstream = Upstream::start(move |call| {
        let is_refused = call.head.contains("Apikey ") && !call.head.contains(GOOD);
        if !is_refused {
            return Reply::ok("fine");
        }
        count.fetch_add(1, Ordering::SeqCst);
        let head = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
        Reply::Stay(head.into_bytes())
    })
    .await;
    (upstream, refused)
}

async fn gateway(upstream: &Upstream, key: &str) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://{}", upstream.address);
    let setup = Setup::default().upstream("api_key = { file = \"api-key\" }\nprobe = \"none\"");
    tollgate::emulator::certificates::make(&folder.path().join("certs")).unwrap();
    for (name, text) in [
        ("webapp-password", crate::harness::WEBAPP_PASSWORD),
        ("gate-password", crate::harness::ADMIN_PASSWORD),
        ("api-key", key),
    ] {
        secret(&folder.path().join(name), text);
    }
    let text = crate::harness::text(&setup.rest(NO_LIMITS), &url);
    let text = text.replace("ca = \"webapp-ca.pem\"\nserver_name = \"localhost\"", "");
    let file = folder.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    Gateway::from_file(folder, file).await
}

fn is_told(gateway: &Gateway) -> bool {
    gateway
        .metrics
        .upstream("main")
        .upstream_api_key_refused
        .get()
        == 1
}

async fn notes(gateway: &Gateway) -> String {
    let response = reqwest::get(gateway.operator_url("/readyz")).await.unwrap();
    assert_eq!(response.status(), 200, "requests still succeed");
    response.text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_a_reported_state_and_the_session_token_replaces_it() {
    let (upstream, refused) = upstream(401).await;
    let gateway = gateway(&upstream, "old-api-key-0123").await;
    let client = gateway.admin().await;
    for _ in 0..10 {
        assert_eq!(client.get("/v1/health").await.status(), 200);
    }
    assert_eq!(
        refused.load(Ordering::SeqCst),
        1,
        "one attempt, not one per request"
    );
    assert!(is_told(&gateway));
    assert!(notes(&gateway).await.contains("it refuses the API key"));

    secret(&gateway.folder.path().join("api-key"), GOOD);
    eventually("the new key", async || !is_told(&gateway)).await;
    assert_eq!(client.get("/v1/health").await.status(), 200);
    assert!(!is_told(&gateway));
    assert!(!notes(&gateway).await.contains("API key"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_403_for_the_key_is_treated_like_a_401() {
    let (upstream, refused) = upstream(403).await;
    let gateway = gateway(&upstream, "old-api-key-0123").await;
    let client = gateway.admin().await;
    assert_eq!(
        client.get("/v1/health").await.status(),
        403,
        "a 403 may concern the client"
    );
    assert!(is_told(&gateway));
    for _ in 0..5 {
        assert_eq!(client.get("/v1/health").await.status(), 200);
    }
    assert_eq!(refused.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_key_is_sent_with_each_request() {
    let (upstream, refused) = upstream(401).await;
    let gateway = gateway(&upstream, GOOD).await;
    let client = gateway.admin().await;
    for _ in 0..3 {
        assert_eq!(client.get("/v1/health").await.status(), 200);
    }
    assert!(!is_told(&gateway) && refused.load(Ordering::SeqCst) == 0);
}

/// Replaces the key all the time, so that no two polls find the same content.
async fn replace_without_rest(folder: &Path) {
    for number in 0.. {
        secret(&folder.join("new"), &format!("old-api-key-{number:05}"));
        std::fs::rename(folder.join("new"), folder.join("api-key")).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reads_the_key_at_once_also_of_an_upstream_that_a_reload_has_made() {
    let (upstream, _) = upstream(401).await;
    let gateway = gateway(&upstream, "old-api-key-0123").await;
    let client = gateway.admin().await;
    // Signals until there is a new key: the first signal may find the one that was read before.
    let has_new_key = async || {
        gateway.steering.hup.notify_one();
        !is_told(&gateway)
    };
    let checks = async {
        assert_eq!(client.get("/v1/health").await.status(), 200);
        assert!(is_told(&gateway));
        tokio::time::sleep(Duration::from_millis(2300)).await;
        assert!(is_told(&gateway), "polls leave the file alone");
        eventually("the new key", has_new_key).await;

        let file = gateway.config_file();
        let text = std::fs::read_to_string(&file).unwrap();
        let more = "probe = \"none\"\nconcurrency = 7";
        std::fs::write(&file, text.replace("probe = \"none\"", more)).unwrap();
        eventually("the reload", async || {
            gateway.metrics.reloads.value(ReloadResult::Applied) == 1
        })
        .await;
        assert_eq!(client.get("/v1/health").await.status(), 200);
        assert!(is_told(&gateway), "this key is refused too");
        eventually("the newest key", has_new_key).await;
    };
    tokio::select! {
        () = checks => {}
        () = replace_without_rest(gateway.folder.path()) => {}
    }
}
