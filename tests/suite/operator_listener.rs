//! The operator's listener: health, readiness, metrics.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::harness::{Gateway, NO_LIMITS, Setup, emulator, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn metrics_pass_promtool_and_include_the_documented_ones() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/support").await.status(), 200);
    assert_eq!(client.get("/v1/nothing").await.status(), 404);
    let response = reqwest::get(gateway.operator_url("/metrics"))
        .await
        .unwrap();
    assert!(
        response.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain")
    );
    let text = response.text().await.unwrap();
    for family in [
        "tollgate_session_seconds_to_expiry{upstream=\"main\"} ",
        "tollgate_session_generation{upstream=\"main\"} 1",
        "tollgate_session_logins_total{outcome=\"ok\",upstream=\"main\"} 1",
        "tollgate_session_requests_waiting{upstream=\"main\"} 0",
        "tollgate_requests_total{route=\"support.show\",status=\"2xx\"} 1",
        "tollgate_rejections_total{reason=\"no_route\"} 1",
        "tollgate_tokens 1",
        "tollgate_upstream_first_byte_seconds_count{upstream=\"main\"} 1",
        "tollgate_task_panics 0",
        "tollgate_ready 1",
        "tollgate_certificate_expiry_timestamp_seconds{",
    ] {
        assert!(text.contains(family), "{family} is not in\n{text}");
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool: tests/run.sh installs it");
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let verdict = promtool.wait_with_output().unwrap();
    assert!(
        verdict.status.success(),
        "{}",
        String::from_utf8_lossy(&verdict.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn readyz_reports_whether_the_next_request_would_succeed() {
    let webapp = emulator().await;
    webapp.not_ready(true);
    webapp.fail_next_logins(1_000_000, tollgate::emulator::LoginResponse::Status(503));
    let setup = Setup::default()
        .upstream("min_login_interval = \"10ms\"\nlogins_per_hour = 36000")
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let get = async |path: &str| {
        let response = reqwest::get(gateway.operator_url(path)).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    assert_eq!(get("/healthz").await.0, 200);
    let (status, body) = get("/readyz").await;
    assert_eq!(status, 503);
    assert!(!body.trim().is_empty());
    webapp.fail_next_logins(0, tollgate::emulator::LoginResponse::Status(503));
    webapp.not_ready(false);
    eventually("readiness", async || get("/readyz").await.0 == 200).await;
    assert_eq!(get("/else").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_limited_clients_is_current_at_the_scrape() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default()).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/support").await.status(), 200);
    let text = reqwest::get(gateway.operator_url("/metrics")).await;
    let text = text.unwrap().text().await.unwrap();
    let keys = "tollgate_limit_keys{limit=\"nodes\"} 1";
    assert!(text.contains(keys), "{keys} is not in\n{text}");
}
