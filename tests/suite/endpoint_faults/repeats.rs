//! What is sent again, and what never is (rows U2, U3, U15).

use std::time::Duration;

use reqwest::Method;

use super::endpoint_server::{EndpointServer, Fault, WORKS};
use super::{Answer, gate, gate_at, get, load, send, statuses};
use crate::harness::eventually;

/// No endpoint is left out.
const NO_EJECTION: &str = "ejection = \"none\"";

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_acted_on_is_not_sent_again() {
    let a = EndpointServer::start(Fault::Closes).await;
    let b = EndpointServer::start(Fault::Closes).await;
    let gateway = gate(&[&a, &b], NO_EJECTION).await;
    let client = gateway.client();
    let seen = || a.requests() + b.requests();
    for method in [Method::POST, Method::PATCH, Method::PUT, Method::DELETE] {
        let before = seen();
        let answer = send(&client, method.clone(), "/x", b"body".to_vec()).await;
        assert_eq!(answer.status, 502, "{method}");
        assert_eq!(seen() - before, 1, "{method} was sent twice");
    }
    for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
        let before = seen();
        let answer = send(&client, method.clone(), "/x", Vec::new()).await;
        assert_eq!(answer.status, 502, "{method}");
        assert_eq!(seen() - before, 2, "{method} goes to the other, once");
    }
    // The same on pooled connections that have served ten requests.
    a.set(WORKS);
    b.set(WORKS);
    assert!(
        statuses(&client, 20)
            .await
            .iter()
            .all(|status| *status == 200)
    );
    a.set(Fault::Closes);
    b.set(Fault::Closes);
    let before = seen();
    let answer = send(&client, Method::POST, "/x", b"body".to_vec()).await;
    assert_eq!(answer.status, 502);
    assert_eq!(seen() - before, 1);
    b.set(WORKS);
    for _ in 0..4 {
        assert_eq!(get(&client, "/x").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_carries_the_whole_body_or_does_not_happen() {
    let (a, b) = (
        EndpointServer::start(Fault::Resets(65_536)).await,
        EndpointServer::start(WORKS).await,
    );
    let gateway = gate(&[&a, &b], NO_EJECTION).await;
    let client = gateway.client();
    let whole = |answer: &Answer, size: usize| {
        let is_whole = answer.status == 200 && answer.text == size.to_string();
        assert!(is_whole || answer.status == 502, "{answer:?} of {size}");
    };
    for size in [1_048_576, 30_000, 70_000] {
        for _ in 0..4 {
            let answer = send(&client, Method::PUT, "/x", vec![b'x'; size]).await;
            whole(&answer, size);
        }
    }
    assert!(a.requests() > 0 && b.requests() > 0);
    // A body that no server has seen goes to the other endpoint whole, whatever the method.
    a.kill();
    for method in [Method::PUT, Method::POST] {
        for size in [1_048_576, 30_000] {
            for _ in 0..4 {
                let answer = send(&client, method.clone(), "/x", vec![b'x'; size]).await;
                assert_eq!(answer.status, 200, "{method} of {size}: {answer:?}");
                assert_eq!(answer.text, size.to_string());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_have_a_budget_and_go_elsewhere() {
    let fault = Fault::Status(503, Duration::from_millis(100));
    let servers = [
        EndpointServer::start(fault).await,
        EndpointServer::start(fault).await,
        EndpointServer::start(fault).await,
    ];
    let all: Vec<&EndpointServer> = servers.iter().collect();
    let gateway = gate(&all, NO_EJECTION).await;
    let statuses = load(&gateway, 40, Duration::from_secs(2)).await;
    assert!(statuses.len() > 100, "{}", statuses.len());
    assert!(
        statuses.iter().all(|status| *status == 503),
        "the endpoint's own"
    );
    let seen: usize = servers.iter().map(EndpointServer::requests).sum();
    let most = statuses.len() + statuses.len() / 5 + 10;
    assert!(seen > statuses.len() && seen <= most, "{seen} of {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_budget_only_what_never_arrived_is_sent_again() {
    let (a, b) = (
        EndpointServer::start(Fault::Status(503, Duration::ZERO)).await,
        EndpointServer::start(WORKS).await,
    );
    let gateway = gate(&[&a, &b], "ejection = \"none\"\nretry_share = 0").await;
    let client = gateway.client();
    let answers = statuses(&client, 30).await;
    let failed = answers.iter().filter(|status| **status == 503).count();
    assert_eq!(failed, a.requests());
    assert!(failed > 0);
    a.kill();
    assert!(
        statuses(&client, 20)
            .await
            .iter()
            .all(|status| *status == 200)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_deadline_covers_all_tries() {
    let servers = [
        EndpointServer::start(Fault::Hangs).await,
        EndpointServer::start(Fault::Hangs).await,
        EndpointServer::start(Fault::Hangs).await,
    ];
    let addresses = servers.iter().map(|server| server.address.to_string());
    let lines = "ejection = \"none\"\nfirst_byte_timeout = \"700ms\"";
    let gateway = gate_at(&Vec::from_iter(addresses), lines).await;
    let began = std::time::Instant::now();
    let answer = get(&gateway.client(), "/x").await;
    assert_eq!(answer.status, 504);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "two tries of 700 ms"
    );
    let seen = || servers.iter().map(EndpointServer::requests).sum::<usize>();
    assert_eq!(seen(), 2);
    // Each was at another endpoint.
    assert!(servers.iter().all(|server| server.requests() <= 1));
    let client = gateway.client();
    let answer = send(&client, Method::POST, "/x", b"body".to_vec()).await;
    assert_eq!(answer.status, 504);
    eventually("no further request", async || seen() == 3).await;
}
