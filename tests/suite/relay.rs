//! The gate in front of clients that log in at the Webapp (directory = "webapp").

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tollgate::emulator::{Emulator, Settings};

use crate::harness::client::verdict;
use crate::harness::{
    Client, Gateway, NO_LIMITS, Setup, WEBAPP_PASSWORD, emulator, emulator_with, eventually,
};

const WORKER: &str = "Worker-Passw0rd1!";

async fn relay(webapp: &Emulator, users: &str) -> Gateway {
    let setup = Setup::default()
        .users(&format!("directory = \"webapp\"\n{users}"))
        .rest(NO_LIMITS);
    Gateway::with(webapp, setup).await
}

async fn logged_in(gateway: &Gateway) -> Client {
    gateway.client().logged_in("admin", WEBAPP_PASSWORD).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_relayed_and_its_token_learned_and_validated_at_the_gate() {
    let webapp = emulator().await;
    let gateway = relay(&webapp, "").await;
    let client = logged_in(&gateway).await;
    let token = client.token.clone().unwrap();
    assert_eq!(token.split('.').count(), 3, "a token of the Webapp");
    assert_eq!(client.get("/v1/support").await.status(), 200);

    let before = webapp.request_count("/v1/support");
    let forged = gateway
        .client()
        .with_token("eyJhbGciOiJIUzI1NiJ9.e30.forged");
    assert_eq!(verdict(forged.get("/v1/support").await).await, (401, 1005));
    assert_eq!(
        webapp.request_count("/v1/support"),
        before,
        "refused at the gate"
    );
    let wrong = gateway.client().login("admin", "Wrong-Passw0rd!").await;
    assert_eq!(verdict(wrong).await, (401, 1005), "a refusal by the Webapp");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_all_of_the_users_tokens_at_the_gate_at_once() {
    let webapp = emulator().await;
    let gateway = relay(&webapp, "").await;
    let one = logged_in(&gateway).await;
    let two = logged_in(&gateway).await;
    let response = one
        .request(Method::POST, "/v1/users/logout")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let before = webapp.request_count("/v1/support");
    for client in [one, two] {
        assert_eq!(verdict(client.get("/v1/support").await).await, (401, 1005));
    }
    assert_eq!(webapp.request_count("/v1/support"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_ends_the_users_tokens_and_a_failed_one_does_not() {
    let webapp = emulator().await;
    let gateway = relay(&webapp, "").await;
    let admin = logged_in(&gateway).await;
    let created = admin
        .post(
            "/v1/users",
            &json!({ "username": "worker", "password": WORKER }),
        )
        .await;
    assert_eq!(created.status(), 201);
    let worker = gateway.client().logged_in("worker", WORKER).await;
    let refused = worker
        .request(Method::DELETE, "/v1/users/worker")
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), 403, "the Webapp refuses the deletion");
    assert_eq!(worker.get("/v1/support").await.status(), 200);
    let deleted = admin
        .request(Method::DELETE, "/v1/users/worker")
        .send()
        .await
        .unwrap();
    assert_eq!(deleted.status(), 200);
    assert_eq!(verdict(worker.get("/v1/support").await).await, (401, 1005));
    assert_eq!(admin.get("/v1/support").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_401_for_the_clients_own_token_is_forwarded_and_the_token_is_removed() {
    let webapp = emulator().await;
    let gateway = relay(&webapp, "").await;
    let client = logged_in(&gateway).await;
    let logins = webapp.login_count();
    webapp.revoke(client.token.as_ref().unwrap());
    assert_eq!(verdict(client.get("/v1/support").await).await, (401, 1005));
    let before = webapp.request_count("/v1/support");
    assert_eq!(verdict(client.get("/v1/support").await).await, (401, 1005));
    assert_eq!(
        webapp.request_count("/v1/support"),
        before,
        "the removed token is not sent again"
    );
    assert_eq!(
        webapp.login_count(),
        logins,
        "no login of the gate was caused by it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learned_token_expires_when_the_webapp_says_so() {
    let webapp = emulator_with(Settings {
        token_lifetime: Duration::from_secs(2),
        ..Settings::for_tests()
    })
    .await;
    let gateway = relay(&webapp, "").await;
    let client = logged_in(&gateway).await;
    assert_eq!(client.get("/v1/support").await.status(), 200);
    eventually("the end of the token", async || {
        client.get("/v1/support").await.status() == 401
    })
    .await;
    eventually("the token is removed", async || {
        gateway.metrics.tokens.get() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_token_is_probed_once_and_a_refusal_is_remembered() {
    let webapp = emulator().await;
    let gateway = relay(&webapp, "unknown_tokens = \"ask\"").await;
    eventually("the probe is tested", async || {
        gateway.metrics.upstream("main").token_probe_trusted.get() == 1
    })
    .await;
    let trials = webapp.request_count("/v1/health");
    assert_eq!(trials, 2, "two made-up tokens");
    let token = webapp.mint_token("admin").unwrap();
    let client = gateway.client().with_token(token.expose());
    let all = (0..50).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.get("/v1/support").await.status().as_u16() })
    });
    for one in all.collect::<Vec<_>>() {
        assert_eq!(one.await.unwrap(), 200);
    }
    assert_eq!(
        webapp.request_count("/v1/health"),
        trials + 1,
        "one probe for fifty requests"
    );

    let forged = gateway.client().with_token("forged");
    for _ in 0..20 {
        assert_eq!(verdict(forged.get("/v1/support").await).await, (401, 1005));
    }
    assert_eq!(
        webapp.request_count("/v1/health"),
        trials + 2,
        "one probe for twenty requests"
    );

    webapp.hang(true);
    let other = gateway
        .client()
        .with_token(webapp.mint_token("admin").unwrap().expose());
    let response = other.get("/v1/support").await;
    assert_eq!(
        verdict(response).await,
        (503, 1011),
        "no verdict is not a refusal"
    );
    webapp.hang(false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_a_key_uses_the_gates_own_login_beside_relayed_users() {
    let webapp = emulator().await;
    let key = "tgk_abcdefghijklmnopqrstuvwxyz0123456789abcdefg";
    let digest = crate::harness::sha256(key);
    let rest = format!(
        "{NO_LIMITS}\n[[api_key]]\nname = \"reports\"\nsha256 = [\"{digest}\"]\npaths = [\"/v1/support\"]\n"
    );
    let setup = Setup::default().users("directory = \"webapp\"").rest(&rest);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.client();
    let request = client
        .request(Method::GET, "/v1/support")
        .header("x-api-key", key);
    assert_eq!(request.send().await.unwrap().status(), 200);
}
