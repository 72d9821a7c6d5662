//! A failed upstream is reported, requests are refused at once, and the gate's probes find it again.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::{Method, Response};
use tokio::time::{Instant, sleep, timeout};
use tollgate::metrics::{ProbeOutcome, Reason};

use crate::harness::client::verdict;
use crate::harness::faulty_upstream::{FaultyUpstream, UpstreamState};
use crate::harness::{Client, Gateway, NO_LIMITS, Setup, eventually};

const QUICK: &str = "first_byte_timeout = \"1s\"\nlogin_timeout = \"2s\"\n\
                     min_login_interval = \"10ms\"\nlogins_per_hour = 36000";
/// The upstream responds to this path with its own 503.
const BUSY: &str = "/v1/settings/application";
/// The upstream never responds to this path.
const SILENT: &str = "/v1/stickerpacks";

async fn gate(upstream: &FaultyUpstream) -> (Gateway, Client) {
    let setup = Setup::default().upstream(QUICK).rest(NO_LIMITS);
    let gateway = Gateway::before(&upstream.url(), setup).await;
    let client = gateway.admin().await;
    assert!(is_passed_on(client.get(BUSY).await).await);
    (gateway, client)
}

/// The upstream's own 503 is a response like any other.
async fn is_passed_on(response: Response) -> bool {
    let status = response.status();
    status == 503 && response.text().await.unwrap() == "ok"
}

async fn operator(gateway: &Gateway, path: &str) -> (u16, String) {
    let response = reqwest::get(gateway.operator_url(path)).await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// Sends requests until the breaker is open; every response before is one of `before`.
async fn until_refused(client: &Client, before: &[u16]) -> Response {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let response = client.get(BUSY).await;
        let pause = response.headers().get("retry-after").cloned();
        match response.status().as_u16() {
            503 => return response,
            status => assert!(before.contains(&status), "{status}"),
        }
        assert_eq!(
            pause.unwrap(),
            "1",
            "a failure of the upstream has Retry-After"
        );
        assert!(Instant::now() < deadline, "no request was refused in time");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Checks the responses, readiness and metrics of an outage, and its end.
async fn outage_is_reported_and_ends(
    gateway: &Gateway,
    client: &Client,
    upstream: &FaultyUpstream,
    words: &str,
) {
    let begin = Instant::now();
    let refused = client.get(BUSY).await;
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "refused at once"
    );
    let pause: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=5).contains(&pause), "{pause}");
    assert_eq!(verdict(refused).await, (503, 1011));
    let (status, text) = operator(gateway, "/readyz").await;
    assert_eq!(status, 503);
    assert!(
        text.starts_with("upstream main: down for ") && text.contains(words),
        "{text}"
    );
    assert!(text.contains(", since 20"), "{text}");
    assert_eq!(operator(gateway, "/healthz").await.0, 200);
    let metrics = operator(gateway, "/metrics").await.1;
    for line in [
        "tollgate_upstream_up{upstream=\"main\"} 0",
        "tollgate_upstream_breaker_opened_total{upstream=\"main\"} 1",
        "tollgate_ready 0",
    ] {
        assert!(
            metrics.contains(&format!("\n{line}\n")),
            "{line} is not in\n{metrics}"
        );
    }
    assert!(gateway.metrics.rejections.value(Reason::UpstreamDown) > 0);

    upstream.is(UpstreamState::Well);
    let begin = Instant::now();
    eventually("the gate's probes find the upstream", async || {
        operator(gateway, "/readyz").await.0 == 200
    })
    .await;
    assert!(
        begin.elapsed() < Duration::from_secs(8),
        "{:?}",
        begin.elapsed()
    );
    assert!(is_passed_on(client.get(BUSY).await).await);
    let metrics = operator(gateway, "/metrics").await.1;
    assert!(metrics.contains("\ntollgate_upstream_up{upstream=\"main\"} 1\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_connections_are_refused_requests_get_503_at_once() {
    let upstream = FaultyUpstream::start(UpstreamState::Well).await;
    let (gateway, client) = gate(&upstream).await;
    upstream.is(UpstreamState::Gone);
    until_refused(&client, &[502]).await;
    outage_is_reported_and_ends(&gateway, &client, &upstream, "Connection refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_upstream_is_not_waited_for_and_requests_in_flight_are_not_cut_off() {
    let upstream = FaultyUpstream::start(UpstreamState::Well).await;
    let (gateway, client) = gate(&upstream).await;
    let client = Client::http1(&gateway).with_token(client.token.as_ref().unwrap());
    let long = client.get("/v1/media/long").await;
    assert_eq!(long.status(), 200);
    let reading = tokio::spawn(async move {
        let mut pieces = long.bytes_stream();
        let mut got = 0;
        while let Some(piece) = pieces.next().await {
            got += piece.unwrap().len();
        }
        got
    });
    upstream.is(UpstreamState::Hangs);
    until_refused(&client, &[504]).await;
    assert!(!reading.is_finished(), "the test needs enough requests");
    outage_is_reported_and_ends(&gateway, &client, &upstream, "no response").await;
    assert_eq!(reading.await.unwrap(), 10_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_closes_or_does_not_speak_http_counts_as_down() {
    for (behaviour, words) in [
        (UpstreamState::HangsUp, "closed"),
        (UpstreamState::Babbles, "HTTP"),
    ] {
        let upstream = FaultyUpstream::start(UpstreamState::Well).await;
        let (gateway, client) = gate(&upstream).await;
        upstream.is(behaviour);
        until_refused(&client, &[502]).await;
        outage_is_reported_and_ends(&gateway, &client, &upstream, words).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_tls_handshake_counts_as_no_connection() {
    let upstream = FaultyUpstream::start(UpstreamState::Babbles).await;
    let setup = Setup::default().upstream(QUICK).rest(NO_LIMITS);
    let url = upstream.url().replace("http:", "https:");
    let gateway = Gateway::before(&url, setup).await;
    eventually(
        "the failed login reveals the outage without a client",
        async || {
            let (status, text) = operator(&gateway, "/readyz").await;
            status == 503 && text.contains("upstream main: down") && text.contains("TLS handshake")
        },
    )
    .await;
    let text = operator(&gateway, "/readyz").await.1;
    assert!(
        text.contains("\nupstream login: upstream unreachable"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failed_request_starts_the_gates_own_probes() {
    let upstream = FaultyUpstream::start(UpstreamState::Well).await;
    let (gateway, client) = gate(&upstream).await;
    upstream.is(UpstreamState::Gone);
    assert_eq!(verdict(client.get(BUSY).await).await, (502, 1014));
    assert_eq!(
        operator(&gateway, "/readyz").await.0,
        200,
        "one failure opens no breaker"
    );
    eventually("not ready", async || {
        operator(&gateway, "/readyz").await.0 == 503
    })
    .await;
    assert!(
        gateway
            .metrics
            .upstream("main")
            .upstream_probes
            .value(ProbeOutcome::Failed)
            >= 4
    );
    outage_is_reported_and_ends(&gateway, &client, &upstream, "Connection refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_path_without_responses_does_not_open_the_breaker() {
    let upstream = FaultyUpstream::start(UpstreamState::Well).await;
    let (gateway, client) = gate(&upstream).await;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(6) {
        let all = (0..8).map(|_| client.get(SILENT));
        for response in futures_util::future::join_all(all).await {
            assert_eq!(verdict(response).await, (504, 1014));
        }
    }
    assert_eq!(
        gateway
            .metrics
            .upstream("main")
            .upstream_breaker_opened
            .get(),
        0
    );
    let responded = gateway
        .metrics
        .upstream("main")
        .upstream_probes
        .value(ProbeOutcome::Succeeded);
    assert!(
        (3..=8).contains(&responded),
        "{responded} probes in six seconds"
    );
    assert_eq!(
        gateway
            .metrics
            .upstream("main")
            .upstream_probes
            .value(ProbeOutcome::Failed),
        0
    );
    assert!(is_passed_on(client.get(BUSY).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_cancelled_before_the_timeout_reveal_a_hang_too() {
    let upstream = FaultyUpstream::start(UpstreamState::Well).await;
    let setup = Setup::default()
        .upstream("first_byte_timeout = \"5s\"")
        .rest(NO_LIMITS);
    let gateway = Gateway::before(&upstream.url(), setup).await;
    let client = gateway.admin().await;
    assert!(is_passed_on(client.get(BUSY).await).await);
    upstream.is(UpstreamState::Hangs);
    let left = timeout(Duration::from_millis(3800), client.get(BUSY)).await;
    assert!(left.is_err(), "no request gets a response");
    eventually("not ready", async || {
        operator(&gateway, "/readyz").await.0 == 503
    })
    .await;
    outage_is_reported_and_ends(&gateway, &client, &upstream, "no response").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_clients_do_not_count_against_the_upstream() {
    let upstream = FaultyUpstream::start(UpstreamState::Well).await;
    let (gateway, client) = gate(&upstream).await;
    let before = upstream.heads();
    for _ in 0..10 {
        // The client leaves in the middle of its request body.
        let broken = futures_util::stream::iter([Ok("begins"), Err(std::io::Error::other("x"))]);
        let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>("begins")]);
        let starved = pieces.chain(futures_util::stream::pending());
        for body in [
            reqwest::Body::wrap_stream(broken),
            reqwest::Body::wrap_stream(starved),
        ] {
            let request = client.request(Method::POST, "/v1/messages").body(body);
            let _ = timeout(Duration::from_millis(600), request.send()).await;
        }
    }
    // The client leaves in the middle of a download.
    for _ in 0..6 {
        let mut long = client.get("/v1/media/long").await;
        assert!(long.chunk().await.unwrap().is_some());
    }
    assert!(
        upstream.heads() >= before + 6,
        "the test needs enough requests"
    );
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        gateway
            .metrics
            .upstream("main")
            .upstream_breaker_opened
            .get(),
        0
    );
    let probes = &gateway.metrics.upstream("main").upstream_probes;
    assert_eq!(
        probes.value(ProbeOutcome::Succeeded) + probes.value(ProbeOutcome::Failed),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn relayed_logins_and_open_paths_are_refused_at_once_during_an_outage() {
    let upstream = FaultyUpstream::start(UpstreamState::Gone).await;
    let open = "[[route]]\nname = \"open\"\npath = \"/open/*\"\naccess = [\"open\"]\n";
    let setup = Setup::default()
        .users("directory = \"webapp\"")
        .upstream(QUICK)
        .rest(&format!("{NO_LIMITS}\n{open}"));
    let gateway = Gateway::before(&upstream.url(), setup).await;
    eventually("not ready", async || {
        operator(&gateway, "/readyz")
            .await
            .1
            .contains("upstream main: down")
    })
    .await;
    for client in [Client::new(&gateway), Client::http1(&gateway)] {
        let login = client.login("anna", "Some-Passw0rd!").await;
        assert!(login.headers().contains_key("retry-after"));
        assert_eq!(verdict(login).await, (503, 1011));
        assert_eq!(verdict(client.get("/open/x").await).await, (503, 1011));
    }
    assert_eq!(gateway.metrics.rejections.value(Reason::UpstreamDown), 4);
    upstream.is(UpstreamState::Well);
    eventually("requests succeed again", async || {
        is_passed_on(gateway.client().get("/open/x").await).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_the_health_state_of_the_same_address() {
    let upstream = FaultyUpstream::start(UpstreamState::Well).await;
    let (gateway, client) = gate(&upstream).await;
    upstream.is(UpstreamState::Gone);
    until_refused(&client, &[502]).await;
    let file = gateway.config_file();
    let text = std::fs::read_to_string(&file).unwrap();
    let changed = text.replace(QUICK, &format!("{QUICK}\nconcurrency = 65"));
    assert_ne!(changed, text);
    std::fs::write(&file, changed).unwrap();
    gateway.steering.hup.notify_one();
    eventually("reloaded", async || {
        gateway
            .metrics
            .reloads
            .value(tollgate::metrics::ReloadResult::Applied)
            == 1
    })
    .await;
    let begin = Instant::now();
    assert_eq!(verdict(client.get(BUSY).await).await, (503, 1011));
    assert!(begin.elapsed() < Duration::from_millis(900));
    assert_eq!(
        gateway
            .metrics
            .upstream("main")
            .upstream_breaker_opened
            .get(),
        1
    );
    upstream.is(UpstreamState::Well);
    eventually("the upstream is in use again", async || {
        is_passed_on(client.get(BUSY).await).await
    })
    .await;
}
