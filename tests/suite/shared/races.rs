//! Logins at some gates while another one logs the user out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tollgate::store::shared::SharedStore;

use super::revocation_delay::token;
use super::{open, settings, status, three};
use crate::harness::redis::RedisServer;
use crate::harness::{ADMIN, Client, Gateway, emulator, eventually};

const ROUNDS: u64 = 8;

/// A token and the time of its login.
struct TokenAtLogin {
    token: String,
    sent_at: Instant,
    received_at: Instant,
}

fn clients_of(gates: &[Gateway], token: &str) -> Vec<Client> {
    let clients_of = gates.iter().map(|gate| gate.client().with_token(token));
    clients_of.collect()
}

/// Logs in repeatedly until it is stopped. Each token is used at one gate at once, so that the
/// gate's replica knows it when the user is logged out.
async fn log_in(
    store: Arc<SharedStore>,
    mut known: Vec<Client>,
    stop: Arc<AtomicBool>,
) -> Vec<TokenAtLogin> {
    let mut all = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let sent_at = Instant::now();
        let token = token(&store, ADMIN).await;
        let received_at = Instant::now();
        let client = known.remove(0).with_token(&token);
        status(&client).await;
        known.push(client);
        all.push(TokenAtLogin {
            token,
            sent_at,
            received_at,
        });
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_concurrent_with_a_logout_is_before_or_after_it_at_every_gate() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let gates = three(&webapp, &server, "").await;
    let stores = [open(settings(&server)).await, open(settings(&server)).await];
    let (mut dead, mut live, mut either) = (0, 0, 0);
    for round in 0..ROUNDS {
        let known = token(&stores[0], ADMIN).await;
        let known = clients_of(&gates, &known);
        assert_eq!(status(&known[0]).await, 200);
        let stop = Arc::new(AtomicBool::new(false));
        let lanes = stores
            .iter()
            .map(|store| tokio::spawn(log_in(Arc::clone(store), known.clone(), Arc::clone(&stop))));
        let lanes: Vec<_> = lanes.collect();
        tokio::time::sleep(Duration::from_millis(10 + rand::random::<u64>() % 20)).await;
        let (begin, out) = (Instant::now(), &known[usize::try_from(round % 3).unwrap()]);
        assert_eq!(out.post("/v1/users/logout", &json!({})).await.status(), 200);
        let end = Instant::now();
        tokio::time::sleep(Duration::from_millis(10)).await;
        stop.store(true, Ordering::Relaxed);
        for lane in lanes {
            for given in lane.await.unwrap() {
                let clients = clients_of(&gates, &given.token);
                if given.received_at < begin {
                    dead += 1;
                    all_respond(&clients, 401).await;
                } else if given.sent_at > end {
                    live += 1;
                    all_respond(&clients, 200).await;
                } else {
                    either += 1;
                    agree(&clients).await;
                }
            }
        }
    }
    println!("{dead} before a logout, {live} after it, {either} at the same time");
    assert!(
        dead > 0 && live > 0 && either > 0,
        "{dead}, {live}, {either}"
    );
}

async fn all_respond(clients: &[Client], wanted: u16) {
    for client in clients {
        match wanted {
            200 => assert_eq!(status(client).await, 200, "a later login was revoked"),
            _ => {
                eventually("the token is refused at this gate too", async || {
                    status(client).await == wanted
                })
                .await
            }
        }
    }
}

async fn agree(clients: &[Client]) {
    eventually("all gates agree", async || {
        let first = status(&clients[0]).await;
        status(&clients[1]).await == first && status(&clients[2]).await == first
    })
    .await;
}
