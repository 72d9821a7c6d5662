//! Too many requests, or too slow ones, are refused in time and with the Webapp's
//! envelope.

use std::time::Duration;

use crate::harness::client::verdict;
use crate::harness::raw::Raw;
use crate::harness::{Gateway, NO_LIMITS, Setup, emulator, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_arrives_too_slowly_gets_408() {
    let webapp = emulator().await;
    let setup = Setup::default()
        .upstream("body_idle_timeout = \"500ms\"")
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let token = gateway.admin().await.token.unwrap();
    let mut raw = Raw::connect(&gateway).await;
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: 100\r\n\r\n{{\"to\":"
    );
    raw.send(head.as_bytes()).await;
    let response = raw.read_to_end().await;
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
    assert!(
        response.to_ascii_lowercase().contains("connection: close"),
        "{response}"
    );
    assert!(response.contains("\"code\":1025"), "{response}");
    eventually("the upstream permit is free again", async || {
        webapp.in_flight() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_an_upstream_permit_in_time_gets_503_with_retry_after() {
    let webapp = emulator().await;
    let setup = Setup::default()
        .upstream("concurrency = 1\nqueue_timeout = \"300ms\"")
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    webapp.response_delay(Duration::from_secs(3));
    let first = {
        let client = client.clone();
        tokio::spawn(async move { client.get("/v1/support").await.status().as_u16() })
    };
    eventually("the first request is at the upstream", async || {
        webapp.in_flight() == 1
    })
    .await;
    let late = client.get("/v1/groups").await;
    assert_eq!(late.headers()["retry-after"], "1");
    assert_eq!(verdict(late).await, (503, 1016));
    assert_eq!(webapp.request_count("/v1/groups"), 0);
    assert_eq!(first.await.unwrap(), 200, "the first request succeeds");
    webapp.response_delay(Duration::ZERO);
    assert_eq!(client.get("/v1/groups").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_over_max_in_flight_are_refused_at_once() {
    let webapp = emulator().await;
    let limits = NO_LIMITS.replace("max_in_flight = 100000", "max_in_flight = 2");
    assert_ne!(limits, NO_LIMITS);
    let gateway = Gateway::with(&webapp, Setup::default().rest(&limits)).await;
    let client = gateway.admin().await;
    webapp.response_delay(Duration::from_secs(3));
    let requests: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("/v1/support").await.status().as_u16() })
        })
        .collect();
    eventually("both requests are at the upstream", async || {
        webapp.in_flight() == 2
    })
    .await;
    assert_eq!(verdict(client.get("/v1/groups").await).await, (503, 1016));
    for one in requests {
        assert_eq!(one.await.unwrap(), 200);
    }
    webapp.response_delay(Duration::ZERO);
    assert_eq!(
        client.get("/v1/groups").await.status(),
        200,
        "their permits are released"
    );
}
