//! A change at one gate applies at all gates.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tollgate::store::shared::{
    EntryRevision, Replica, SharedChange, SharedEntry, SharedStore, StateSnapshotItem,
};

use super::{brisk, gate, open, settings, status, store, three};
use crate::harness::client::verdict;
use crate::harness::redis::RedisServer;
use crate::harness::{
    ADMIN, ADMIN_PASSWORD, Client, Gateway, emulator, eventually, prepare, secret, sha256, text,
};

const PASSWORD: &str = "Worker-Passw0rd!";

async fn user(gate: &Gateway, name: &str) {
    let admin = gate.admin().await;
    let wanted = json!({ "username": name, "password": PASSWORD });
    let made = admin.post("/v1/users", &wanted).await;
    assert_eq!(made.status(), 201);
}

/// A client of another gate, with the token of this one.
fn at(gate: &Gateway, client: &Client) -> Client {
    gate.client().with_token(client.token.as_ref().unwrap())
}

async fn logout(client: &Client) {
    let response = client.post("/v1/users/logout", &json!({})).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_or_logout_at_one_gate_applies_at_all() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let gates = three(&webapp, &server, "").await;
    user(&gates[0], "worker").await;
    let client_elsewhere = gates[1].client();
    eventually("the user is known at the second gate", async || {
        client_elsewhere.login("worker", PASSWORD).await.status() == 200
    })
    .await;
    let one = client_elsewhere.logged_in("worker", PASSWORD).await;
    let other = gates[2].client().logged_in("worker", PASSWORD).await;
    for gate in &gates {
        for client in [&one, &other] {
            assert_eq!(status(&at(gate, client)).await, 200);
        }
    }
    logout(&at(&gates[2], &one)).await;
    for gate in &gates {
        for client in [&one, &other] {
            let client_at_gate = at(gate, client);
            eventually("the logout applies", async || {
                status(&client_at_gate).await == 401
            })
            .await;
        }
    }
    // A user deleted at one gate cannot log in at another, and its tokens have ended.
    let again = gates[1].client().logged_in("worker", PASSWORD).await;
    let admin = gates[0].admin().await;
    let deleted = admin.request(reqwest::Method::DELETE, "/v1/users/worker");
    assert_eq!(deleted.send().await.unwrap().status(), 200);
    let client_elsewhere = at(&gates[2], &again);
    eventually("the deletion applies", async || {
        status(&client_elsewhere).await == 401
    })
    .await;
    let login = gates[2].client();
    eventually("the user cannot log in", async || {
        login.login("worker", PASSWORD).await.status() == 401
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_applies_at_every_gate() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let gates = three(&webapp, &server, "").await;
    user(&gates[0], "worker").await;
    let admin = gates[1].admin().await;
    let body = json!({ "password": "Another-Passw0rd!" }).to_string();
    eventually("the second gate knows the user", async || {
        let change = admin.request(reqwest::Method::PUT, "/v1/users/worker");
        change.body(body.clone()).send().await.unwrap().status() == 200
    })
    .await;
    let client_elsewhere = gates[2].client();
    eventually("the new password is valid at the third gate", async || {
        client_elsewhere
            .login("worker", "Another-Passw0rd!")
            .await
            .status()
            == 200
    })
    .await;
    assert_eq!(
        client_elsewhere.login("worker", PASSWORD).await.status(),
        401
    );
    // Two gates create the same user at once: one of them succeeds.
    let admins = [
        gates[0].admin().await,
        gates[1].admin().await,
        gates[2].admin().await,
    ];
    let wanted = json!({ "username": "twice", "password": PASSWORD });
    let (a, b, c) = tokio::join!(
        admins[0].post("/v1/users", &wanted),
        admins[1].post("/v1/users", &wanted),
        admins[2].post("/v1/users", &wanted)
    );
    let made = [a, b, c]
        .iter()
        .filter(|response| response.status() == 201)
        .count();
    assert_eq!(made, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validated_request_does_not_query_the_store_and_an_unknown_token_does_once() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let gates = three(&webapp, &server, "").await;
    let admin = gates[0].admin().await;
    let client_elsewhere = at(&gates[1], &admin);
    assert_eq!(status(&client_elsewhere).await, 200, "looked up once");
    let before = server.calls("evalsha");
    for _ in 0..200 {
        assert_eq!(status(&admin).await, 200);
        assert_eq!(status(&client_elsewhere).await, 200);
    }
    // Each gate sends a heartbeat every two seconds, and permits of limits are prefetched;
    // no request queries the store.
    let asked = server.calls("evalsha") - before;
    println!("store: {asked} scripts for 400 validated requests");
    assert!(asked < 100, "{asked} scripts for 400 requests");
    let finds = |server: &RedisServer| server.calls("get");
    let before = finds(&server);
    let unknown = gates[2]
        .client()
        .with_token("tg_nobody_has_ever_seen_this_one");
    let many: Vec<_> = (0..40)
        .map(|_| {
            let unknown = unknown.clone();
            tokio::spawn(async move { status(&unknown).await })
        })
        .collect();
    for response in many {
        assert_eq!(response.await.unwrap(), 401);
    }
    for _ in 0..20 {
        assert_eq!(status(&unknown).await, 401);
    }
    let looked = finds(&server) - before;
    // One look-up, and the reads of limits meanwhile.
    assert!(looked <= 10, "{looked} reads for one unknown token");
    let before = server.calls("evalsha");
    let _fresh = gates[0].client().logged_in(ADMIN, ADMIN_PASSWORD).await;
    println!(
        "store: {} scripts for one login",
        server.calls("evalsha") - before
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_token_is_remembered_for_negative_ttl_and_no_longer() {
    const TTL: Duration = Duration::from_secs(2);
    let (webapp, server) = (emulator().await, RedisServer::start());
    let lines = store(&server.url(), "negative_ttl = \"2s\"");
    let gate = gate(&webapp, brisk(), &lines).await;
    let admin = gate.admin().await;
    let unknown_text = "tg_one_that_nobody_has_been_told_of";
    let client = gate.client().with_token(unknown_text);
    let asked = Instant::now();
    assert_eq!(status(&client).await, 401);
    // The token is put into the store without a notification to the gates.
    let copy = "local function key(hex) return '{tollgate}:t:' .. string.gsub(hex, '..', \
                function(two) return string.char(tonumber(two, 16)) end) end \
                return redis.call('COPY', key(ARGV[1]), key(ARGV[2]))";
    let [client_elsewhere, missing] = [admin.token.as_deref().unwrap(), unknown_text].map(sha256);
    assert_eq!(
        server.query::<u32>(&["EVAL", copy, "0", &client_elsewhere, &missing]),
        1
    );
    assert_eq!(status(&client).await, 401, "remembered");
    eventually("the token is looked up again", async || {
        status(&client).await == 200
    })
    .await;
    assert!(asked.elapsed() >= TTL, "after {:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_races_a_deletion_never_leaves_a_live_token() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let gates = three(&webapp, &server, "").await;
    let admins = [gates[0].admin().await, gates[1].admin().await];
    for round in 0..12 {
        let name = format!("racer{round}");
        user(&gates[round % 2], &name).await;
        let logins: Vec<_> = (0..6)
            .map(|number| {
                let (client, name) = (gates[number % 3].client(), name.clone());
                tokio::spawn(async move {
                    let response = client.login(&name, PASSWORD).await;
                    let response: serde_json::Value = response.json().await.unwrap_or_default();
                    response["users"][0]["token"].as_str().map(str::to_owned)
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(u64::try_from(round).unwrap() * 25)).await;
        let admin = &admins[(round + 1) % 2];
        eventually("the user is deleted", async || {
            let delete = admin.request(reqwest::Method::DELETE, &format!("/v1/users/{name}"));
            delete.send().await.unwrap().status() == 200
        })
        .await;
        for login in logins {
            let Some(token) = login.await.unwrap() else {
                continue;
            };
            for gate in &gates {
                let client = gate.client().with_token(&token);
                eventually("no token of the deleted user is valid", async || {
                    status(&client).await == 401
                })
                .await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_webapps_own_tokens_are_shared_and_ended_like_the_gates() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let setup = || brisk().users("directory = \"webapp\"");
    let store = store(&server.url(), "");
    let one = gate(&webapp, setup(), &store).await;
    let two = gate(&webapp, setup(), &store).await;
    let client = one
        .client()
        .logged_in("admin", crate::harness::WEBAPP_PASSWORD)
        .await;
    let client_elsewhere = at(&two, &client);
    assert_eq!(
        status(&client_elsewhere).await,
        200,
        "learned at one gate, known at the other"
    );
    logout(&client_elsewhere).await;
    eventually("ended at the first", async || status(&client).await == 401).await;
    assert_eq!(
        verdict(client_elsewhere.get("/v1/support").await).await,
        (401, 1005)
    );
}

pub(super) const OPERATOR: &str = "operator-token-of-32-characters!";

pub(super) async fn operated(
    webapp: &tollgate::emulator::Emulator,
    server: &RedisServer,
) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), webapp);
    secret(&folder.path().join("store-key"), super::SEAL_KEY);
    secret(&folder.path().join("operator-token"), OPERATOR);
    let setup = brisk().rest(&store(&server.url(), ""));
    let lines = "[operator]\ntoken = { file = \"operator-token\" }\n";
    let text = text(&setup, &format!("https://{}", webapp.address()));
    let file = folder.path().join("config.toml");
    std::fs::write(&file, text.replace("[operator]\n", lines)).unwrap();
    Gateway::from_file(folder, file).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_created_or_deleted_at_one_gate_applies_at_all() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let gates = [
        operated(&webapp, &server).await,
        operated(&webapp, &server).await,
    ];
    let operator = reqwest::Client::builder().no_proxy().build().unwrap();
    let query = |gate: &Gateway, method, path: &str| {
        let request = operator.request(method, gate.operator_url(path));
        request.bearer_auth(OPERATOR)
    };
    let body = json!({ "name": "bot", "paths": ["/v1/support"], "methods": ["GET"] });
    let made = query(&gates[0], reqwest::Method::POST, "/keys").body(body.to_string());
    let made = made.send().await.unwrap();
    assert!(made.status().is_success());
    let made: serde_json::Value = made.json().await.unwrap();
    let key = made["key"].as_str().unwrap().to_owned();
    let opens = async |gate: &Gateway| {
        let request = gate.client().request(reqwest::Method::GET, "/v1/support");
        let response = request.header("x-api-key", &key).send().await.unwrap();
        response.status() == 200
    };
    for gate in &gates {
        eventually("the key is accepted", async || opens(gate).await).await;
    }
    let again = query(&gates[1], reqwest::Method::POST, "/keys").body(body.to_string());
    assert!(again.send().await.unwrap().status().is_client_error());
    let written: String = server.query(&["HGET", "{tollgate}:keys", "bot"]);
    let begin = Instant::now();
    let deleted = query(&gates[1], reqwest::Method::DELETE, "/keys/bot");
    assert!(deleted.send().await.unwrap().status().is_success());
    assert!(!opens(&gates[1]).await);
    eventually("the key is refused", async || !opens(&gates[0]).await).await;
    println!(
        "API key deleted, refused by the other gate after {:?}",
        begin.elapsed()
    );
    // The store loses everything, and a gate that was cut off before the deletion is the
    // first to fill it again.
    let unknown_text = teller(&server, &written).await;
    let _: () = server.query(&["FLUSHALL"]);
    eventually("the late gate has sent its state", async || {
        server.query::<bool>(&["HEXISTS", "{tollgate}:keys", "other"])
    })
    .await;
    eventually("the gates have sent the revocation", async || {
        let kept: Option<String> = server.query(&["HGET", "{tollgate}:keys", "bot"]);
        kept.is_some_and(|kept| kept.ends_with('\n'))
    })
    .await;
    for gate in &gates {
        eventually("the key is refused again", async || !opens(gate).await).await;
    }
    drop(unknown_text);
    let again = query(&gates[0], reqwest::Method::POST, "/keys").body(body.to_string());
    eventually("the key's name is free", async || {
        let again = again.try_clone().unwrap();
        again
            .send()
            .await
            .is_ok_and(|made| made.status().is_success())
    })
    .await;
}

/// A gate's connection to the store that still knows the key `bot`, and another key.
async fn teller(server: &RedisServer, written: &str) -> (Arc<SharedStore>, Arc<StaleGate>) {
    let store = open(settings(server)).await;
    let (head, text) = written.split_once('\n').unwrap();
    let (_, seq) = head.split_once(' ').unwrap();
    let seq: u64 = seq.parse().unwrap();
    let entry = |text: &str| SharedEntry {
        revision: EntryRevision {
            made: seq,
            changed: 0,
        },
        seq,
        text: text.to_owned(),
    };
    let facts = [("bot", text), ("other", "{}")];
    let facts = facts.map(|(name, text)| StateSnapshotItem::Key(name.into(), entry(text)));
    let teller = Arc::new(StaleGate(facts.to_vec()));
    let follower = Arc::downgrade(&teller);
    store.add_replica(follower);
    (store, teller)
}

#[derive(Debug)]
struct StaleGate(Vec<StateSnapshotItem>);

impl Replica for StaleGate {
    fn apply(&self, _: &SharedChange, _: u64) {}

    fn invalidate(&self, _: u64) {}

    fn snapshot(&self, give: &mut dyn FnMut(StateSnapshotItem)) {
        self.0.iter().cloned().for_each(give);
    }
}
