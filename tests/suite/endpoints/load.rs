//! Endpoints that die, hang, slow down, join and leave under load: no safe request is lost, no unsafe one
//! is sent twice, all counts return to zero (row U22).

use std::time::Duration;

use reqwest::Method;
use tokio::time::{sleep, timeout};

use super::server::{Behaviour, Server};
use super::{EndpointGate, LONG_EJECTION, Load, config, failed, urls};
use crate::harness::eventually;

const QUICK: &str = "first_byte_timeout = \"500ms\"\nretry_share = 1.0\nslow_start = \"0s\"\n\
                     ejection = { failures = 3, first = \"500ms\", max = \"1s\" }";

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_dies_costs_no_safe_request() {
    let (a, b) = (Server::start().await, Server::start().await);
    let gate = EndpointGate::start(&[&a, &b], QUICK).await;
    for server in [&a, &b] {
        server.set(Behaviour::Respond(200, Duration::from_millis(5)));
    }
    let load = Load::start(&gate, 8, &Method::GET);
    for round in 0..3 {
        let before = b.requests();
        eventually("its share", async || b.requests() > before + 20).await;
        b.kill();
        let line = format!("endpoint {}: ", b.url());
        eventually("the note", async || gate.readiness().await.contains(&line)).await;
        assert!(gate.readiness().await.starts_with("200"), "round {round}");
        b.listen();
    }
    let before = b.requests();
    eventually("its return", async || b.requests() > before + 20).await;
    let statuses = load.end().await;
    assert_eq!(failed(&statuses), [0; 0], "of {}", statuses.len());
    let lost = ["no_connection", "no_response"];
    let mut counted = 0.0;
    for outcome in lost {
        let name = "tollgate_endpoint_requests_total";
        counted += gate.metric(name, &[&b.url(), outcome]).await;
    }
    assert!(counted > 0.0);
    gate.becomes_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_hangs_costs_no_safe_request() {
    let (a, b) = (Server::start().await, Server::start().await);
    let gate = EndpointGate::start(&[&a, &b], QUICK).await;
    let load = Load::start(&gate, 8, &Method::GET);
    sleep(Duration::from_millis(300)).await;
    b.set(Behaviour::Hang);
    let line = format!("endpoint {}: ", b.url());
    eventually("the note", async || gate.readiness().await.contains(&line)).await;
    let at_b = b.requests();
    sleep(Duration::from_millis(1500)).await;
    assert!(
        b.requests() <= at_b + 8 + 4,
        "only trials: {}",
        b.requests() - at_b
    );
    b.respond(200);
    let before = b.requests();
    eventually("its return", async || b.requests() > before + 20).await;
    let statuses = load.end().await;
    assert_eq!(failed(&statuses), [0; 0], "of {}", statuses.len());
    gate.becomes_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_slows_down_gets_less() {
    let (a, b) = (Server::start().await, Server::start().await);
    let gate = EndpointGate::start(&[&a, &b], LONG_EJECTION).await;
    a.set(Behaviour::Respond(200, Duration::from_millis(2)));
    b.set(Behaviour::Respond(200, Duration::from_millis(300)));
    let load = Load::start(&gate, 8, &Method::GET);
    sleep(Duration::from_millis(1500)).await;
    let statuses = load.end().await;
    assert_eq!(failed(&statuses), [0; 0]);
    assert!(
        a.requests() > 3 * b.requests(),
        "{} {}",
        a.requests(),
        b.requests()
    );
    assert_eq!(gate.ejections().await, 0.0);
    gate.becomes_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_unsafe_request_is_sent_twice() {
    let (a, b) = (Server::start().await, Server::start().await);
    let gate = EndpointGate::start(&[&a, &b], QUICK).await;
    let load = Load::start(&gate, 8, &Method::POST);
    for way in [
        Behaviour::Close,
        Behaviour::Hang,
        Behaviour::Respond(503, Duration::ZERO),
        Behaviour::Reset(0),
    ] {
        b.set(way);
        sleep(Duration::from_millis(300)).await;
        b.kill();
        sleep(Duration::from_millis(100)).await;
        b.listen();
        b.respond(200);
        sleep(Duration::from_millis(300)).await;
    }
    let statuses = load.end().await;
    assert!(statuses.len() > 100, "{}", statuses.len());
    let mut seen = a.seen();
    for (line, count) in b.seen() {
        *seen.entry(line).or_default() += count;
    }
    let twice: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    gate.becomes_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_join_and_leave_under_load() {
    let (a, b, c) = (
        Server::start().await,
        Server::start().await,
        Server::start().await,
    );
    for server in [&a, &b, &c] {
        server.set(Behaviour::Respond(200, Duration::from_millis(10)));
    }
    let text = |servers: &[&Server]| config(&urls(servers), "slow_start = \"0s\"");
    let gate = EndpointGate::of(&text(&[&a])).await;
    let load = Load::start(&gate, 8, &Method::POST);
    let steps: [&[&Server]; 6] = [&[&a, &b], &[&b, &c, &a], &[&c, &b], &[&c], &[&a, &c], &[&a]];
    for servers in steps {
        gate.reload(&text(servers)).await;
        for server in servers {
            let before = server.requests();
            eventually("its share", async || server.requests() > before + 5).await;
        }
        if servers.len() > 1 {
            for server in servers {
                let name = "tollgate_endpoint_requests_total";
                let counted = gate.metric(name, &[&server.url(), "\"ok\""]).await;
                assert!(counted > 0.0, "{}", server.url());
            }
        }
    }
    let statuses = load.end().await;
    assert_eq!(failed(&statuses), [0; 0], "of {}", statuses.len());
    let before = b.requests() + c.requests();
    assert_eq!(gate.get("/last").await, 200);
    assert_eq!(b.requests() + c.requests(), before, "they have left");
    eventually("the end of its series", async || {
        let name = "tollgate_endpoint_requests_in_flight";
        gate.metric(name, &[&b.url()]).await == 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_out_is_counted_down() {
    let (a, b) = (Server::start().await, Server::start().await);
    let lines = |number: usize| format!("{QUICK}\nconcurrency = {number}");
    let gate = EndpointGate::start(&[&a, &b], &lines(200)).await;
    let ways = [
        Behaviour::Close,
        Behaviour::Reset(0),
        Behaviour::Hang,
        Behaviour::Respond(413, Duration::ZERO),
        Behaviour::Respond(200, Duration::from_millis(300)),
        Behaviour::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut"),
        Behaviour::Bytes("rubbish\r\n\r\n"),
    ];
    for (number, way) in ways.into_iter().enumerate() {
        a.set(way.clone());
        b.set(way.clone());
        let sent = (0..40).map(|nth| {
            let client = gate.client.clone();
            async move {
                let method = if nth % 2 == 0 {
                    Method::GET
                } else {
                    Method::PUT
                };
                let size = if nth % 4 == 1 { 200_000 } else { 10 };
                let sent = client.response(method, "/way", vec![b'x'; size]);
                let limit = Duration::from_millis(if nth % 3 == 0 { 50 } else { 5000 });
                if let Ok(response) = timeout(limit, sent).await {
                    let _ = response.bytes().await;
                }
            }
        });
        let all = futures_util::future::join_all(sent);
        // An endpoint is removed and added again while requests are open.
        if number % 3 == 1 {
            let (one, both) = (urls(&[&a]), urls(&[&a, &b]));
            let change = async {
                gate.reload(&config(&one, &lines(300 + number))).await;
                gate.reload(&config(&both, &lines(400 + number))).await;
            };
            futures_util::future::join(all, change).await;
        } else {
            all.await;
        }
        gate.becomes_quiet().await;
    }
    a.respond(200);
    b.respond(200);
    gate.until("both to work", async |_| {
        !gate.readiness().await.contains("endpoint")
    })
    .await;
    let before = (a.requests(), b.requests());
    for _ in 0..200 {
        assert_eq!(gate.get("/even").await, 200);
    }
    let shares = [a.requests() - before.0, b.requests() - before.1];
    assert!(shares.iter().all(|share| *share > 50), "{shares:?}");
}
