//! How soon the other gates refuse a token that ended at one gate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use sha2::Digest as _;
use tokio::sync::Mutex;
use tollgate::profiles::Role;
use tollgate::store::shared::{EntryChange, InsertOutcome, SharedStore, TokenInsert, TokenKind};
use tollgate::store::{RecordDigest, TokenOrigin};

use super::gates::{OPERATOR, operated};
use super::{open, settings, status, three};
use crate::harness::redis::RedisServer;
use crate::harness::{ADMIN, Client, Gateway, emulator, eventually};

/// Each window is a measurement. Other work on the machine delays single responses and has
/// nothing to do with the gates, so the first window that meets the limit counts. If the gates
/// were slow, no window would meet it.
const WINDOWS: usize = 5;
const PROMISE: Duration = Duration::from_millis(100);
/// Two measurements at once would disturb each other.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Makes a token as a gate does, without the password's hash: hashing is most of a login's
/// work and not a part of this measurement.
pub(super) async fn token(store: &SharedStore, user: &str) -> String {
    let text = format!("tg_{:064x}", rand::random::<u128>());
    let placed = store.insert(TokenInsert {
        digest: RecordDigest(sha2::Sha256::digest(&text).into()),
        user,
        kind: TokenKind {
            origin: TokenOrigin::Minted,
            role: Some(Role::Admin),
        },
        life: Duration::from_secs(3600),
        epoch: store.applied(),
        max_per_user: 1000,
        max: 1000,
        revision: None,
        ends: None,
    });
    assert!(matches!(
        placed.await.unwrap(),
        InsertOutcome::Placed { .. }
    ));
    text
}

async fn until_refused(client: &Client, query: &impl AsyncFn(&Client) -> u16) -> Instant {
    let give_up = Instant::now() + Duration::from_secs(20);
    while query(client).await != 401 {
        assert!(Instant::now() < give_up, "never refused");
    }
    Instant::now()
}

/// The gate of this round, and the others.
fn gates_of_round(gates: &[Gateway], number: usize) -> [&Gateway; 3] {
    [0, 1, 2].map(|offset| &gates[(number + offset) % 3])
}

/// The time from the request that ends the token until both other gates have refused it.
async fn revocation_delay<T>(
    end: impl Future<Output = T>,
    [second, third]: [&Client; 2],
    query: impl AsyncFn(&Client) -> u16,
) -> (T, Duration) {
    let begin = Instant::now();
    let (ended, one, other) = tokio::join!(
        end,
        until_refused(second, &query),
        until_refused(third, &query)
    );
    (ended, one.max(other) - begin)
}

async fn logout(gates: &[Gateway], store: &SharedStore, number: usize) -> Duration {
    let text = token(store, ADMIN).await;
    let clients = gates_of_round(gates, number).map(|gate| gate.client().with_token(&text));
    for client in &clients {
        assert_eq!(status(client).await, 200);
    }
    let [first, second, third] = clients;
    let body = json!({});
    let out = first.post("/v1/users/logout", &body);
    let (out, delay) = revocation_delay(out, [&second, &third], status).await;
    assert_eq!(out.status(), 200);
    delay
}

/// A user with the first admin's password hash, so that nothing is hashed.
async fn user(store: &SharedStore, server: &RedisServer, name: &str) {
    let admin: String = server.query(&["HGET", "{tollgate}:users", ADMIN]);
    let (_, admin) = admin.split_once('\n').unwrap();
    let mut record: serde_json::Value = serde_json::from_str(admin).unwrap();
    record["name"] = name.into();
    record["is_first_admin"] = false.into();
    let record = record.to_string();
    let made = store.put_user(name, None, &record, true);
    assert!(matches!(made.await.unwrap(), EntryChange::Done(_)));
}

async fn deletion(
    gates: &[Gateway],
    (store, server): (&SharedStore, &RedisServer),
    (admin, number): (&str, usize),
) -> Duration {
    let name = format!("leaver{number}");
    user(store, server, &name).await;
    let text = token(store, &name).await;
    let [first, second, third] = gates_of_round(gates, number);
    let admin = first.client().with_token(admin);
    let path = format!("/v1/users/{name}");
    eventually("the user is known at the other gate", async || {
        admin.get(&path).await.status() == 200
    })
    .await;
    let [second, third] = [second, third].map(|gate| gate.client().with_token(&text));
    for client in [&second, &third] {
        assert_eq!(status(client).await, 200);
    }
    let deleted = admin.request(Method::DELETE, &path).send();
    let (deleted, delay) = revocation_delay(deleted, [&second, &third], status).await;
    assert_eq!(deleted.unwrap().status(), 200);
    delay
}

/// The response to a client with this key.
async fn opened(client: &Client, key: &str) -> u16 {
    let request = client.request(Method::GET, "/v1/support");
    let response = request.header("x-api-key", key).send().await.unwrap();
    response.status().as_u16()
}

async fn key_revocation(gates: &[Gateway], operator: &reqwest::Client, number: usize) -> Duration {
    let [first, second, third] = gates_of_round(gates, number);
    let name = format!("bot{number}");
    let query = |method, path: &str| {
        let request = operator.request(method, first.operator_url(path));
        request.bearer_auth(OPERATOR)
    };
    let body = json!({ "name": name, "paths": ["/v1/support"], "methods": ["GET"] });
    let made = query(Method::POST, "/keys").body(body.to_string()).send();
    let made: serde_json::Value = made.await.unwrap().json().await.unwrap();
    let key = made["key"].as_str().unwrap();
    let [second, third] = [second, third].map(Gateway::client);
    for client in [&second, &third] {
        eventually("the key is accepted", async || {
            opened(client, key).await == 200
        })
        .await;
    }
    let deleted = query(Method::DELETE, &format!("/keys/{name}")).send();
    let query = async |client: &Client| opened(client, key).await;
    let (deleted, delay) = revocation_delay(deleted, [&second, &third], query).await;
    assert!(deleted.unwrap().status().is_success());
    delay
}

fn round_count(first: usize) -> usize {
    let round_count = std::env::var("TOLLGATE_ROUNDS").ok();
    round_count
        .and_then(|text| text.parse().ok())
        .unwrap_or(first)
}

async fn assert_within_limit(
    what: &str,
    round_count: usize,
    round: impl AsyncFn(usize) -> Duration,
) {
    let _alone = ALONE.lock().await;
    let mut late = Duration::MAX;
    for window in 0..WINDOWS {
        let mut spans = Vec::new();
        for number in 0..round_count {
            spans.push(round(window * round_count + number).await);
        }
        spans.sort();
        late = spans[round_count * 99 / 100];
        println!(
            "{what} sent to seen by both others: median {:?}, p99 {late:?}, longest {:?}, {round_count} rounds, window {window}",
            spans[round_count / 2],
            spans[round_count - 1]
        );
        if late < PROMISE {
            return;
        }
    }
    panic!("{what}: p99 {late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logged_out_token_is_refused_by_the_other_gates_within_100_ms() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let gates = three(&webapp, &server, "").await;
    let store: Arc<SharedStore> = open(settings(&server)).await;
    assert_within_limit("logout", round_count(200), async |number| {
        logout(&gates, &store, number).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_user_and_a_deleted_key_are_refused_by_the_other_gates_within_100_ms() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let mut gates = Vec::new();
    for _ in 0..3 {
        gates.push(operated(&webapp, &server).await);
    }
    let store: Arc<SharedStore> = open(settings(&server)).await;
    let admin = token(&store, ADMIN).await;
    assert_within_limit("deletion", round_count(50), async |number| {
        deletion(&gates, (&store, &server), (&admin, number)).await
    })
    .await;
    let operator = reqwest::Client::builder().no_proxy().build().unwrap();
    assert_within_limit("key revocation", round_count(50), async |number| {
        key_revocation(&gates, &operator, number).await
    })
    .await;
}
