//! Which endpoints get no requests, for how long, and how they come back (rows U4, U8 to U12, U14).

use std::time::{Duration, Instant};

use super::endpoint_server::{EndpointServer, Fault, WORKS};
use super::{addresses, gate, get, load, metric, readiness, statuses, text};
use crate::harness::eventually;

const FAST_503: Fault = Fault::Status(503, Duration::ZERO);

#[tokio::test(flavor = "multi_thread")]
async fn failing_fast_looks_like_being_free_to_nobody() {
    for fault in [FAST_503, Fault::Status(500, Duration::ZERO), Fault::Closes] {
        let a = EndpointServer::start(Fault::Works(Duration::from_millis(50))).await;
        let b = EndpointServer::start(fault).await;
        let gateway = gate(&[&a, &b], "retry_share = 0").await;
        let statuses = load(&gateway, 8, Duration::from_secs(2)).await;
        let failed = statuses.iter().filter(|status| **status != 200).count();
        // Five in a row; others were on their way.
        assert!((5..=12).contains(&failed), "{failed} failed with {fault:?}");
        assert_eq!(failed, b.requests());
        assert!(statuses.len() > 50, "{}", statuses.len());
        assert_eq!(
            metric(&gateway, "tollgate_endpoint_ejections_total", &b, ""),
            1
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn never_more_than_half_are_out() {
    for (count, most_out) in [(3_usize, 1), (2, 1)] {
        let mut servers = Vec::new();
        for _ in 0..count {
            servers.push(EndpointServer::start(FAST_503).await);
        }
        let all: Vec<&EndpointServer> = servers.iter().collect();
        let gateway = gate(&all, "ejection = { first = \"1m\" }\nretry_share = 0").await;
        let client = gateway.client();
        assert!(
            statuses(&client, 60)
                .await
                .iter()
                .all(|status| *status == 503)
        );
        let (_, text) = readiness(&gateway).await;
        assert_eq!(text.matches("ejected").count(), most_out, "{text}");
        let mut seen: Vec<usize> = servers.iter().map(EndpointServer::requests).collect();
        seen.sort_unstable();
        assert_eq!(seen[0], 5, "the ejected one: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_endpoint_did_counts_against_it() {
    let a = EndpointServer::start(Fault::Works(Duration::from_millis(700))).await;
    let b = EndpointServer::start(Fault::Works(Duration::from_millis(700))).await;
    let gateway = gate(&[&a, &b], "ejection = { failures = 2 }\nretry_share = 0").await;
    let client = gateway.client();
    let leaving: Vec<_> = (0..50)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let asked = get(&client, "/x");
                let _ = tokio::time::timeout(Duration::from_millis(100), asked).await;
            })
        })
        .collect();
    for one in leaving {
        one.await.unwrap();
    }
    // What the gate itself refuses.
    for _ in 0..20 {
        let request = client.request(reqwest::Method::GET, "/x");
        assert_eq!(request.send().await.unwrap().status(), 401);
    }
    assert_eq!(statuses(&client, 2).await, [200, 200]);
    let (status, text) = readiness(&gateway).await;
    assert_eq!((status, text.trim()), (200, "ready"));
    for server in [&a, &b] {
        assert_eq!(
            metric(&gateway, "tollgate_endpoint_ejections_total", server, ""),
            0
        );
        eventually("nothing is in flight", async || {
            metric(&gateway, "tollgate_endpoint_requests_in_flight", server, "") == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_witnesses_do_not_overrule_each_other_and_there_is_a_way_back() {
    let a = EndpointServer::start(WORKS).await;
    let b = EndpointServer::start(Fault::Status(500, Duration::ZERO)).await;
    let lines = "health_check = { path = \"/health\", interval = \"100ms\", timeout = \"100ms\" }\n\
        ejection = { failures = 2, first = \"800ms\" }\nslow_start = \"0s\"\nretry_share = 0";
    let gateway = gate(&[&a, &b], lines).await;
    let client = gateway.client();
    eventually("ejected", async || {
        get(&client, "/x").await;
        metric(&gateway, "tollgate_endpoint_ejections_total", &b, "") == 1
    })
    .await;
    let (failed, checks, began) = (b.requests(), b.checks(), Instant::now());
    while began.elapsed() < Duration::from_millis(500) {
        assert_eq!(get(&client, "/x").await.status, 200);
    }
    assert!(b.checks() > checks, "it passes its checks meanwhile");
    assert_eq!(
        b.requests(),
        failed,
        "a passing check does not end the ejection"
    );
    eventually("one request is the trial, and it fails", async || {
        get(&client, "/x").await.status == 500
    })
    .await;
    assert_eq!(b.requests(), failed + 1);
    b.set(WORKS);
    eventually("it comes back", async || {
        get(&client, "/x").await;
        b.requests() > failed + 10
    })
    .await;
    // The other way round: requests work, and its checks fail.
    b.set_health(500);
    eventually("its checks fail", async || {
        readiness(&gateway).await.1.contains("health checks")
    })
    .await;
    let before = b.requests();
    assert!(
        statuses(&client, 50)
            .await
            .iter()
            .all(|status| *status == 200)
    );
    assert_eq!(b.requests(), before);
    b.set_health(200);
    eventually("its checks pass", async || {
        get(&client, "/x").await;
        b.requests() > before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_are_bad_the_least_bad_are_tried_and_that_is_told() {
    let servers = [
        EndpointServer::start(WORKS).await,
        EndpointServer::start(WORKS).await,
        EndpointServer::start(WORKS).await,
    ];
    servers.iter().for_each(|server| server.set_health(500));
    let all: Vec<&EndpointServer> = servers.iter().collect();
    let lines = "health_check = { path = \"/health\", interval = \"200ms\", timeout = \"100ms\" }";
    let gateway = gate(&all, lines).await;
    let client = gateway.client();
    eventually("all fail their checks", async || {
        readiness(&gateway).await.1.matches("health checks").count() == 3
    })
    .await;
    super::operator::drain(&gateway, &servers[0], true).await;
    let before = servers[0].requests();
    assert!(
        statuses(&client, 40)
            .await
            .iter()
            .all(|status| *status == 200)
    );
    assert_eq!(servers[0].requests(), before, "the operator took it out");
    assert!(servers[1].requests() > 5 && servers[2].requests() > 5);
    assert_eq!(readiness(&gateway).await.0, 200);
    // Now requests fail as well.
    servers.iter().for_each(EndpointServer::kill);
    eventually("both are down", async || {
        get(&client, "/x").await.status == 503
    })
    .await;
    let began = Instant::now();
    let answer = get(&client, "/x").await;
    assert_eq!(answer.status, 503);
    assert!(answer.retry_after.is_some(), "{answer:?}");
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "not after a timeout"
    );
    assert_eq!(readiness(&gateway).await.0, 503);
    servers[1].revive().await;
    eventually("one is back", async || {
        get(&client, "/x").await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_belongs_to_the_endpoint_and_not_to_a_generation_of_the_config() {
    let (a, b) = (
        EndpointServer::start(WORKS).await,
        EndpointServer::start(WORKS).await,
    );
    let c = EndpointServer::start(WORKS).await;
    b.set_health(503);
    let lines = "health_check = { path = \"/health\", interval = \"400ms\", timeout = \"200ms\" }";
    let gateway = gate(&[&a, &b], lines).await;
    let client = gateway.client();
    eventually("b is known to be bad", async || {
        readiness(&gateway).await.1.contains("health checks")
    })
    .await;
    let before = b.requests();
    let (checks, began) = (a.checks(), Instant::now());
    for round in 0..10_u64 {
        let servers: &[&EndpointServer] = if round % 2 == 0 {
            &[&a, &b, &c]
        } else {
            &[&a, &b]
        };
        let changed = format!("{lines}\nconcurrency = {}", 50 + round);
        std::fs::write(gateway.config_file(), text(&addresses(servers), &changed)).unwrap();
        let reloads = &gateway.metrics.reloads;
        eventually("the reload", async || {
            reloads.value(tollgate::metrics::ReloadResult::Applied) == round + 1
        })
        .await;
        assert!(
            statuses(&client, 5)
                .await
                .iter()
                .all(|status| *status == 200)
        );
    }
    assert_eq!(b.requests(), before, "known to be bad, over all reloads");
    let most = began.elapsed().as_millis() / 320 + 2;
    let seen = a.checks() - checks;
    assert!(seen as u128 <= most, "{seen} checks, {most} in that time");
    std::fs::write(gateway.config_file(), text(&addresses(&[&b, &c]), lines)).unwrap();
    eventually("a is removed", async || {
        // Over a connection of its own, so that each worker gets requests.
        get(&gateway.client(), "/x").await;
        !gateway.metrics.text().contains(&a.address.to_string())
    })
    .await;
    let gone = a.checks();
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(a.checks(), gone, "no check after its removal");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_is_neither_believed_nor_flooded() {
    let (a, b) = (
        EndpointServer::start(WORKS).await,
        EndpointServer::start(WORKS).await,
    );
    b.kill();
    let lines = "health_check = { path = \"/health\", interval = \"300ms\", timeout = \"200ms\" }\n\
        slow_start = \"4s\"";
    let gateway = gate(&[&a, &b], lines).await;
    let client = gateway.client();
    assert!(
        statuses(&client, 60)
            .await
            .iter()
            .all(|status| *status == 200)
    );
    b.revive().await;
    eventually("its first request", async || {
        get(&client, "/x").await;
        b.requests() > 0
    })
    .await;
    let early = share(&client, &a, &b).await;
    tokio::time::sleep(Duration::from_millis(4500)).await;
    let late = share(&client, &a, &b).await;
    assert!(early < 0.3, "flooded: {early}");
    assert!(late > 0.35, "still slow: {late}");
}

/// The part of 100 requests that `b` gets.
async fn share(client: &crate::harness::Client, a: &EndpointServer, b: &EndpointServer) -> f64 {
    let before = (a.requests(), b.requests());
    assert!(
        statuses(client, 100)
            .await
            .iter()
            .all(|status| *status == 200)
    );
    let (of_a, of_b) = (a.requests() - before.0, b.requests() - before.1);
    of_b as f64 / (of_a + of_b) as f64
}
