//! Requests and responses pass unchanged, streamed, and in bounded memory.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use reqwest::{Method, Version};
use serde_json::json;
use tollgate::emulator::Emulator;

use crate::harness::client::verdict;
use crate::harness::program::Program;
use crate::harness::{Client, Gateway, NO_LIMITS, Setup, emulator, eventually, written};

async fn gate(webapp: &Emulator) -> (Gateway, Client) {
    let gateway = Gateway::with(webapp, Setup::default().rest(NO_LIMITS)).await;
    let client = gateway.admin().await;
    (gateway, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_of_the_profile_is_reached_with_and_without_trailing_slash() {
    let webapp = emulator().await;
    let (_gateway, client) = gate(&webapp).await;
    let nodes = [
        (Method::GET, "/v1/settings/application"),
        (Method::GET, "/v1/settings/application/media/providers"),
        (Method::GET, "/v1/settings/business/profile"),
        (Method::GET, "/v1/settings/profile/about"),
        (Method::GET, "/v1/stickerpacks"),
        (Method::GET, "/v1/groups"),
        (Method::GET, "/v1/certificates/webhooks/ca"),
        (Method::GET, "/v1/health"),
        (Method::GET, "/v1/stats/app"),
        (Method::GET, "/v1/stats/db"),
        (Method::GET, "/v1/stats/app/internal"),
        (Method::GET, "/metrics"),
        (Method::GET, "/v1/support"),
        (Method::GET, "/v1/account/shards"),
    ];
    for (method, path) in nodes {
        for path in [path.to_owned(), format!("{path}/")] {
            let before = webapp.request_count(path.trim_end_matches('/'));
            let response = client.request(method.clone(), &path).send().await.unwrap();
            assert!(
                response.status().as_u16() < 500,
                "{path}: {}",
                response.status()
            );
            let after = webapp.request_count(path.trim_end_matches('/'));
            assert!(
                after > before,
                "{path} did not reach the Webapp: {}",
                response.status()
            );
        }
    }
    assert_eq!(verdict(client.get("/v1/nothing").await).await, (404, 1006));
    assert_eq!(verdict(client.get("/").await).await, (404, 1006));
    let wrong = client
        .request(Method::DELETE, "/v1/messages")
        .send()
        .await
        .unwrap();
    assert_eq!(wrong.headers()["allow"], "POST");
    assert_eq!(verdict(wrong).await, (405, 1006));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_carry_bodies_head_requests_and_empty_responses() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let token = gateway.admin().await.token.unwrap();
    for (client, version) in [
        (Client::http1(&gateway), Version::HTTP_11),
        (Client::new(&gateway), Version::HTTP_2),
    ] {
        let client = client.with_token(&token);
        let text = json!({ "to": "1", "type": "text", "text": { "body": "hello" } });
        let sent = client.post("/v1/messages", &text).await;
        assert_eq!((sent.status().as_u16(), sent.version()), (201, version));

        let body = vec![42_u8; 70_000];
        let request = client
            .request(Method::POST, "/v1/media")
            .header("content-type", "image/png");
        let up = request.body(body.clone()).send().await.unwrap();
        let id: serde_json::Value = up.json().await.unwrap();
        let path = format!("/v1/media/{}", id["media"][0]["id"].as_str().unwrap());
        let head = client.request(Method::HEAD, &path).send().await.unwrap();
        assert_eq!(head.headers()["content-length"], "70000");
        assert_eq!(head.bytes().await.unwrap().len(), 0);
        let down = client.get(&path).await;
        assert_eq!(down.headers()["content-length"], "70000");
        assert_eq!(down.bytes().await.unwrap(), body);
        let deleted = client.request(Method::DELETE, &path).send().await.unwrap();
        assert!(deleted.status().is_success());
        let missing = client.get(&path).await;
        assert_eq!(missing.status(), 404);
        assert_eq!(
            missing.bytes().await.unwrap().len(),
            0,
            "the Webapp's empty 404 is forwarded"
        );
        let options = client
            .request(Method::OPTIONS, "/v1/health")
            .send()
            .await
            .unwrap();
        assert_ne!(options.status(), 401);
    }
}

/// A body of `total` bytes, streamed in pieces.
fn pieces(total: usize) -> reqwest::Body {
    const PIECE: usize = 64 * 1024;
    let count = total / PIECE;
    let piece = Bytes::from(vec![1_u8; PIECE]);
    let all = stream::iter((0..count).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
    reqwest::Body::wrap_stream(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_megabytes_in_either_direction_take_less_than_two_of_memory() {
    const TOTAL: usize = 200 * 1024 * 1024;
    let webapp = emulator().await;
    webapp.media_limit(0);
    let folder = tempfile::tempdir().unwrap();
    let rest = format!("{NO_LIMITS}\n[[route]]\nname = \"media.upload\"\nmax_body = \"300MiB\"\n");
    let setup = Setup::default().rest(&rest);
    let file = written(folder.path(), &webapp, &setup, |text| {
        text.replace("workers = 2", "workers = 1")
    });
    let program = Program::serve(&file);
    let client = Client::of(
        folder.path(),
        &program.url(""),
        reqwest::Client::builder().http1_only(),
    );
    let client = client
        .logged_in(crate::harness::ADMIN, crate::harness::ADMIN_PASSWORD)
        .await;

    let upload = async |total: usize| {
        let request = client
            .request(Method::POST, "/v1/media")
            .header("content-type", "video/mp4");
        let response = request
            .header("content-length", total)
            .body(pieces(total))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
    };
    let download = async |total: usize| {
        let response = client.get(&format!("/v1/media/generated-{total}")).await;
        assert_eq!(response.status(), 200);
        let mut body = response.bytes_stream();
        let mut got = 0;
        while let Some(piece) = body.next().await {
            got += piece.unwrap().len();
        }
        assert_eq!(got, total);
    };
    // The first, smaller exchanges allocate the buffers that every connection needs.
    upload(8 * 1024 * 1024).await;
    download(8 * 1024 * 1024).await;
    let before = program.resident();
    upload(TOTAL).await;
    download(TOTAL).await;
    let grown = program.resident().saturating_sub(before);
    assert!(grown < 2 * 1024, "grew by {grown} KiB from {before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_streamed_and_a_client_that_disconnects_releases_the_permit() {
    let webapp = emulator().await;
    let setup = Setup::default()
        .upstream("concurrency = 1\nqueue_timeout = \"5s\"")
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    webapp.slow_body(true);
    let mut response = client.get("/v1/media/generated-10000000").await;
    assert!(
        response.chunk().await.unwrap().is_some(),
        "the first piece arrives before the rest"
    );
    drop(response);
    webapp.slow_body(false);
    // The only upstream permit is free again, otherwise this request would be refused.
    assert_eq!(client.get("/v1/support").await.status(), 200);
    eventually("the client's disconnect is counted", async || {
        gateway.metrics.client_disconnects.get() > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_upstream_causes_a_timeout() {
    let webapp = emulator().await;
    let setup = Setup::default()
        .upstream("first_byte_timeout = \"500ms\"\nbody_idle_timeout = \"1s\"")
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/settings/application").await.status(), 200);
    webapp.hang(true);
    assert_eq!(
        verdict(client.get("/v1/settings/application").await).await,
        (504, 1014)
    );
    webapp.hang(false);
    webapp.stall_after_headers(true);
    let begin = tokio::time::Instant::now();
    let response = client.get("/v1/media/generated-10000000").await;
    assert_eq!(response.status(), 200);
    assert!(
        response.bytes().await.is_err(),
        "the client sees an incomplete response"
    );
    assert!(begin.elapsed() < Duration::from_secs(10));
    webapp.stall_after_headers(false);
    webapp.close_mid_body(1);
    assert!(
        client
            .get("/v1/media/generated-10000000")
            .await
            .bytes()
            .await
            .is_err()
    );
    assert_eq!(client.get("/v1/settings/application").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstreams_own_errors_pass_and_an_unreachable_upstream_is_a_502() {
    let webapp = emulator().await;
    let (gateway, client) = gate(&webapp).await;
    assert_eq!(client.get("/v1/support").await.status(), 200);
    webapp.respond_503(1);
    assert_eq!(
        client.get("/v1/support").await.status(),
        503,
        "the Webapp's own response is forwarded"
    );
    webapp.respond_429(1);
    assert_eq!(client.get("/v1/support").await.status(), 429);
    webapp.stop();
    assert_eq!(verdict(client.get("/v1/support").await).await, (502, 1014));
    drop(gateway);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_routes_limit_is_refused_by_its_length_or_while_it_arrives() {
    let webapp = emulator().await;
    let rest = format!("{NO_LIMITS}\n[[route]]\nname = \"media.upload\"\nmax_body = \"1MiB\"\n");
    let gateway = Gateway::with(&webapp, Setup::default().rest(&rest)).await;
    let token = gateway.admin().await.token.unwrap();
    for client in [Client::http1(&gateway), Client::new(&gateway)] {
        let client = client.with_token(&token);
        let request = client
            .request(Method::POST, "/v1/media")
            .header("content-type", "image/png");
        let stated = request.body(vec![0_u8; 2 * 1024 * 1024]).send().await;
        if let Ok(response) = stated {
            assert_eq!(verdict(response).await, (413, 1009));
        }
        let request = client
            .request(Method::POST, "/v1/media")
            .header("content-type", "image/png");
        if let Ok(response) = request.body(pieces(4 * 1024 * 1024)).send().await {
            assert_eq!(verdict(response).await, (413, 1009));
        }
    }
    assert_eq!(
        gateway
            .metrics
            .rejections
            .value(tollgate::metrics::Reason::TooLarge),
        4
    );
}
