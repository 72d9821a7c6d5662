//! What the operator sees and steers: `/endpoints`, affinity, `/readyz`.

use std::time::Duration;

use serde_json::{Value, json};

use super::endpoint_server::{EndpointServer, Fault, WORKS};
use super::{OPERATOR_TOKEN, addresses, gate, get, load, statuses, text};
use crate::harness::{Gateway, eventually};

/// Calls `/endpoints`; status and body.
async fn call(gateway: &Gateway, body: Option<Value>) -> (u16, Value) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = gateway.operator_url("/endpoints");
    let request = match body {
        None => client.get(url),
        Some(body) => client.post(url).body(body.to_string()),
    };
    let response = request.bearer_auth(OPERATOR_TOKEN).send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap())
}

/// Drains an endpoint, or puts it back in use.
pub(super) async fn drain(gateway: &Gateway, server: &EndpointServer, is_drained: bool) {
    let endpoint = format!("http://{}", server.address);
    let wanted = json!({ "upstream": "main", "endpoint": endpoint, "drained": is_drained });
    let (status, answer) = call(gateway, Some(wanted)).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["endpoints"][0]["drained"], is_drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_drained_under_load_and_stays_so_over_a_reload() {
    let (a, b) = (
        EndpointServer::start(WORKS).await,
        EndpointServer::start(Fault::Works(Duration::from_millis(20))).await,
    );
    let gateway = gate(&[&a, &b], "slow_start = \"0s\"").await;
    let work = load(&gateway, 4, Duration::from_millis(2500));
    let steer = async {
        eventually("both work", async || a.requests() > 5 && b.requests() > 5).await;
        drain(&gateway, &b, true).await;
        eventually("its requests have ended", async || {
            call(&gateway, None).await.1["endpoints"][1]["in_flight"] == 0
        })
        .await;
        let before = b.requests();
        let changed = "slow_start = \"0s\"\nconcurrency = 50";
        std::fs::write(gateway.config_file(), text(&addresses(&[&a, &b]), changed)).unwrap();
        let reloads = &gateway.metrics.reloads;
        eventually("the reload", async || {
            reloads.value(tollgate::metrics::ReloadResult::Applied) == 1
        })
        .await;
        assert_eq!(b.requests(), before);
        let (_, text) = super::readiness(&gateway).await;
        assert!(text.contains("drained"), "{text}");
        drain(&gateway, &b, false).await;
        eventually("it works again", async || b.requests() > before + 5).await;
    };
    let (answers, ()) = tokio::join!(work, steer);
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_calls_are_told_what_is_wrong() {
    let (a, b) = (
        EndpointServer::start(WORKS).await,
        EndpointServer::start(WORKS).await,
    );
    let gateway = gate(&[&a, &b], "").await;
    let endpoint = format!("http://{}", a.address);
    for (body, status, said) in [
        (
            json!({ "upstream": "mian", "endpoint": endpoint, "drained": true }),
            404,
            "mian",
        ),
        (
            json!({ "upstream": "main", "endpoint": "http://b", "drained": true }),
            404,
            &*endpoint,
        ),
        (
            json!({ "upstream": "main", "endpoint": endpoint }),
            400,
            "drained",
        ),
        (
            json!({ "upstream": "main", "endpoint": endpoint, "drain": true }),
            400,
            "drain",
        ),
    ] {
        let (got, answer) = call(&gateway, Some(body)).await;
        let text = answer["error"].as_str().unwrap();
        assert_eq!(got, status, "{text}");
        assert!(text.contains(said), "{text}");
    }
    let response = reqwest::get(gateway.operator_url("/endpoints"))
        .await
        .unwrap();
    assert_eq!(response.status(), 401);
    // All of them drained: refused at once.
    drain(&gateway, &a, true).await;
    drain(&gateway, &b, true).await;
    let answer = get(&gateway.client(), "/x").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.retry_after.as_deref(), Some("1"));
    let (status, text) = super::readiness(&gateway).await;
    assert_eq!(status, 503);
    assert!(text.contains("drained"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_stays_at_its_endpoint_while_it_works() {
    let servers = [
        EndpointServer::start(WORKS).await,
        EndpointServer::start(WORKS).await,
    ];
    let all: Vec<&EndpointServer> = servers.iter().collect();
    let gateway = gate(&all, "affinity = \"client\"").await;
    let client = gateway.client();
    assert!(
        statuses(&client, 30)
            .await
            .iter()
            .all(|status| *status == 200)
    );
    let mine = usize::from(servers[1].requests() > 0);
    assert_eq!(servers[mine].requests(), 30);
    servers[mine].kill();
    assert!(
        statuses(&client, 30)
            .await
            .iter()
            .all(|status| *status == 200)
    );
    assert_eq!(servers[1 - mine].requests(), 30);
    servers[mine].revive().await;
    eventually("it returns", async || {
        get(&client, "/x").await;
        servers[mine].requests() > 30
    })
    .await;
}
