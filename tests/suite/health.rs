//! An upstream that fails is told of, not waited for, and found again by itself.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::{Method, Response};
use tokio::time::{Instant, sleep, timeout};
use tollgate::metrics::{ProbeOutcome, Reason};

use crate::harness::client::verdict;
use crate::harness::moods::{Mood, MoodyUpstream};
use crate::harness::{Client, Gateway, NO_LIMITS, Setup, eventually};

const QUICK: &str = "first_byte_timeout = \"1s\"\nlogin_timeout = \"2s\"\n\
                     min_login_interval = \"10ms\"\nlogins_per_hour = 36000";
/// A path that the upstream answers, with a 503 of its own.
const BUSY: &str = "/v1/settings/application";
/// One that it never answers.
const SILENT: &str = "/v1/stickerpacks";

async fn gate(upstream: &MoodyUpstream) -> (Gateway, Client) {
    let setup = Setup::default().upstream(QUICK).rest(NO_LIMITS);
    let gateway = Gateway::before(&upstream.url(), setup).await;
    let client = gateway.admin().await;
    assert!(is_passed_on(client.get(BUSY).await).await);
    (gateway, client)
}

/// The upstream's own 503 is an answer like any other.
async fn is_passed_on(answer: Response) -> bool {
    let status = answer.status();
    status == 503 && answer.text().await.unwrap() == "ok"
}

async fn operator(gateway: &Gateway, path: &str) -> (u16, String) {
    let answer = reqwest::get(gateway.operator_url(path)).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Asks until the answer is that of an open breaker; every answer before is one of `before`.
async fn until_refused(client: &Client, before: &[u16]) -> Response {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = client.get(BUSY).await;
        let pause = answer.headers().get("retry-after").cloned();
        match answer.status().as_u16() {
            503 => return answer,
            status => assert!(before.contains(&status), "{status}"),
        }
        assert_eq!(
            pause.unwrap(),
            "1",
            "a failure of the upstream says when to come back"
        );
        assert!(Instant::now() < deadline, "never refused");
        sleep(Duration::from_millis(100)).await;
    }
}

/// What an outage must look like from outside, and its end.
async fn is_told_and_ends(
    gateway: &Gateway,
    client: &Client,
    upstream: &MoodyUpstream,
    words: &str,
) {
    let begin = Instant::now();
    let refused = client.get(BUSY).await;
    assert!(begin.elapsed() < Duration::from_millis(900), "at once");
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
        "tollgate_upstream_up 0",
        "tollgate_upstream_breaker_opened_total 1",
        "tollgate_ready 0",
    ] {
        assert!(
            metrics.contains(&format!("\n{line}\n")),
            "{line} is not in\n{metrics}"
        );
    }
    assert!(gateway.metrics.rejections.value(Reason::UpstreamDown) > 0);

    upstream.is(Mood::Well);
    let begin = Instant::now();
    eventually("found by the gate itself", async || {
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
    assert!(metrics.contains("\ntollgate_upstream_up 1\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connections_are_answered_for_at_once_until_one_is_made() {
    let upstream = MoodyUpstream::start(Mood::Well).await;
    let (gateway, client) = gate(&upstream).await;
    upstream.is(Mood::Gone);
    until_refused(&client, &[502]).await;
    is_told_and_ends(&gateway, &client, &upstream, "Connection refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_hangs_is_not_waited_for_and_what_is_under_way_is_not_cut() {
    let upstream = MoodyUpstream::start(Mood::Well).await;
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
    upstream.is(Mood::Hangs);
    until_refused(&client, &[504]).await;
    assert!(!reading.is_finished(), "or this proves nothing");
    is_told_and_ends(&gateway, &client, &upstream, "no answer").await;
    assert_eq!(reading.await.unwrap(), 10_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_hangs_up_and_one_that_speaks_no_http_are_down_too() {
    for (mood, words) in [(Mood::HangsUp, "closed"), (Mood::Babbles, "HTTP")] {
        let upstream = MoodyUpstream::start(Mood::Well).await;
        let (gateway, client) = gate(&upstream).await;
        upstream.is(mood);
        until_refused(&client, &[502]).await;
        is_told_and_ends(&gateway, &client, &upstream, words).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_tls_handshake_is_no_connection() {
    let upstream = MoodyUpstream::start(Mood::Babbles).await;
    let setup = Setup::default().upstream(QUICK).rest(NO_LIMITS);
    let url = upstream.url().replace("http:", "https:");
    let gateway = Gateway::before(&url, setup).await;
    eventually("found without a client: the login has failed", async || {
        let (status, text) = operator(&gateway, "/readyz").await;
        status == 503 && text.contains("upstream main: down") && text.contains("TLS handshake")
    })
    .await;
    let text = operator(&gateway, "/readyz").await.1;
    assert!(
        text.contains("\nupstream login: upstream unreachable"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_one_failed_request_the_gate_finds_out_by_itself() {
    let upstream = MoodyUpstream::start(Mood::Well).await;
    let (gateway, client) = gate(&upstream).await;
    upstream.is(Mood::Gone);
    assert_eq!(verdict(client.get(BUSY).await).await, (502, 1014));
    assert_eq!(
        operator(&gateway, "/readyz").await.0,
        200,
        "one is no proof"
    );
    eventually("not ready", async || {
        operator(&gateway, "/readyz").await.0 == 503
    })
    .await;
    assert!(gateway.metrics.upstream_probes.value(ProbeOutcome::Failed) >= 4);
    is_told_and_ends(&gateway, &client, &upstream, "Connection refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_path_that_is_never_answered_closes_nothing_even_if_nothing_else_is_asked() {
    let upstream = MoodyUpstream::start(Mood::Well).await;
    let (gateway, client) = gate(&upstream).await;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(6) {
        let all = (0..8).map(|_| client.get(SILENT));
        for answer in futures_util::future::join_all(all).await {
            assert_eq!(verdict(answer).await, (504, 1014));
        }
    }
    assert_eq!(gateway.metrics.upstream_breaker_opened.get(), 0);
    let answered = gateway
        .metrics
        .upstream_probes
        .value(ProbeOutcome::Succeeded);
    assert!(
        (3..=8).contains(&answered),
        "{answered} second opinions in six seconds"
    );
    assert_eq!(
        gateway.metrics.upstream_probes.value(ProbeOutcome::Failed),
        0
    );
    assert!(is_passed_on(client.get(BUSY).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_wait_for_the_timeout_show_a_hang_as_well() {
    let upstream = MoodyUpstream::start(Mood::Well).await;
    let setup = Setup::default()
        .upstream("first_byte_timeout = \"5s\"")
        .rest(NO_LIMITS);
    let gateway = Gateway::before(&upstream.url(), setup).await;
    let client = gateway.admin().await;
    assert!(is_passed_on(client.get(BUSY).await).await);
    upstream.is(Mood::Hangs);
    let left = timeout(Duration::from_millis(3800), client.get(BUSY)).await;
    assert!(left.is_err(), "nothing is answered");
    eventually("not ready", async || {
        operator(&gateway, "/readyz").await.0 == 503
    })
    .await;
    is_told_and_ends(&gateway, &client, &upstream, "no answer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_break_themselves_is_not_the_upstreams_fault() {
    let upstream = MoodyUpstream::start(Mood::Well).await;
    let (gateway, client) = gate(&upstream).await;
    let before = upstream.heads();
    for _ in 0..10 {
        // Breaks off in its body, and leaves while it owes the rest of it.
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
    // And downloads that are broken half-way.
    for _ in 0..6 {
        let mut long = client.get("/v1/media/long").await;
        assert!(long.chunk().await.unwrap().is_some());
    }
    assert!(upstream.heads() >= before + 6, "or this proves nothing");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(gateway.metrics.upstream_breaker_opened.get(), 0);
    let probes = &gateway.metrics.upstream_probes;
    assert_eq!(
        probes.value(ProbeOutcome::Succeeded) + probes.value(ProbeOutcome::Failed),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn relayed_logins_and_open_paths_are_refused_at_once_too() {
    let upstream = MoodyUpstream::start(Mood::Gone).await;
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
    upstream.is(Mood::Well);
    eventually("open again", async || {
        is_passed_on(gateway.client().get("/open/x").await).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_what_is_known_of_the_same_address() {
    let upstream = MoodyUpstream::start(Mood::Well).await;
    let (gateway, client) = gate(&upstream).await;
    upstream.is(Mood::Gone);
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
    assert_eq!(gateway.metrics.upstream_breaker_opened.get(), 1);
    upstream.is(Mood::Well);
    eventually("found again", async || {
        is_passed_on(client.get(BUSY).await).await
    })
    .await;
}
