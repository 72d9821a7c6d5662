//! Endpoints that die, hang, slow down and come back under load: no safe request is lost, and all counts
//! are even afterwards (row U22).

use std::time::Duration;

use reqwest::Method;

use super::endpoint_server::{EndpointServer, Fault, WORKS};
use super::{gate, get, load, metric, readiness, send};
use crate::harness::{Gateway, eventually};

const QUICK: Fault = Fault::Works(Duration::from_millis(5));

async fn servers() -> [EndpointServer; 3] {
    [
        EndpointServer::start(QUICK).await,
        EndpointServer::start(QUICK).await,
        EndpointServer::start(QUICK).await,
    ]
}

async fn counts_are_even(gateway: &Gateway, servers: &[EndpointServer]) {
    for server in servers {
        eventually("nothing is in flight", async || {
            metric(gateway, "tollgate_endpoint_requests_in_flight", server, "") == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_safe_request_is_lost_when_endpoints_die_hang_and_slow_down() {
    let servers = servers().await;
    let all: Vec<&EndpointServer> = servers.iter().collect();
    let lines = "first_byte_timeout = \"400ms\"\nejection = { first = \"500ms\" }\n\
        slow_start = \"0s\"\nretry_share = 1";
    let gateway = gate(&all, lines).await;
    let trouble = async {
        let pause = || tokio::time::sleep(Duration::from_millis(500));
        pause().await;
        servers[0].kill();
        pause().await;
        servers[0].revive().await;
        servers[1].set(Fault::Hangs);
        pause().await;
        pause().await;
        servers[1].set(QUICK);
        servers[2].set(Fault::Works(Duration::from_millis(300)));
        pause().await;
        servers[2].set(QUICK);
        servers[0].set(Fault::Closes);
        pause().await;
        servers[0].set(QUICK);
    };
    let (answers, ()) = tokio::join!(load(&gateway, 12, Duration::from_secs(4)), trouble);
    let lost = answers.iter().filter(|status| **status != 200).count();
    assert_eq!(lost, 0, "of {}", answers.len());
    assert!(answers.len() > 300, "{}", answers.len());
    counts_are_even(&gateway, &servers).await;
    let text = gateway.metrics.text();
    assert!(text.contains("tollgate_upstream_retries_total{reason=\"other_endpoint\""));
    eventually("all are in use again", async || {
        get(&gateway.client(), "/x").await;
        readiness(&gateway).await.1.trim() == "ready"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_unsafe_request_is_sent_twice_when_an_endpoint_dies() {
    let servers = servers().await;
    let all: Vec<&EndpointServer> = servers.iter().collect();
    let gateway = gate(&all, "").await;
    let work = |nth: usize| {
        let client = gateway.client();
        async move {
            let mut paths = Vec::new();
            for index in 0..60 {
                let path = format!("/{nth}/{index}");
                let status = send(&client, Method::POST, &path, b"body".to_vec())
                    .await
                    .status;
                paths.push((path, status));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            paths
        }
    };
    let runs: Vec<_> = (0..6).map(|nth| tokio::spawn(work(nth))).collect();
    for server in &servers[..2] {
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.kill();
    }
    let mut worked = 0;
    for run in runs {
        for (path, status) in run.await.unwrap() {
            let line = format!("POST {path}");
            let seen: usize = servers.iter().map(|server| server.count(&line)).sum();
            assert!(seen <= 1, "{path} was sent {seen} times");
            assert!(status == 200 || status == 502, "{path}: {status}");
            worked += usize::from(status == 200);
        }
    }
    assert!(worked > 300, "{worked} of 360");
    counts_are_even(&gateway, &servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_count_that_goes_up_comes_down_on_every_way_out() {
    let servers = [
        EndpointServer::start(Fault::Works(Duration::from_millis(300))).await,
        EndpointServer::start(Fault::Hangs).await,
        EndpointServer::start(Fault::Resets(10)).await,
    ];
    let all: Vec<&EndpointServer> = servers.iter().collect();
    let gateway = gate(&all, "first_byte_timeout = \"500ms\"\nejection = \"none\"").await;
    let client = gateway.client();
    let leaving: Vec<_> = (0..150_u64)
        .map(|nth| {
            let client = client.clone();
            tokio::spawn(async move {
                let asked = send(&client, Method::POST, "/x", vec![b'x'; 5000]);
                // Some leave, some wait for their end.
                let _ = tokio::time::timeout(Duration::from_millis(nth * 8), asked).await;
            })
        })
        .collect();
    for one in leaving {
        one.await.unwrap();
    }
    counts_are_even(&gateway, &servers).await;
    servers.iter().for_each(|server| server.set(WORKS));
    let before: Vec<usize> = servers.iter().map(EndpointServer::requests).collect();
    let answers = load(&gateway, 6, Duration::from_millis(1500)).await;
    let all = answers.len();
    for (server, before) in servers.iter().zip(before) {
        let share = (server.requests() - before) as f64 / all as f64;
        assert!((0.15..0.55).contains(&share), "{share} of {all}");
    }
}
