//! Requests in flight.

use super::*;
use crate::harness::eventually;
use crate::harness::raw::Raw;

#[tokio::test(flavor = "multi_thread")]
async fn one_client_cannot_fill_the_gate() {
    let limits = NO_LIMITS.replace("max_in_flight = 100000", "max_in_flight = 18");
    let setup = Setup::default().rest(&limits);
    let gateway = gate(upstream().await, setup).await;
    let idle_latency = idle_latency(&gateway).await;
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let mut raw = Raw::connect(&gateway).await;
        let head = format!(
            "POST /x/sink HTTP/1.1\r\nHost: a\r\nX-Api-Key: {FIRST_CLIENT}\r\ncontent-length: 9000000\r\n\r\n"
        );
        raw.send(head.as_bytes()).await;
        stalled.push(raw);
    }
    eventually("the requests are in flight", async || {
        gateway.metrics.requests_in_flight.get() >= 17
    })
    .await;
    assert_other_client_is_served(&gateway, idle_latency, "40 hanging requests").await;
    let first_client = KeyClient::new(&gateway, FIRST_CLIENT);
    let refused = first_client.get("/x/quick").await.unwrap();
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
    drop(stalled);
    eventually("the requests have ended", async || {
        gateway.metrics.requests_in_flight.get() == 0
    })
    .await;
    assert_eq!(first_client.get("/x/quick").await.unwrap(), StatusCode::OK);
}
