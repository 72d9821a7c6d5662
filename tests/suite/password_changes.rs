//! A new password ends the tokens of its user, with each kind of store. The operator can end
//! one user's tokens without a new password.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::redis::RedisServer;
use crate::harness::upstream::{Reply, Upstream, login};
use crate::harness::{
    ADMIN, ADMIN_PASSWORD, Client, Gateway, NO_LIMITS, Setup, WEBAPP_PASSWORD, emulator, eventually,
};
use crate::shared::{brisk, store};
use crate::user_names::{operated, send_to_operator};

const OLD: &str = "Old:Passw0rd:1";
const NEW: &str = "New:Passw0rd:2";

async fn with_worker(gateway: &Gateway) -> Client {
    let admin = gateway.admin().await;
    let body = json!({ "username": "worker", "password": OLD });
    assert_eq!(admin.post("/v1/users", &body).await.status(), 201);
    admin
}

async fn worker(gateway: &Gateway) -> Client {
    gateway.client().logged_in("worker", OLD).await
}

async fn change(client: &Client, name: &str, password: &str) -> u16 {
    let request = client.request(Method::PUT, &format!("/v1/users/{name}"));
    let body = json!({ "password": password }).to_string();
    request.body(body).send().await.unwrap().status().as_u16()
}

async fn is_good(client: &Client) -> bool {
    match client.get("/v1/health").await.status().as_u16() {
        200 => true,
        401 => false,
        other => panic!("unexpected status: {other}"),
    }
}

/// The same token, presented at another gate or after a restart.
fn at(gateway: &Gateway, client: &Client) -> Client {
    gateway.client().with_token(client.token.as_ref().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_changes_its_password_keeps_only_the_token_used_for_it() {
    let webapp = emulator().await;
    for (lines, keeps) in [("", true), ("on_password_change = \"end_all\"", false)] {
        let setup = Setup::default().users(lines).rest(NO_LIMITS);
        let gateway = Gateway::with(&webapp, setup).await;
        let admin = with_worker(&gateway).await;
        let (own, other) = (worker(&gateway).await, worker(&gateway).await);
        assert_eq!(change(&own, "worker", NEW).await, 200);
        assert_eq!((is_good(&own).await, is_good(&other).await), (keeps, false));
        assert!(is_good(&admin).await, "another user's token stays valid");
        let later = gateway.client().logged_in("worker", NEW).await;
        assert!(is_good(&later).await);
        let gateway = gateway.restart().await;
        let after_restart = [&own, &other, &later, &admin].map(|client| at(&gateway, client));
        let [own, other, later, admin] = after_restart;
        assert_eq!((is_good(&own).await, is_good(&other).await), (keeps, false));
        assert!(is_good(&later).await && is_good(&admin).await);
        // A logout ends the remaining token like any other.
        assert_eq!(
            later.post("/v1/users/logout", &json!({})).await.status(),
            200
        );
        assert!(!is_good(&own).await && !is_good(&later).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_by_an_admin_or_at_a_login_ends_all_earlier_tokens() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let admin = with_worker(&gateway).await;
    let (one, two) = (worker(&gateway).await, worker(&gateway).await);
    assert_eq!(change(&admin, "worker", "weak").await, 400);
    assert!(is_good(&one).await, "a refused change ends nothing");
    assert_eq!(change(&admin, "worker", NEW).await, 200);
    assert!(!is_good(&one).await && !is_good(&two).await && is_good(&admin).await);
    let old = gateway.client().logged_in("worker", NEW).await;
    let client = gateway.client();
    let body = r#"{"new_password":"Third:Passw0rd:3"}"#;
    let response = client.login_with("worker", NEW, body).await;
    let response: Value = response.json().await.unwrap();
    let fresh = response["users"][0]["token"].as_str().unwrap();
    assert!(is_good(&gateway.client().with_token(fresh)).await);
    assert!(!is_good(&old).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_concurrent_login_with_the_old_password_survives_the_change() {
    let webapp = emulator().await;
    let setup = Setup::default().users("hashing_slots = 4").rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let admin = with_worker(&gateway).await;
    for round in 0..6 {
        let (old, new) = match round % 2 {
            0 => (OLD, NEW),
            _ => (NEW, OLD),
        };
        let logins: Vec<_> = (0..8)
            .map(|_| {
                let client = gateway.client();
                tokio::spawn(async move {
                    let response = client.login("worker", old).await;
                    let response: Value = response.json().await.unwrap();
                    response["users"][0]["token"].as_str().map(str::to_owned)
                })
            })
            .collect();
        tokio::time::sleep(std::time::Duration::from_millis(15 * round)).await;
        assert_eq!(change(&admin, "worker", new).await, 200);
        for login in logins {
            if let Some(token) = login.await.unwrap() {
                assert!(
                    !is_good(&gateway.client().with_token(&token)).await,
                    "round {round}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_at_one_gate_ends_the_tokens_at_all_gates_but_the_one_used() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let setup = || brisk().rest(&store(&server.url(), ""));
    let gates = [
        operated(&webapp, setup()).await,
        operated(&webapp, setup()).await,
    ];
    let admin = with_worker(&gates[0]).await;
    let (own, other) = (worker(&gates[0]).await, worker(&gates[1]).await);
    for gate in &gates {
        assert!(is_good(&at(gate, &own)).await && is_good(&at(gate, &other)).await);
    }
    assert_eq!(change(&own, "worker", NEW).await, 200);
    for gate in &gates {
        eventually("ended at all gates", async || {
            !is_good(&at(gate, &other)).await
        })
        .await;
        assert!(is_good(&at(gate, &own)).await, "still valid at all gates");
    }
    assert_eq!(change(&admin, "worker", OLD).await, 200);
    for gate in &gates {
        eventually("the tokens end", async || !is_good(&at(gate, &own)).await).await;
    }
    // The same by the operator, at the other gate.
    let (one, two) = (worker(&gates[0]).await, worker(&gates[1]).await);
    let ended = send_to_operator(&gates[1], Method::DELETE, "/users/worker/tokens").await;
    let ended: Value = ended.json().await.unwrap();
    assert_eq!(ended, json!({ "user": "worker", "ended": 2 }));
    for gate in &gates {
        for client in [&one, &two] {
            eventually("the token ends at every gate", async || {
                !is_good(&at(gate, client)).await
            })
            .await;
        }
    }
    assert!(
        is_good(&worker(&gates[0]).await).await,
        "the user may log in again"
    );
    assert!(is_good(&admin).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_changed_at_the_webapp_through_the_gate_ends_tokens_at_the_gate() {
    let webapp = emulator().await;
    let setup = Setup::default()
        .users("directory = \"webapp\"")
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let admin = gateway.client().logged_in("admin", WEBAPP_PASSWORD).await;
    let body = json!({ "username": "worker", "password": OLD });
    assert_eq!(admin.post("/v1/users", &body).await.status(), 201);
    let (one, two) = (worker(&gateway).await, worker(&gateway).await);
    assert_eq!(change(&one, "worker", NEW).await, 403);
    assert!(is_good(&two).await, "a refused change ends nothing");
    assert_eq!(change(&admin, "worker", NEW).await, 200);
    assert!(!is_good(&one).await && !is_good(&two).await && is_good(&admin).await);
    let old = gateway.client().logged_in("worker", NEW).await;
    let body = r#"{"new_password":"Third:Passw0rd:3"}"#;
    let client = gateway.client();
    let response = client.login_with("worker", NEW, body).await;
    let response: Value = response.json().await.unwrap();
    let fresh = response["users"][0]["token"].as_str().unwrap();
    assert!(is_good(&client.with_token(fresh)).await);
    assert!(!is_good(&old).await && is_good(&admin).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_user_that_changes_its_password_keeps_only_the_token_used_for_it() {
    let upstream = Upstream::scripted(|call| match call.line() {
        "POST /v1/users/login" => {
            let login = String::from_utf8(login()).unwrap();
            let token = format!("scripted-{:05}", rand::random::<u16>());
            Reply::Stay(login.replace("scripted-token", &token[..14]).into())
        }
        _ => Reply::ok("{}"),
    })
    .await;
    let setup = Setup::default()
        .users("directory = \"webapp\"")
        .rest(NO_LIMITS);
    let gateway = Gateway::before(&format!("http://{}", upstream.address), setup).await;
    let (own, other) = (worker(&gateway).await, worker(&gateway).await);
    assert!(own.token != other.token && is_good(&other).await);
    assert_eq!(change(&own, "worker", NEW).await, 200);
    assert!(is_good(&own).await && !is_good(&other).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_operator_can_end_one_users_tokens() {
    let webapp = emulator().await;
    let gateway = operated(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let admin = with_worker(&gateway).await;
    let (one, two) = (worker(&gateway).await, worker(&gateway).await);
    let url = gateway.operator_url("/users/worker/tokens");
    let plain = reqwest::Client::builder().no_proxy().build().unwrap();
    let refused = plain.delete(&url).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert!(refused.headers().contains_key("www-authenticate"));
    let user = plain.delete(&url).bearer_auth(one.token.as_ref().unwrap());
    assert_eq!(user.send().await.unwrap().status(), 401);
    assert!(is_good(&one).await);
    let ended = send_to_operator(&gateway, Method::DELETE, "/users/worker/tokens").await;
    assert_eq!(ended.headers()["cache-control"], "no-store");
    let ended: Value = ended.json().await.unwrap();
    assert_eq!(ended, json!({ "user": "worker", "ended": 2 }));
    assert!(!is_good(&one).await && !is_good(&two).await && is_good(&admin).await);
    let again = send_to_operator(&gateway, Method::DELETE, "/users/worker/tokens").await;
    assert_eq!(again.json::<Value>().await.unwrap()["ended"], 0);
    for (method, path, status) in [
        (Method::DELETE, "/users/nobody/tokens", 404),
        (Method::GET, "/users/worker/tokens", 405),
        (Method::DELETE, "/users", 404),
        (Method::DELETE, "/users/worker/keys", 404),
    ] {
        let response = send_to_operator(&gateway, method, path).await;
        assert_eq!(response.status().as_u16(), status, "{path}");
    }
    let gateway = gateway.restart().await;
    assert!(
        !is_good(&at(&gateway, &one)).await,
        "still revoked after the restart"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_of_the_first_admin_in_the_file_ends_its_tokens() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let admin = gateway.admin().await;
    let gateway = gateway.restart().await;
    assert!(
        is_good(&at(&gateway, &admin)).await,
        "the password did not change"
    );
    let file = gateway.folder.path().join("gate-password");
    crate::harness::secret(&file, NEW);
    let gateway = gateway.restart().await;
    assert!(!is_good(&at(&gateway, &admin)).await);
    assert_eq!(
        gateway.client().login(ADMIN, ADMIN_PASSWORD).await.status(),
        401
    );
    assert_eq!(gateway.client().login(ADMIN, NEW).await.status(), 200);
}
