//! A changed file takes effect without a dropped request; a bad one changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tollgate::metrics::ReloadResult;

use crate::harness::{Gateway, NO_LIMITS, Setup, emulator, eventually, text};

fn rewrite(gateway: &Gateway, from: &str, to: &str) {
    let file = gateway.config_file();
    let old = std::fs::read_to_string(&file).unwrap();
    assert!(old.contains(from), "{from:?} is not in the file");
    std::fs::write(&file, old.replace(from, to)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_change_applies_without_a_signal_and_drops_no_request() {
    let webapp = emulator().await;
    let setup = Setup::default().rest(&format!("{NO_LIMITS}\n[http]\nmin_body_rate = 0\n"));
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/support").await.status(), 200);

    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(client.get("/v1/settings/application").await.status(), 200);
                sent += 1;
            }
            sent
        })
    };
    rewrite(
        &gateway,
        "[http]",
        "[[route]]\nname = \"support.show\"\ntarget = \"closed\"\n\n[http]",
    );
    eventually("the route to close", async || {
        client.get("/v1/support").await.status() == 404
    })
    .await;
    // The gate logs in at a changed upstream before it sends requests there.
    rewrite(&gateway, "[users]", "concurrency = 32\n\n[users]");
    eventually("the second reload", async || {
        gateway.metrics.reloads.value(ReloadResult::Applied) >= 2
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 10);
    assert_eq!(
        client.get("/v1/settings/application").await.status(),
        200,
        "tokens are still valid"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_is_refused_and_the_old_rules_stay() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let client = gateway.admin().await;
    let good = std::fs::read_to_string(gateway.config_file()).unwrap();
    std::fs::write(
        gateway.config_file(),
        good.replace("profile = ", "profil = "),
    )
    .unwrap();
    gateway.steering.hup.notify_waiters();
    eventually("the refusal", async || {
        gateway.metrics.reloads.value(ReloadResult::Refused) > 0
    })
    .await;
    assert_eq!(gateway.metrics.config_is_current.get(), 0);
    assert_eq!(client.get("/v1/support").await.status(), 200);
    std::fs::write(gateway.config_file(), good).unwrap();
    eventually("the file is valid again", async || {
        gateway.metrics.config_is_current.get() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_fails_in_part_is_not_applied_at_all() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let client = gateway.admin().await;
    let folder = gateway.folder.path();
    // A good part: certificates of another CA, which the client does not know.
    tollgate::emulator::certificates::make(&folder.join("other")).unwrap();
    // A bad part: the content of this file is wrong.
    let broken = "-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n";
    std::fs::write(folder.join("broken.pem"), broken).unwrap();
    let good = std::fs::read_to_string(gateway.config_file()).unwrap();
    let bad = good
        .replace("certs/server", "other/server")
        .replace("webapp-ca.pem", "broken.pem");
    std::fs::write(gateway.config_file(), bad).unwrap();
    eventually("the refusal", async || {
        gateway.metrics.reloads.value(ReloadResult::Refused) > 0
    })
    .await;
    let fresh = gateway.client().with_token(client.token.as_ref().unwrap());
    assert_eq!(
        fresh.get("/v1/support").await.status(),
        200,
        "the old certificate"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_upstream_takes_over_and_the_old_one_is_released() {
    let (one, two) = (emulator().await, emulator().await);
    let gateway = Gateway::with(&one, Setup::default().rest(NO_LIMITS)).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/support").await.status(), 200);
    std::fs::write(
        gateway.folder.path().join("webapp-ca.pem"),
        two.authority_pem(),
    )
    .unwrap();
    let new = text(
        &Setup::default().rest(NO_LIMITS),
        &format!("https://{}", two.address()),
    );
    std::fs::write(gateway.config_file(), new).unwrap();
    eventually("requests to reach the new one", async || {
        assert_eq!(client.get("/v1/support").await.status(), 200);
        two.request_count("/v1/support") > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_did_not_change_keep_their_counts() {
    let webapp = emulator().await;
    let rest = "[[limit]]\nname = \"slow\"\nkey = \"client\"\nclasses = [\"other\"]\nrate = \"1/h\"\nburst = 2\n";
    let gateway = Gateway::with(&webapp, Setup::default().rest(rest)).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/support").await.status(), 200);
    assert_eq!(client.get("/v1/support").await.status(), 200);
    assert_eq!(client.get("/v1/support").await.status(), 429);
    rewrite(
        &gateway,
        "[drain]",
        "[http]\nallow_underscores = true\n\n[drain]",
    );
    eventually("the reload", async || {
        gateway.metrics.reloads.value(ReloadResult::Applied) > 0
    })
    .await;
    assert_eq!(
        client.get("/v1/support").await.status(),
        429,
        "the bucket is still empty"
    );
}
