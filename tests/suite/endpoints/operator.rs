//! Drain and undrain at run time, and who may do it.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use tokio::time::sleep;

use super::server::Server;
use super::{EndpointGate, Load, OPERATOR_TOKEN, OTHER_KEY, config, failed, urls};
use crate::harness::eventually;
use crate::harness::login_upstream::KEY;

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_endpoint_gets_nothing_also_over_a_reload() {
    let (a, b) = (Server::start().await, Server::start().await);
    let text = |concurrency: usize| {
        let lines = format!("slow_start = \"0s\"\nconcurrency = {concurrency}");
        config(&urls(&[&a, &b]), &lines)
    };
    let gate = EndpointGate::of(&text(20)).await;
    let load = Load::start(&gate, 6, &Method::POST);
    for round in 0..3 {
        let before = b.requests();
        eventually("its share", async || b.requests() > before + 20).await;
        let (status, changed) = gate.drain(&b, true).await;
        assert_eq!(
            (status, &changed["endpoints"][0]["drained"]),
            (200, &Value::Bool(true))
        );
        eventually("the last request", async || {
            gate.listed().await[1]["in_flight"] == 0
        })
        .await;
        let at_b = b.requests();
        gate.reload(&text(21 + round)).await;
        sleep(Duration::from_millis(200)).await;
        assert_eq!(b.requests(), at_b, "round {round}");
        let readiness = gate.readiness().await;
        assert!(readiness.starts_with("200"), "{readiness}");
        assert!(
            readiness.contains(&format!("endpoint {}: drained", b.url())),
            "{readiness}"
        );
        assert_eq!(gate.drain(&b, false).await.0, 200);
    }
    let before = b.requests();
    eventually("its return", async || b.requests() > before + 20).await;
    let statuses = load.end().await;
    assert_eq!(failed(&statuses), [0; 0], "of {}", statuses.len());
    gate.becomes_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_drained_is_503_at_once_and_told() {
    let (a, b) = (Server::start().await, Server::start().await);
    let gate = EndpointGate::start(&[&a, &b], "").await;
    for server in [&a, &b] {
        assert_eq!(gate.drain(server, true).await.0, 200);
    }
    let response = gate.client.response(Method::GET, "/none", Vec::new()).await;
    assert_eq!(response.status().as_u16(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let readiness = gate.readiness().await;
    assert!(readiness.starts_with("503"), "{readiness}");
    assert!(
        readiness.contains("all its endpoints are drained"),
        "{readiness}"
    );
    assert_eq!(a.requests() + b.requests(), 0);
    gate.drain(&a, false).await;
    assert_eq!(gate.get("/one").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_operators_token_drains_and_mistakes_are_named() {
    let (a, b) = (Server::start().await, Server::start().await);
    let gate = EndpointGate::start(&[&a, &b], "").await;
    let url = gate.gateway.operator_url("/endpoints");
    let post = async |token: &str, body: String| {
        let request = reqwest::Client::new().post(&url).bearer_auth(token);
        let response = request.body(body).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let drain = |upstream: &str, endpoint: &str| {
        format!(r#"{{"upstream": "{upstream}", "endpoint": "{endpoint}", "drained": true}}"#)
    };
    for token in ["", "x", KEY, &OPERATOR_TOKEN[1..]] {
        let (status, text) = post(token, drain("main", &a.url())).await;
        assert!(matches!(status, 401 | 403), "{status} {text}");
    }
    let cases = [
        (drain("nobody", &a.url()), 404, "there is no upstream"),
        (
            drain("main", "http://127.0.0.1:1"),
            404,
            "it has http://127.0.0.1:",
        ),
        (drain("main", ""), 404, "has no endpoint"),
        ("{}".to_owned(), 400, "upstream"),
        (String::new(), 400, ""),
        (
            drain("main", &a.url()).replace("true", "\"true\""),
            400,
            "boolean",
        ),
        (
            drain("main", &a.url()).replace("drained", "drain"),
            400,
            "drain",
        ),
    ];
    for (body, wanted, part) in cases {
        let (status, text) = post(OPERATOR_TOKEN, body.clone()).await;
        assert_eq!(status, wanted, "{body}: {text}");
        assert!(text.contains(part), "{body}: {text}");
    }
    let request = reqwest::Client::new().get(&url).send().await.unwrap();
    assert!(matches!(request.status().as_u16(), 401 | 403));
    for endpoint in gate.listed().await {
        assert_eq!(endpoint["drained"], false);
    }
}

/// A client stays; when its endpoint leaves it moves, and it comes back with it.
#[tokio::test(flavor = "multi_thread")]
async fn with_affinity_a_client_stays_while_its_endpoint_does() {
    let servers = [
        Server::start().await,
        Server::start().await,
        Server::start().await,
    ];
    let all: Vec<&Server> = servers.iter().collect();
    let gate = EndpointGate::start(&all, "affinity = \"client\"").await;
    let ask = async |key: &str| {
        let client = gate.gateway.client();
        let mut found = std::collections::BTreeSet::new();
        for _ in 0..10 {
            let request = client.request(Method::GET, "/who");
            let request = request.header("authorization", format!("Apikey {key}"));
            let text = request.send().await.unwrap().text().await.unwrap();
            found.insert(text.split(' ').next().unwrap().to_owned());
        }
        assert_eq!(found.len(), 1, "{found:?}");
        found.pop_first().unwrap()
    };
    let at = async |address: &str| {
        let found = servers
            .iter()
            .find(|one| one.address.to_string() == address);
        found.unwrap()
    };
    let (first, second) = (ask(KEY).await, ask(OTHER_KEY).await);
    let server = at(&first).await;
    gate.drain(server, true).await;
    let moved = ask(KEY).await;
    assert_ne!(moved, first);
    if second != first {
        assert_eq!(ask(OTHER_KEY).await, second, "its endpoint stays");
    }
    let third = servers.iter().find(|one| {
        let address = one.address.to_string();
        address != first && address != moved
    });
    gate.drain(third.unwrap(), true).await;
    assert_eq!(ask(KEY).await, moved, "its endpoint stays");
    gate.drain(third.unwrap(), false).await;
    gate.drain(server, false).await;
    assert_eq!(ask(KEY).await, first, "it is back");
    assert_eq!(ask(OTHER_KEY).await, second);
    // Dead, not drained: a safe request does not fail.
    server.kill();
    assert_eq!(ask(KEY).await, moved);
}
