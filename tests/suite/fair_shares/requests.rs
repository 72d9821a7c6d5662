//! Requests in flight.

use super::*;
use crate::harness::eventually;
use crate::harness::raw::Raw;

#[tokio::test(flavor = "multi_thread")]
async fn one_client_cannot_fill_the_gate() {
    let limits = NO_LIMITS.replace("max_in_flight = 100000", "max_in_flight = 18");
    let setup = Setup::default().rest(&limits);
    let gateway = gate(upstream().await, setup).await;
    let quiet = quiet(&gateway).await;
    let mut stuck = Vec::new();
    for _ in 0..40 {
        let mut raw = Raw::connect(&gateway).await;
        let head = format!(
            "POST /x/sink HTTP/1.1\r\nHost: a\r\nX-Api-Key: {GREEDY}\r\ncontent-length: 9000000\r\n\r\n"
        );
        raw.send(head.as_bytes()).await;
        stuck.push(raw);
    }
    eventually("they are inside", async || {
        gateway.metrics.requests_in_flight.get() >= 17
    })
    .await;
    assert_honest_is_served(&gateway, quiet, "40 hanging requests").await;
    let greedy = KeyClient::new(&gateway, GREEDY);
    let refused = greedy.get("/x/quick").await.unwrap();
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
    drop(stuck);
    eventually("they are gone", async || {
        gateway.metrics.requests_in_flight.get() == 0
    })
    .await;
    assert_eq!(greedy.get("/x/quick").await.unwrap(), StatusCode::OK);
}
