//! Which failures take an endpoint out, how many at a time, and the way back (rows U4, U8, U9, U14).

use std::time::Duration;

use reqwest::Method;
use tokio::time::{sleep, timeout};

use super::server::{Behaviour, Server};
use super::{EndpointGate, LONG_EJECTION, Load, failed};

const SHORT_EJECTION: &str =
    "ejection = { failures = 5, first = \"500ms\", max = \"2s\" }\nslow_start = \"0s\"";

/// Unsafe requests, because those are not repeated: each failure is seen.
#[tokio::test(flavor = "multi_thread")]
async fn failing_fast_does_not_look_like_being_free() {
    let ways = [
        Behaviour::Respond(503, Duration::ZERO),
        Behaviour::Respond(500, Duration::ZERO),
        Behaviour::Close,
        Behaviour::Bytes("SSH-2.0-OpenSSH_9.9\r\n"),
        Behaviour::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    ];
    for way in ways {
        let (a, b) = (Server::start().await, Server::start().await);
        let gate = EndpointGate::start(&[&a, &b], LONG_EJECTION).await;
        a.set(Behaviour::Respond(200, Duration::from_millis(20)));
        b.set(way.clone());
        let load = Load::start(&gate, 8, &Method::POST);
        sleep(Duration::from_millis(800)).await;
        let statuses = load.end().await;
        let bad = failed(&statuses).len();
        // Those under way when it is ejected fail too.
        assert!(
            (5..=5 + 8).contains(&bad),
            "{way:?}: {bad} of {}",
            statuses.len()
        );
        assert_eq!(b.requests(), bad, "{way:?}");
        assert_eq!(gate.ejections().await, 1.0, "{way:?}");
        let readiness = gate.readiness().await;
        let line = format!("endpoint {}: ", b.url());
        assert!(
            readiness.starts_with("200") && readiness.contains(&line),
            "{readiness}"
        );
        let labels = [b.url()];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        assert_eq!(
            gate.metric("tollgate_endpoint_available", &labels).await,
            0.0
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn never_more_than_half_are_out() {
    for count in 1..=4 {
        let mut servers = Vec::new();
        for _ in 0..count {
            servers.push(Server::start().await);
        }
        let all: Vec<&Server> = servers.iter().collect();
        let lines = "ejection = { failures = 2, first = \"300ms\" }";
        let gate = EndpointGate::start(&all, lines).await;
        all.iter().for_each(|server| server.respond(503));
        let load = Load::start(&gate, 4, &Method::POST);
        let mut most = 0;
        for _ in 0..20 {
            sleep(Duration::from_millis(40)).await;
            let listed = gate.listed().await;
            let out = listed.iter().filter(|one| !one["trouble"].is_null());
            most = most.max(out.count());
        }
        assert_eq!(most, count / 2, "of {count}");
        load.end().await;
        all.iter().for_each(|server| server.respond(200));
        for number in 0..20 {
            let sent = gate.send(Method::POST, "/after", Vec::new()).await;
            let is_trial = sent.0 != 200;
            assert!(!is_trial, "{number} of {count}: {sent:?}");
        }
    }
}

/// An endpoint that the operator or a health check has taken out counts too.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_one_in_use_is_not_ejected() {
    let (a, b) = (Server::start().await, Server::start().await);
    let gate = EndpointGate::start(&[&a, &b], LONG_EJECTION).await;
    gate.drain(&b, true).await;
    a.respond(500);
    for number in 0..20 {
        assert_eq!(gate.get(&format!("/last-{number}")).await, 500);
    }
    assert_eq!(gate.ejections().await, 0.0);
    assert_eq!(b.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_or_the_gate_did_does_not_count() {
    let (a, b) = (Server::start().await, Server::start().await);
    let lines = "[upstream.main.ejection]\nfailures = 2\nfirst = \"60s\"";
    let gate = EndpointGate::start(&[&a, &b], lines).await;
    for server in [&a, &b] {
        server.set(Behaviour::Respond(200, Duration::from_millis(600)));
    }
    let gone = (0..50).map(|number| {
        let gate = &gate;
        async move {
            let path = format!("/gone-{number}");
            let sent = gate.get(&path);
            let _ = timeout(Duration::from_millis(100), sent).await;
        }
    });
    futures_util::future::join_all(gone).await;
    let stranger = gate.gateway.client();
    for _ in 0..20 {
        assert_eq!(stranger.get("/refused").await.status().as_u16(), 401);
    }
    for server in [&a, &b] {
        for status in [400, 401, 404, 429, 501, 505] {
            server.respond(status);
            for _ in 0..3 {
                gate.get("/status").await;
            }
        }
        server.respond(200);
    }
    assert_eq!(gate.ejections().await, 0.0);
    let readiness = gate.readiness().await;
    assert!(!readiness.contains("endpoint"), "{readiness}");
    gate.becomes_quiet().await;
}

/// The time of the whole exchange was over before the endpoint had any: the client was slow.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_others_have_used_up_does_not_count() {
    let (a, b) = (Server::start().await, Server::start().await);
    let text = super::config(
        &super::urls(&[&a, &b]),
        "concurrency = 1\nejection = { failures = 2, first = \"60s\" }",
    );
    let text = text.replace(
        "access = \"api_key\"",
        "access = \"api_key\"\ntimeout = \"1s\"",
    );
    let gate = EndpointGate::of(&text).await;
    for server in [&a, &b] {
        server.set(Behaviour::Respond(200, Duration::from_millis(300)));
    }
    // Each one waits for those before it; some are sent just before their deadline.
    for _ in 0..3 {
        let sent = (0..8).map(|_| gate.get("/queued"));
        futures_util::future::join_all(sent).await;
    }
    assert_eq!(gate.ejections().await, 0.0);
    gate.becomes_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passing_check_does_not_end_an_ejection_and_one_request_is_the_trial() {
    let (a, b) = (Server::start().await, Server::start().await);
    let check = "health_check = { path = \"/health\", interval = \"100ms\", timeout = \"100ms\" }";
    let gate = EndpointGate::start(&[&a, &b], &format!("{SHORT_EJECTION}\n{check}")).await;
    b.respond(500);
    let load = Load::start(&gate, 4, &Method::GET);
    super::eventually("the third ejection", async || gate.ejections().await >= 3.0).await;
    let ejections = gate.ejections().await;
    let seen = b.requests();
    assert!(b.checks() > 5, "{}", b.checks());
    // Five and those under way, then one for each trial.
    assert!(
        seen as f64 <= 5.0 + 4.0 + ejections + 1.0,
        "{seen} in {ejections} ejections"
    );
    b.respond(200);
    let before = b.requests();
    super::eventually("the end of the ejection", async || {
        b.requests() > before + 20
    })
    .await;
    let statuses = load.end().await;
    assert!(
        failed(&statuses).len() <= b.requests(),
        "only those of the bad one"
    );
    assert!(!gate.readiness().await.contains("endpoint"));
}

/// It is out and has no traffic; when it is good again a single request brings it back.
#[tokio::test(flavor = "multi_thread")]
async fn there_is_a_way_back_without_traffic() {
    let (a, b) = (Server::start().await, Server::start().await);
    let gate = EndpointGate::start(&[&a, &b], SHORT_EJECTION).await;
    for way in [Behaviour::Close, Behaviour::Respond(503, Duration::ZERO)] {
        let before = gate.ejections().await;
        b.set(way);
        gate.until("its ejection", async |status| {
            assert_eq!(status, 200, "a safe request");
            gate.ejections().await > before
        })
        .await;
        b.respond(200);
        sleep(Duration::from_millis(2100)).await;
        let before = b.requests();
        for _ in 0..20 {
            assert_eq!(gate.get("/back").await, 200);
        }
        assert!(b.requests() > before + 3, "{} of 20", b.requests() - before);
    }
}
