//! How soon what ended at one gate is refused by the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::Digest as _;
use tollgate::store::shared::{Insert, InsertOutcome, Kind, SharedStore};
use tollgate::store::{Digest, Origin};
use tollgate::webapp::Role;

use super::{open, settings, status, three};
use crate::harness::redis::RedisServer;
use crate::harness::{ADMIN, Client, Gateway, emulator};

/// A window is a measurement of its own. The machine that runs this does other things as
/// well, which makes single answers late and has nothing to do with the gates: the first
/// window that keeps the promise counts, and if the gates did not keep it none would.
const WINDOWS: usize = 5;
const PROMISE: Duration = Duration::from_millis(100);

/// A token of the first admin, given out as a gate does, but for the password's hash:
/// hashing is most of a login's work, and no part of this measurement.
pub(super) async fn token(store: &SharedStore) -> String {
    let text = format!("tg_{:064x}", rand::random::<u128>());
    let placed = store.insert(Insert {
        digest: Digest(sha2::Sha256::digest(&text).into()),
        user: ADMIN,
        kind: Kind {
            origin: Origin::Minted,
            role: Some(Role::Admin),
        },
        life: Duration::from_secs(3600),
        epoch: store.applied(),
        max_per_user: 1000,
        max: 1000,
        revision: None,
    });
    assert_eq!(placed.await.unwrap(), InsertOutcome::Placed);
    text
}

async fn until_refused(client: &Client) -> Instant {
    let give_up = Instant::now() + Duration::from_secs(20);
    while status(client).await != 401 {
        assert!(Instant::now() < give_up, "never refused");
    }
    Instant::now()
}

/// From the moment the logout is sent to the moment both other gates have refused.
async fn round(gates: &[Gateway], store: &SharedStore, number: usize) -> Duration {
    let text = token(store).await;
    let [here, second, third] =
        [0, 1, 2].map(|place| gates[(number + place) % 3].client().with_token(&text));
    for client in [&here, &second, &third] {
        assert_eq!(status(client).await, 200);
    }
    let body = json!({});
    let begin = Instant::now();
    let (out, one, other) = tokio::join!(
        here.post("/v1/users/logout", &body),
        until_refused(&second),
        until_refused(&third)
    );
    assert_eq!(out.status(), 200);
    one.max(other) - begin
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_is_refused_by_the_others_within_a_tenth_of_a_second() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let gates = three(&webapp, &server, "").await;
    let store: Arc<SharedStore> = open(settings(&server)).await;
    let rounds: usize = std::env::var("TOLLGATE_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(200);
    let mut late = Duration::MAX;
    for window in 0..WINDOWS {
        let mut spans = Vec::new();
        for number in 0..rounds {
            spans.push(round(&gates, &store, number).await);
        }
        spans.sort();
        late = spans[rounds * 99 / 100];
        println!(
            "logout sent to seen by both others: median {:?}, p99 {late:?}, longest {:?}, {rounds} rounds, window {window}",
            spans[rounds / 2],
            spans[rounds - 1]
        );
        if late < PROMISE {
            return;
        }
    }
    panic!("p99 {late:?}");
}
