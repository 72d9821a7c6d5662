//! The store's counts of tokens, and the memory of a token there.

use std::sync::Arc;
use std::time::Duration;

use tollgate::store::RecordDigest;
use tollgate::store::shared::{InsertOutcome, TokenInsert};

use super::engine::{insert, is_placed};
use super::{open, settings};
use crate::harness::eventually;
use crate::harness::redis::RedisServer;

#[tokio::test(flavor = "multi_thread")]
async fn caps_count_live_tokens_and_not_ended_ones() {
    let server = RedisServer::start();
    let store = open(settings(&server)).await;
    for number in 0..3 {
        let placed = store.insert(insert(number, "anna")).await.unwrap();
        assert!(is_placed(&placed));
    }
    let full = store.insert(insert(3, "anna")).await.unwrap();
    let InsertOutcome::UserFull { next, oldest } = full else {
        panic!("{full:?}");
    };
    assert!(
        next > Duration::from_secs(3500),
        "the first token expires in an hour"
    );
    assert_eq!(oldest.len(), 3);
    let again = store.insert(insert(2, "anna")).await.unwrap();
    assert!(is_placed(&again), "the token counts as one of the three");
    store.insert(insert(4, "bert")).await.unwrap();
    store.insert(insert(5, "bert")).await.unwrap();
    let full = store.insert(insert(6, "carl")).await.unwrap();
    assert!(matches!(full, InsertOutcome::Full { .. }));
    assert_eq!(
        store.end_tokens("anna", false, None, |_| ()).await.unwrap(),
        3
    );
    let room = store.insert(insert(6, "carl")).await.unwrap();
    assert!(is_placed(&room));
    // A token with a short lifetime expires and frees its place in the count within two seconds.
    let short_lived = TokenInsert {
        life: Duration::from_millis(900),
        ..insert(7, "dora")
    };
    for _ in 0..2 {
        store.insert(short_lived).await.unwrap();
    }
    eventually(
        "the short-lived token and its count are removed",
        async || {
            let is_gone = store.find(&RecordDigest([7; 32])).await.unwrap().is_none();
            let counts: Vec<String> = server.query(&["HVALS", "{tollgate}:ends"]);
            let left: u32 = counts
                .iter()
                .map(|count| count.parse::<u32>().unwrap())
                .sum();
            store.insert(insert(8, "emil")).await.unwrap();
            store.revoke(&RecordDigest([8; 32])).await.unwrap();
            is_gone && left == 3
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_replaced_only_by_another_of_the_same_user() {
    let server = RedisServer::start();
    let store = open(settings(&server)).await;
    for (number, user) in [(0, "anna"), (1, "anna"), (2, "anna"), (4, "bert")] {
        let placed = store.insert(insert(number, user)).await.unwrap();
        assert!(is_placed(&placed));
    }
    // Another user's token is not replaced, nor one that has ended.
    for wrong in [4, 9] {
        let wanted = TokenInsert {
            ends: Some(RecordDigest([wrong; 32])),
            ..insert(3, "anna")
        };
        let full = store.insert(wanted).await.unwrap();
        assert!(matches!(full, InsertOutcome::UserFull { .. }), "{full:?}");
    }
    let replaced = TokenInsert {
        ends: Some(RecordDigest([0; 32])),
        ..insert(3, "anna")
    };
    let placed = store.insert(replaced).await.unwrap();
    assert_eq!(
        placed,
        InsertOutcome::Placed {
            of_user: 3,
            of_all: 4,
            has_ended: true
        }
    );
    assert_eq!(store.find(&RecordDigest([0; 32])).await.unwrap(), None);
    assert!(store.find(&RecordDigest([4; 32])).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_takes_little_memory_on_the_server() {
    let count: u32 = std::env::var("TOLLGATE_TOKENS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(10_000);
    let server = RedisServer::start();
    let store = open(settings(&server)).await;
    let used = || -> u64 {
        let info: String = server.query(&["INFO", "memory"]);
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:"));
        line.unwrap().trim().parse().unwrap()
    };
    // First the stream of changes gets its full length, which does not depend on the tokens.
    let before = used();
    let mut running = Vec::new();
    for lane in 0..32_u32 {
        let store = Arc::clone(&store);
        running.push(tokio::spawn(async move {
            for number in (lane..count).step_by(32) {
                let mut digest = [0xa5; 32];
                digest[..4].copy_from_slice(&number.to_le_bytes());
                let user = format!("user{}", number % 1000);
                let wanted = TokenInsert {
                    digest: RecordDigest(digest),
                    max_per_user: 1_000_000,
                    max: 10_000_000,
                    ..insert(0, &user)
                };
                store.insert(wanted).await.unwrap();
            }
        }));
    }
    for one in running {
        one.await.unwrap();
    }
    let _: u32 = server.query(&["DEL", "{tollgate}:changes"]);
    let bytes = (used() - before) / u64::from(count);
    println!("store: {bytes} bytes per token, {count} tokens of 1,000 users");
    assert!(bytes < 320, "{bytes} bytes per token");
}
