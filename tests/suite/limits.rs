//! Each client has its limits, and the Webapp never has to respond with 429.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::time::Instant;
use tollgate::emulator::Settings;
use tollgate::metrics::LimitOutcome;

use crate::harness::client::verdict;
use crate::harness::{ADMIN, Gateway, Setup, emulator, emulator_with};

const OWN: &str = r#"
[[limit]]
name = "mine"
key = "client"
classes = ["other"]
rate = "1/m"
burst = 3
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_limit_says_when_to_retry() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(OWN)).await;
    let client = gateway.admin().await;
    for left in [2, 1, 0] {
        let response = client.get("/v1/support").await;
        assert_eq!(response.status(), 200);
        let facts = response.headers()["ratelimit"].to_str().unwrap().to_owned();
        assert!(facts.contains(&format!("r={left}")), "{facts}");
        assert!(
            response.headers()["ratelimit-policy"]
                .to_str()
                .unwrap()
                .contains("\"mine\";q=3")
        );
    }
    let before = webapp.request_count("/v1/support");
    let response = client.get("/v1/support").await;
    let wait: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((50..=60).contains(&wait), "{wait}");
    assert!(response.headers().contains_key("ratelimit"));
    assert_eq!(verdict(response).await, (429, 1015));
    assert_eq!(webapp.request_count("/v1/support"), before);
    assert_eq!(
        client.get("/v1/health").await.status(),
        200,
        "monitoring has its own limit"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_counts_and_refuses_nothing() {
    let webapp = emulator().await;
    let rest = format!("{OWN}dry_run = true\n");
    let gateway = Gateway::with(&webapp, Setup::default().rest(&rest)).await;
    let client = gateway.admin().await;
    for _ in 0..8 {
        assert_eq!(client.get("/v1/support").await.status(), 200);
    }
    assert_eq!(
        gateway.metrics.limit_exceeded.value(LimitOutcome::DryRun),
        5
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_may_let_requests_wait_instead() {
    let webapp = emulator().await;
    let rest = r#"
[[limit]]
name = "mine"
key = "client"
classes = ["other"]
rate = "5/s"
burst = 1

[[route]]
name = "support.show"
max_wait = "3s"
"#;
    let gateway = Gateway::with(&webapp, Setup::default().rest(rest)).await;
    let client = gateway.admin().await;
    let begin = Instant::now();
    for _ in 0..4 {
        assert_eq!(client.get("/v1/support").await.status(), 200);
    }
    assert!(
        begin.elapsed() >= Duration::from_millis(550),
        "three of four waited"
    );
    assert!(gateway.metrics.limit_exceeded.value(LimitOutcome::Waited) >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn password_guesses_are_limited_by_peer_and_by_name() {
    let webapp = emulator().await;
    let rest = "[limits]\nlogins_by_peer = \"1/m burst 6\"\nlogins_by_name = \"1/m burst 3\"\n";
    let gateway = Gateway::with(&webapp, Setup::default().rest(rest)).await;
    let client = gateway.client();
    let mut seen = Vec::new();
    for attempt in 0..8 {
        let name = if attempt < 4 {
            ADMIN.to_owned()
        } else {
            format!("user-{attempt}")
        };
        seen.push(
            client
                .login(&name, "Wrong-Passw0rd!")
                .await
                .status()
                .as_u16(),
        );
    }
    assert_eq!(&seen[..4], [401, 401, 401, 429], "by name and peer");
    // The refused attempt was the fourth of six that this peer has in a minute.
    assert_eq!(&seen[4..], [401, 401, 429, 429], "by peer");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_profiles_defaults_the_webapp_never_responds_429() {
    let webapp = emulator_with(Settings {
        limits: true,
        ..Settings::for_tests()
    })
    .await;
    let gateway = Gateway::with(&webapp, Setup::default()).await;
    let client = gateway.admin().await;
    let text = json!({ "to": "1", "type": "text", "text": { "body": "x" } });
    let begin = Instant::now();
    let mut load = Vec::new();
    for worker in 0..12 {
        let (client, text) = (client.clone(), text.clone());
        load.push(tokio::spawn(async move {
            let (mut good, mut refused) = (0, 0);
            while begin.elapsed() < Duration::from_secs(6) {
                let response = match worker % 4 {
                    0 | 1 => client.post("/v1/messages", &text).await,
                    2 => client.get("/v1/health").await,
                    _ => client
                        .request(Method::GET, "/v1/settings/application")
                        .send()
                        .await
                        .unwrap(),
                };
                let own = response.headers().contains_key("ratelimit");
                let status = response.status().as_u16();
                // An unread body resets its stream, and too many resets end the connection.
                response.bytes().await.unwrap();
                match status {
                    429 => {
                        assert!(own, "this 429 is the gate's, not the Webapp's");
                        refused += 1;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    _ => good += 1,
                }
            }
            (good, refused)
        }));
    }
    let (mut good, mut refused) = (0, 0);
    for one in load {
        let (g, r) = one.await.unwrap();
        good += g;
        refused += r;
    }
    assert!(
        refused > 100,
        "the load did not exceed the limits: {refused} refused, {good} succeeded"
    );
    assert!(good > 400, "the limits admitted only {good}");
    assert_eq!(webapp.refusals_429(), 0);
}
