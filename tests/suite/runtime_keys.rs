//! API keys created and deleted while the gate runs, over the operator's listener.

use std::process::Command;

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::harness::{
    Gateway, NO_LIMITS, Setup, emulator, eventually, prepare, secret, sha256, text,
};

const TOKEN: &str = "operators-own-token-0123456789";
const WRITTEN: &str = "tgk_abcdefghijklmnopqrstuvwxyz0123456789abcdefg";

async fn gateway() -> Gateway {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), &webapp);
    secret(&folder.path().join("operator-token"), TOKEN);
    let written = format!(
        "{NO_LIMITS}\n[[api_key]]\nname = \"written\"\nsha256 = [\"{}\"]\n",
        sha256(WRITTEN)
    );
    let setup = Setup::default().rest(&written);
    let text = text(&setup, &format!("https://{}", webapp.address()));
    let line = "[operator]\n";
    let text = text.replace(
        line,
        &format!("{line}token = {{ file = \"operator-token\" }}\n"),
    );
    let file = folder.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    Gateway::from_file(folder, file).await
}

async fn send_request(
    gateway: &Gateway,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Response {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.request(method, gateway.operator_url(path));
    let request = request.bearer_auth(TOKEN);
    let request = match body {
        Some(body) => request.body(body.to_string()),
        None => request,
    };
    request.send().await.unwrap()
}

async fn list(gateway: &Gateway) -> Vec<Value> {
    let response = send_request(gateway, Method::GET, "/keys", None).await;
    assert_eq!(response.status(), 200);
    let response: Value = response.json().await.unwrap();
    response["keys"].as_array().unwrap().clone()
}

async fn status(gateway: &Gateway, key: &str, path: &str) -> u16 {
    let request = gateway.client().request(Method::GET, path);
    let response = request.header("x-api-key", key).send().await.unwrap();
    response.status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_created_at_run_time_works_at_once_survives_a_restart_and_ends_at_once() {
    let gateway = gateway().await;
    let body = json!({
        "name": "bot", "paths": ["/v1/support"], "methods": ["GET"],
        "expires": "2099-12-31T23:59:59Z",
    });
    let response = send_request(&gateway, Method::POST, "/keys", Some(body.clone())).await;
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers()["cache-control"], "no-store");
    let response: Value = response.json().await.unwrap();
    let key = response["key"].as_str().unwrap().to_owned();
    assert_eq!(status(&gateway, &key, "/v1/support").await, 200);
    assert_eq!(status(&gateway, &key, "/v1/health").await, 403);
    assert_eq!(status(&gateway, WRITTEN, "/v1/health").await, 200);

    let keys = list(&gateway).await;
    assert_eq!(keys.len(), 2);
    let bot = keys.iter().find(|key| key["name"] == "bot").unwrap();
    assert_eq!(bot["expires"], "2099-12-31T23:59:59Z");
    assert_eq!(
        (&bot["origin"], &bot["paths"][0]),
        (&json!("store"), &json!("/v1/support"))
    );
    assert!(bot["last_use"].is_string());
    let text = serde_json::to_string(&keys).unwrap();
    assert!(
        !text.contains(&key) && !text.contains(&sha256(&key)),
        "{text}"
    );
    let again = send_request(&gateway, Method::POST, "/keys", Some(body)).await;
    assert_eq!(again.status(), 409);

    let gateway = gateway.restart().await;
    assert_eq!(status(&gateway, &key, "/v1/support").await, 200);
    let deletion = send_request(&gateway, Method::DELETE, "/keys/bot", None).await;
    assert_eq!(deletion.status(), 200);
    assert_eq!(status(&gateway, &key, "/v1/support").await, 401);
    let deletion = send_request(&gateway, Method::DELETE, "/keys/bot", None).await;
    assert_eq!(deletion.status(), 404);
    let gateway = gateway.restart().await;
    assert_eq!(status(&gateway, &key, "/v1/support").await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_created_at_run_time_can_have_its_own_limit() {
    let gateway = gateway().await;
    let body = json!({ "name": "slow", "paths": ["/v1/support"], "limit": "1/h burst 2" });
    let response = send_request(&gateway, Method::POST, "/keys", Some(body)).await;
    let response: Value = response.json().await.unwrap();
    let key = response["key"].as_str().unwrap().to_owned();
    let gateway = gateway.restart().await;
    for expected in [200, 200, 429] {
        assert_eq!(status(&gateway, &key, "/v1/support").await, expected);
    }
    let keys = list(&gateway).await;
    let slow = keys.iter().find(|key| key["name"] == "slow").unwrap();
    assert_eq!(slow["limit"], "1/h burst 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_the_config_file_are_listed_and_cannot_be_changed() {
    let gateway = gateway().await;
    let taken = json!({ "name": "written" });
    let refused = send_request(&gateway, Method::POST, "/keys", Some(taken)).await;
    assert_eq!(refused.status(), 409);
    let refused = send_request(&gateway, Method::DELETE, "/keys/written", None).await;
    assert_eq!(refused.status(), 409);
    assert!(refused.text().await.unwrap().contains("remove it there"));
    for bad in [
        json!({}),
        json!({ "name": "a b" }),
        json!({ "name": "x", "role": "root" }),
        json!({ "name": "x", "paths": ["v1"] }),
        json!({ "name": "x", "methods": ["get"] }),
        json!({ "name": "x", "expires": "2001-01-01T00:00:00Z" }),
        json!({ "name": "x", "expires": 7 }),
        json!({ "name": "x", "limits": "none" }),
        json!({ "name": "x", "limit": "a few" }),
        json!({ "name": "x", "paths": vec!["/v1"; 10_000] }),
    ] {
        let refused = send_request(&gateway, Method::POST, "/keys", Some(bad.clone())).await;
        assert_eq!(refused.status(), 400, "{bad}");
    }
    assert_eq!(list(&gateway).await.len(), 1);
    let odd = send_request(&gateway, Method::PUT, "/keys", None).await;
    assert_eq!(
        (odd.status().as_u16(), &odd.headers()["allow"]),
        (405, &"GET, POST".parse().unwrap())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_operators_token_keys_cannot_be_listed_or_created() {
    let with = gateway().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for shown in ["", "Bearer ", "Bearer wrong", &format!("Basic {TOKEN}")] {
        let request = client.get(with.operator_url("/keys"));
        let response = request.header("authorization", shown).send().await.unwrap();
        assert_eq!(response.status(), 401, "{shown}");
        assert!(response.headers().contains_key("www-authenticate"));
    }
    let webapp = emulator().await;
    let without = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let response = send_request(&without, Method::GET, "/keys", None).await;
    assert_eq!(response.status(), 403);
    assert!(response.text().await.unwrap().contains("[operator] token"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_token_is_added_changed_and_removed_without_a_restart() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default()).await;
    let keys = async || {
        send_request(&gateway, Method::GET, "/keys", None)
            .await
            .status()
    };
    assert_eq!(keys().await, 403, "no operator token is configured");

    let token = gateway.folder.path().join("operator-token");
    secret(&token, TOKEN);
    let plain = std::fs::read_to_string(gateway.config_file()).unwrap();
    let line = "[operator]\ntoken = { file = \"operator-token\" }\n";
    let with_token = plain.replace("[operator]\n", line);
    std::fs::write(gateway.config_file(), &with_token).unwrap();
    eventually("the token of the new file", async || keys().await == 200).await;

    secret(&token, "another-token-of-the-operator");
    assert_eq!(keys().await, 401, "the file has another token");
    // A token that is too short, or whose file is not a regular file, is not used.
    secret(&token, "x");
    assert_eq!(keys().await, 503);
    std::fs::remove_file(&token).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&token)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(keys().await, 503, "a named pipe is not read");
    std::fs::remove_file(&token).unwrap();
    secret(&token, TOKEN);
    assert_eq!(keys().await, 200);

    std::fs::write(gateway.config_file(), &plain).unwrap();
    eventually("the token is removed", async || keys().await == 403).await;
}
