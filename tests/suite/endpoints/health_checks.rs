//! Health checks (rows U10, U11, U12): which endpoints get requests, one checker each, newcomers.

use std::time::Duration;

use reqwest::Method;
use tokio::time::sleep;

use super::server::{Behaviour, BlackHole, Server};
use super::{EndpointGate, Load, NO_EJECTION, config, failed, urls};
use crate::harness::eventually;

const CHECK: &str = "[upstream.main.health_check]\npath = \"/health\"\ninterval = \"200ms\"\n\
                     timeout = \"150ms\"\nunhealthy_after = 2\nhealthy_after = 1";
const PLAIN_CHECK: &str =
    "slow_start = \"0s\"\n[upstream.main.health_check]\npath = \"/health\"\ninterval = \"200ms\"";

#[tokio::test(flavor = "multi_thread")]
async fn when_all_are_bad_those_that_are_not_drained_are_used() {
    let (a, b, c) = (
        Server::start().await,
        Server::start().await,
        Server::start().await,
    );
    for server in [&a, &b, &c] {
        server.set_health(500);
    }
    let gate = EndpointGate::start(&[&a, &b, &c], CHECK).await;
    gate.drain(&c, true).await;
    eventually("the checks", async || a.checks() > 3 && b.checks() > 3).await;
    let before = c.requests();
    for number in 0..40 {
        assert_eq!(gate.get(&format!("/bad-{number}")).await, 200);
    }
    assert!(
        a.requests() > 5 && b.requests() > 5,
        "{} {}",
        a.requests(),
        b.requests()
    );
    assert_eq!(c.requests(), before, "the operator has taken it out");
    let readiness = gate.readiness().await;
    for line in [
        format!(
            "endpoint {}: fails its health checks: status 500 for /health",
            a.url()
        ),
        format!("endpoint {}: drained", c.url()),
    ] {
        assert!(readiness.contains(&line), "{readiness}");
    }
    assert_eq!(gate.metric("tollgate_endpoint_available", &[]).await, 0.0);
    let failed = gate
        .metric("tollgate_endpoint_checks_total", &["failed"])
        .await;
    assert!(failed >= 6.0, "{failed}");
}

/// The requests fail as well: the gate says so at once.
#[tokio::test(flavor = "multi_thread")]
async fn when_none_can_be_reached_the_answer_comes_at_once() {
    let (a, b) = (Server::start().await, Server::start().await);
    let gate = EndpointGate::start(&[&a, &b], CHECK).await;
    a.kill();
    b.kill();
    gate.until("the breaker", async |status| status == 503)
        .await;
    let start = std::time::Instant::now();
    for _ in 0..20 {
        let response = gate.client.response(Method::GET, "/down", Vec::new()).await;
        assert_eq!(response.status().as_u16(), 503);
        assert!(response.headers().contains_key("retry-after"));
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    let readiness = gate.readiness().await;
    assert!(readiness.starts_with("503"), "{readiness}");
    b.listen();
    gate.until("its return", async |status| status == 200).await;
    assert!(gate.readiness().await.starts_with("200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_move_no_count_and_make_no_check() {
    let (a, b, c) = (
        Server::start().await,
        Server::start().await,
        Server::start().await,
    );
    b.set_health(500);
    let lines = "concurrency = NUMBER\nslow_start = \"0s\"\n[upstream.main.health_check]\n\
                 path = \"/health\"\ninterval = \"1s\"";
    let text = |servers: &[&Server], number: usize| {
        config(
            &urls(servers),
            &lines.replace("NUMBER", &number.to_string()),
        )
    };
    let gate = EndpointGate::of(&text(&[&a, &b], 10)).await;
    eventually("the first checks", async || {
        let listed = gate.listed().await;
        a.checks() > 0 && !listed[1]["trouble"].is_null()
    })
    .await;
    let (start, at_a, at_b) = (std::time::Instant::now(), a.checks(), b.requests());
    let load = Load::start(&gate, 2, &Method::GET);
    for number in 0..20 {
        let servers: &[&Server] = match number % 2 {
            0 => &[&a, &b, &c],
            _ => &[&a, &b],
        };
        gate.reload(&text(servers, 11 + number)).await;
    }
    let checks = a.checks() - at_a;
    // Intervals are up to a fifth shorter.
    let most = start.elapsed().as_secs_f64() / 0.8 + 1.0;
    assert!(checks as f64 <= most, "{checks} of {most}");
    assert_eq!(b.requests(), at_b, "it is known to be down");
    gate.reload(&text(&[&b, &c], 50)).await;
    // A check may be under way.
    sleep(Duration::from_millis(200)).await;
    let (at_a, requests) = (a.checks(), a.requests());
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(a.checks(), at_a, "it has been removed");
    assert_eq!(a.requests(), requests);
    let statuses = load.end().await;
    assert_eq!(failed(&statuses), [0; 0], "of {}", statuses.len());
    gate.becomes_quiet().await;
}

/// A check that a reload finds under way, and that it ends, says nothing about the endpoint.
#[tokio::test(flavor = "multi_thread")]
async fn reloads_while_checks_are_under_way_count_no_failure() {
    let (a, b) = (Server::start().await, Server::start().await);
    for server in [&a, &b] {
        server.delay_health(Duration::from_secs(1));
    }
    let text = |number: usize| {
        let lines = format!(
            "concurrency = {number}\nslow_start = \"0s\"\n[upstream.main.health_check]\n\
             path = \"/health\"\ninterval = \"3s\"\ntimeout = \"3s\""
        );
        config(&urls(&[&a, &b]), &lines)
    };
    let gate = EndpointGate::of(&text(10)).await;
    eventually("the first checks", async || a.checks() + b.checks() >= 2).await;
    let load = Load::start(&gate, 2, &Method::POST);
    for number in 0..15 {
        gate.reload(&text(11 + number)).await;
    }
    eventually("a check that passed", async || {
        let passed = ["outcome=\"succeeded\""];
        gate.metric("tollgate_endpoint_checks_total", &passed).await > 0.0
    })
    .await;
    let failures = ["outcome=\"failed\""];
    let failures = gate.metric("tollgate_endpoint_checks_total", &failures);
    assert_eq!(failures.await, 0.0);
    assert_eq!(gate.ejections().await, 0.0);
    let statuses = load.end().await;
    assert_eq!(failed(&statuses), [0; 0], "of {}", statuses.len());
    assert!(!gate.readiness().await.contains("endpoint"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_is_not_believed() {
    let (a, hole) = (Server::start().await, BlackHole::start().await);
    let lines = "connect_timeout = \"1s\"\n[upstream.main.health_check]\npath = \"/health\"";
    let endpoints = [a.url(), format!("http://{}", hole.address)];
    let gate = EndpointGate::of(&config(&endpoints, lines)).await;
    let sent = (0..100).map(|number| {
        let gate = &gate;
        async move {
            let start = std::time::Instant::now();
            let status = gate.get(&format!("/first-{number}")).await;
            (status, start.elapsed())
        }
    });
    for (status, took) in futures_util::future::join_all(sent).await {
        assert_eq!(status, 200);
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    assert_eq!(a.requests(), 100);
    assert!(a.checks() >= 1, "the first check goes at once");
}

/// A slow start at a recovery, and none when all are new.
#[tokio::test(flavor = "multi_thread")]
async fn a_recovered_endpoint_gets_its_share_slowly() {
    let (a, b) = (Server::start().await, Server::start().await);
    let lines = format!("slow_start = \"20s\"\n{NO_EJECTION}\n{CHECK}");
    let gate = EndpointGate::start(&[&a, &b], &lines).await;
    eventually("the checks", async || a.checks() > 0 && b.checks() > 0).await;
    for _ in 0..200 {
        assert_eq!(gate.get("/new").await, 200);
    }
    assert!(
        b.requests() > 50,
        "{}: no ramp when all are new",
        b.requests()
    );
    b.set_health(503);
    eventually("its end", async || {
        !gate.listed().await[1]["trouble"].is_null()
    })
    .await;
    b.set_health(200);
    eventually("its return", async || {
        gate.listed().await[1]["trouble"].is_null()
    })
    .await;
    let before = b.requests();
    for _ in 0..200 {
        assert_eq!(gate.get("/back").await, 200);
    }
    let share = b.requests() - before;
    assert!((1..=75).contains(&share), "{share} of 200");
}

/// A check that hangs fails by its own time and holds nothing up.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_its_checks_gets_no_request() {
    let (a, b) = (Server::start().await, Server::start().await);
    let gate = EndpointGate::start(&[&a, &b], PLAIN_CHECK).await;
    for status in [500, 404, 503] {
        b.set_health(status);
        eventually("its end", async || {
            !gate.listed().await[1]["trouble"].is_null()
        })
        .await;
        let before = b.requests();
        for _ in 0..20 {
            assert_eq!(gate.get("/other").await, 200);
        }
        assert_eq!(b.requests(), before, "{status}");
        b.set_health(204);
        eventually("its return", async || {
            gate.listed().await[1]["trouble"].is_null()
        })
        .await;
        gate.until("a request", async |_| b.requests() > before)
            .await;
    }
    b.set(Behaviour::Close);
    assert_eq!(gate.get("/safe").await, 200);
}
