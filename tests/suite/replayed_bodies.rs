//! A request body is buffered as long as it may have to be sent again.

use std::time::Duration;

use crate::harness::raw::Raw;
use crate::harness::{Gateway, NO_LIMITS, Setup, emulator};

#[tokio::test(flavor = "multi_thread")]
async fn a_body_in_many_small_pieces_is_replayed_unchanged() {
    let webapp = emulator().await;
    let setup = Setup::default()
        .upstream("min_login_interval = \"10ms\"")
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/support").await.status(), 200);
    webapp.forget_all_tokens();
    let body = format!(
        r#"{{"to":"1","type":"text",{}"text":{{"body":"{}"}}}}"#,
        " ".repeat(9_000),
        "x".repeat(300)
    );
    let mut raw = Raw::connect(&gateway).await;
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        client.token.as_ref().unwrap(),
        body.len()
    );
    raw.send(head.as_bytes()).await;
    // Small pieces, a large one, small ones again.
    let (first, rest) = body.as_bytes().split_at(40);
    let (large, last) = rest.split_at(8_900);
    for piece in first.chunks(7).chain([large]).chain(last.chunks(30)) {
        raw.send(piece).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let response = raw.read_to_end().await;
    assert!(response.starts_with("HTTP/1.1 201 "), "{response}");
    assert_eq!(webapp.login_count(), 2, "the request was refused once");
}
