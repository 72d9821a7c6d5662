//! Caps on tokens: at the user's cap the oldest unused token ends, and the log warns before a
//! cap is reached.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tollgate::metrics::{TokenCap, TokenEvent};

use crate::harness::client::verdict;
use crate::harness::program::Program;
use crate::harness::redis::RedisServer;
use crate::harness::{
    ADMIN, ADMIN_PASSWORD, Client, Gateway, NO_LIMITS, Setup, WEBAPP_PASSWORD, emulator,
    eventually, prepare, text,
};

fn capped(users: &str) -> Setup {
    Setup::default().users(users).rest(NO_LIMITS)
}

async fn works(client: &Client) -> bool {
    match client.get("/v1/support").await.status().as_u16() {
        200 => true,
        401 => false,
        other => panic!("status {other}"),
    }
}

/// Expiry times are whole seconds: tokens of one second have no order.
async fn next_second() {
    tokio::time::sleep(Duration::from_millis(1100)).await;
}

/// Logs in `count` times and uses each token once, as a client that logs in before each
/// message does.
async fn careless(gateway: &Gateway, password: &str, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = gateway.client().logged_in(ADMIN, password).await;
        assert!(works(&client).await);
        clients.push(client);
    }
    clients
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_logs_in_before_each_message_is_never_refused() {
    let webapp = emulator().await;
    for store in ["path = \"memory\"", "path = \"tokens.redb\""] {
        let setup = capped("max_tokens_per_user = 5").rest(&format!("[store]\n{store}"));
        let gateway = Gateway::with(&webapp, setup).await;
        let mut clients = careless(&gateway, ADMIN_PASSWORD, 1).await;
        next_second().await;
        clients.extend(careless(&gateway, ADMIN_PASSWORD, 11).await);
        assert_eq!(gateway.metrics.tokens.get(), 5, "{store}");
        assert_eq!(gateway.metrics.token_events.value(TokenEvent::Displaced), 7);
        let newest = clients.pop().unwrap();
        assert!(works(&newest).await);
        assert!(!works(&clients[0]).await, "the oldest token has ended");
        assert!(gateway.metrics.token_cap_warnings.value(TokenCap::User) >= 8);
        if store.contains("redb") {
            let gateway = gateway.restart().await;
            assert_eq!(
                gateway.metrics.tokens.get(),
                5,
                "the same number after a restart"
            );
            let at = |client: &Client| gateway.client().with_token(client.token.as_ref().unwrap());
            assert!(works(&at(&newest)).await);
            assert!(
                !works(&at(&clients[0])).await,
                "still ended after a restart"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_use_survives_tokens_that_were_used_once() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, capped("max_tokens_per_user = 5")).await;
    let steady = gateway.admin().await;
    for _ in 0..20 {
        assert!(works(&steady).await);
        careless(&gateway, ADMIN_PASSWORD, 1).await;
    }
    assert!(
        works(&steady).await,
        "the oldest token is in use and stays valid"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_refused_at_the_cap_gets_the_true_retry_after() {
    let webapp = emulator().await;
    let users = "max_tokens_per_user = 2\nat_token_cap = \"refuse\"\ntoken_lifetime = \"3d\"";
    let gateway = Gateway::with(&webapp, capped(users)).await;
    let kept = careless(&gateway, ADMIN_PASSWORD, 2).await;
    let response = gateway.client().login(ADMIN, ADMIN_PASSWORD).await;
    let wait: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((259_100..=259_202).contains(&wait), "{wait}");
    assert_eq!(verdict(response).await, (429, 1015));
    for client in &kept {
        assert!(works(client).await, "no client lost a token");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_cannot_use_up_all_tokens() {
    let webapp = emulator().await;
    let users = "max_tokens = 12\ntoken_lifetime = \"1h\"";
    let gateway = Gateway::with(&webapp, capped(users)).await;
    let admin = gateway.admin().await;
    for name in ["anna", "bert", "carl", "dora"] {
        let body = json!({ "username": name, "password": ADMIN_PASSWORD });
        assert_eq!(admin.post("/v1/users", &body).await.status(), 201);
    }
    careless(&gateway, ADMIN_PASSWORD, 8).await;
    assert_eq!(gateway.metrics.tokens.get(), 3, "a quarter of max_tokens");
    for name in ["anna", "bert", "carl"] {
        for _ in 0..4 {
            gateway.client().logged_in(name, ADMIN_PASSWORD).await;
        }
    }
    assert_eq!(gateway.metrics.tokens.get(), 12);
    assert!(gateway.metrics.token_cap_warnings.value(TokenCap::All) >= 2);
    let response = gateway.client().login("dora", ADMIN_PASSWORD).await;
    let wait: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((3500..=3602).contains(&wait), "{wait}");
    assert_eq!(verdict(response).await, (429, 1015));
    // A user with tokens still gets a new one in place of an old one.
    gateway.client().logged_in("anna", ADMIN_PASSWORD).await;
    assert_eq!(gateway.metrics.tokens.get(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_users_oldest_token_ends_at_the_gate_only() {
    let webapp = emulator().await;
    let users = "directory = \"webapp\"\nmax_tokens_per_user = 3";
    let gateway = Gateway::with(&webapp, capped(users)).await;
    let mut clients = careless(&gateway, WEBAPP_PASSWORD, 1).await;
    next_second().await;
    clients.extend(careless(&gateway, WEBAPP_PASSWORD, 5).await);
    assert_eq!(gateway.metrics.tokens.get(), 3);
    assert!(works(&clients[5]).await && !works(&clients[0]).await);
    let direct = webapp.mint_token(ADMIN);
    assert!(direct.is_some());
    let token = clients[0].token.as_ref().unwrap();
    let setup_of_other = capped("directory = \"webapp\"\nunknown_tokens = \"ask\"");
    let other = Gateway::with(&webapp, setup_of_other).await;
    let there = other.client().with_token(token);
    eventually("the upstream still accepts the token", async || {
        there.get("/v1/support").await.status() == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_with_a_shared_store_share_the_cap() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let setup =
        || capped("max_tokens_per_user = 4").rest(&format!("[store]\nurl = \"{}\"", server.url()));
    let gates = [
        Gateway::with(&webapp, setup()).await,
        Gateway::with(&webapp, setup()).await,
    ];
    let mut clients = Vec::new();
    for number in 0..10 {
        let gate = &gates[number % 2];
        let client = gate.client().logged_in(ADMIN, ADMIN_PASSWORD).await;
        clients.push(client.token.unwrap());
        if number == 0 {
            // Of tokens that expire in one second, any may be the oldest.
            tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        }
    }
    for gate in &gates {
        let first = gate.client().with_token(&clients[0]);
        eventually("the oldest has ended", async || !works(&first).await).await;
        let newest = gate.client().with_token(&clients[9]);
        assert!(works(&newest).await);
    }
    let mut live = 0;
    for token in &clients {
        live += usize::from(works(&gates[0].client().with_token(token)).await);
    }
    assert_eq!(live, 4);
    // A logout ends all remaining tokens, and the next user of that name starts with none.
    let admin = gates[0].client().with_token(&clients[9]);
    let response = admin.request(Method::POST, "/v1/users/logout").send().await;
    assert_eq!(response.unwrap().status(), 200);
    for _ in 0..5 {
        gates[1].client().logged_in(ADMIN, ADMIN_PASSWORD).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_a_user_near_the_cap_once() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), &webapp);
    let file = folder.path().join("config.toml");
    let setup = capped("max_tokens_per_user = 5");
    std::fs::write(
        &file,
        text(&setup, &format!("https://{}", webapp.address())),
    )
    .unwrap();
    let mut program = Program::serve(&file);
    let client = Client::of(folder.path(), &program.url(""), reqwest::Client::builder());
    for number in 0..9 {
        let response = client.login(ADMIN, ADMIN_PASSWORD).await;
        let response: Value = response.json().await.unwrap();
        assert!(response["users"][0]["token"].is_string(), "login {number}");
    }
    program.signal("TERM");
    program.wait();
    let log = program.lines();
    let lines: Vec<_> = log.iter().filter(|line| line.contains("80 %")).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("\"admin\"") && lines[0].contains("cap=5"),
        "{lines:?}"
    );
}
