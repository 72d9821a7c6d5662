//! How an upstream may end a response, and what it may do with the connection.

use reqwest::{Method, StatusCode};

use crate::harness::upstream::{Call, Reply, Upstream};
use crate::harness::{Client, Gateway, NO_LIMITS, Setup, eventually};

async fn gate(upstream: &Upstream) -> Gateway {
    let setup = Setup::default().rest(NO_LIMITS);
    Gateway::before(&format!("http://{}", upstream.address), setup).await
}

fn bare(call: &Call) -> Reply {
    let text = match call.line() {
        "GET /v1/support" => "HTTP/1.1 204 No Content\r\nX-Kept: yes\r\n\r\n",
        // RFC 9110 8.6: the length that a 200 would have, and no body.
        "GET /v1/groups" => {
            "HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\nContent-Length: 1234\r\n\r\n"
        }
        "GET /v1/stickerpacks" => {
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate"
        }
        "HEAD /v1/groups" => "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
        "DELETE /v1/groups/1" => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        other => panic!("not in the script: {other}"),
    };
    Reply::Stay(text.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_without_a_body_end_at_once_and_their_connections_are_reused() {
    let upstream = Upstream::start(bare).await;
    let gateway = gate(&upstream).await;
    let token = gateway.admin().await.token.unwrap();
    for client in [Client::http1(&gateway), Client::new(&gateway)] {
        let client = client.with_token(&token);
        for _ in 0..3 {
            let none = client.get("/v1/support").await;
            assert_eq!(none.status(), StatusCode::NO_CONTENT);
            assert_eq!(none.headers()["x-kept"], "yes");
            assert!(!none.headers().contains_key("transfer-encoding"));
            assert_eq!(none.bytes().await.unwrap(), "");

            let same = client.get("/v1/groups").await;
            assert_eq!(same.status(), StatusCode::NOT_MODIFIED);
            assert_eq!(same.headers()["etag"], "\"v1\"");
            assert_eq!(same.bytes().await.unwrap(), "");

            let head = client.request(Method::HEAD, "/v1/groups");
            let head = head.send().await.unwrap();
            assert_eq!(head.headers()["content-length"], "1234");
            assert_eq!(head.bytes().await.unwrap(), "");

            let late = client.get("/v1/stickerpacks").await;
            assert_eq!(
                (late.status(), late.text().await.unwrap().as_str()),
                (StatusCode::OK, "late")
            );

            let empty = client.request(Method::DELETE, "/v1/groups/1");
            let empty = empty.send().await.unwrap();
            assert_eq!(
                (empty.status(), empty.bytes().await.unwrap().len()),
                (StatusCode::OK, 0)
            );
        }
    }
}

/// The upstream closes each connection at its second request, without a response.
fn dies_at_the_second(call: &Call) -> Reply {
    if call.nth > 1 {
        return Reply::Close(Vec::new());
    }
    Reply::ok("{}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_on_a_closing_connection_is_repeated_and_a_post_never() {
    let upstream = Upstream::start(dies_at_the_second).await;
    let gateway = gate(&upstream).await;
    let token = gateway.admin().await.token.unwrap();
    // One client connection, so one worker with one pooled upstream connection.
    let client = Client::http1(&gateway).with_token(&token);

    assert_eq!(client.get("/v1/support").await.status(), 200);
    assert_eq!(client.get("/v1/support").await.status(), 200);
    assert_eq!(
        upstream.count("GET /v1/support"),
        3,
        "the second request was sent twice"
    );

    let text = serde_json::json!({ "to": "1", "type": "text", "text": { "body": "once" } });
    let lost = client.post("/v1/messages", &text).await;
    assert_eq!(lost.status(), 502);
    assert_eq!(
        upstream.count("POST /v1/messages"),
        1,
        "a message is never sent twice"
    );
    let deleted = client.request(Method::DELETE, "/v1/groups/1");
    assert_eq!(deleted.send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_uses_a_new_connection_when_the_pooled_one_was_closed_before() {
    let upstream = Upstream::start(|call| match call.line() {
        "GET /v1/support" => {
            Reply::Close(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec())
        }
        _ => Reply::ok("{}"),
    })
    .await;
    let gateway = gate(&upstream).await;
    let token = gateway.admin().await.token.unwrap();
    let client = Client::http1(&gateway).with_token(&token);
    for _ in 0..5 {
        assert_eq!(client.get("/v1/support").await.status(), 200);
        eventually("the end of the connection is noticed", async || {
            gateway
                .metrics
                .upstream("main")
                .upstream_connections_open
                .get()
                == 0
        })
        .await;
        let sent = client.post("/v1/messages", &serde_json::json!({})).await;
        assert_eq!(sent.status(), 200);
        // This connection stays open; the next response closes it.
    }
    assert_eq!(upstream.count("POST /v1/messages"), 5);
}
