//! The store's scripts and its connection, without a gate.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tollgate::profiles::Role;
use tollgate::store::shared::{
    EntryChange, InsertOutcome, LoginRateLimit, LoginTurn, PermitRate, PublishOutcome, Replica,
    SharedChange, SharedStore, StateSnapshotItem, TokenInsert, TokenKind,
};
use tollgate::store::{RecordDigest, SealedBytes, TokenOrigin};

use super::{open, settings};
use crate::harness::eventually;
use crate::harness::faulty_link::{FaultyLink, LinkState};
use crate::harness::redis::RedisServer;

const KIND: TokenKind = TokenKind {
    origin: TokenOrigin::Minted,
    role: Some(Role::User),
};

pub(super) fn insert(number: u8, user: &str) -> TokenInsert<'_> {
    TokenInsert {
        digest: RecordDigest([number; 32]),
        user,
        kind: KIND,
        life: Duration::from_secs(3600),
        epoch: u64::MAX >> 12,
        max_per_user: 3,
        max: 5,
        revision: None,
        ends: None,
    }
}

pub(super) fn is_placed(outcome: &InsertOutcome) -> bool {
    matches!(outcome, InsertOutcome::Placed { .. })
}

/// Records the changes that it receives, and returns the facts that the test sets.
#[derive(Debug, Default)]
struct RecordingReplica {
    changes: Mutex<Vec<SharedChange>>,
    doubts: Mutex<Vec<u64>>,
    facts: Mutex<Vec<StateSnapshotItem>>,
}

impl Replica for RecordingReplica {
    fn apply(&self, change: &SharedChange, _: u64) {
        self.changes.lock().unwrap().push(change.clone());
    }

    fn invalidate(&self, seen: u64) {
        self.doubts.lock().unwrap().push(seen);
    }

    fn snapshot(&self, give: &mut dyn FnMut(StateSnapshotItem)) {
        self.facts.lock().unwrap().iter().cloned().for_each(give);
    }
}

fn replica(store: &SharedStore) -> Arc<RecordingReplica> {
    let replica = Arc::new(RecordingReplica::default());
    let follower = Arc::downgrade(&replica);
    store.add_replica(follower);
    replica
}

fn has(replica: &RecordingReplica, matches: impl Fn(&SharedChange) -> bool) -> bool {
    replica.changes.lock().unwrap().iter().any(matches)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_valid_until_it_or_its_user_is_revoked_and_all_gates_are_notified() {
    let server = RedisServer::start();
    let (one, two) = (open(settings(&server)).await, open(settings(&server)).await);
    let replica = replica(&two);
    let placed = one.insert(insert(1, "anna")).await.unwrap();
    assert!(is_placed(&placed));
    one.insert(insert(2, "anna")).await.unwrap();
    let found = two.find(&RecordDigest([1; 32])).await.unwrap().unwrap();
    assert_eq!((&*found.user, found.kind), ("anna", KIND));
    assert!(found.left > Duration::from_secs(3590));
    assert!(one.revoke(&RecordDigest([1; 32])).await.unwrap());
    assert!(
        !one.revoke(&RecordDigest([1; 32])).await.unwrap(),
        "only once"
    );
    assert_eq!(two.find(&RecordDigest([1; 32])).await.unwrap(), None);
    assert_eq!(
        one.end_tokens("anna", false, None, |_| ()).await.unwrap(),
        1
    );
    assert_eq!(two.find(&RecordDigest([2; 32])).await.unwrap(), None);
    one.insert(insert(3, "anna")).await.unwrap();
    assert!(two.find(&RecordDigest([3; 32])).await.unwrap().is_some());
    eventually("the other gate receives all changes", async || {
        has(&replica, |change| {
            *change == SharedChange::TokenPut(RecordDigest([3; 32]))
        }) && has(&replica, |change| {
            *change == SharedChange::TokenRevoked(RecordDigest([1; 32]))
        }) && has(
            &replica,
            |change| matches!(change, SharedChange::UserEnded { user, .. } if &**user == "anna"),
        )
    })
    .await;
    assert!(replica.doubts.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_began_before_a_deletion_or_password_change_gets_no_token() {
    let server = RedisServer::start();
    let store = open(settings(&server)).await;
    let EntryChange::Done(made) = store.put_user("anna", None, "{}", true).await.unwrap() else {
        panic!("made");
    };
    let change = store.put_user("anna", None, "{}", true).await.unwrap();
    assert_eq!(change, EntryChange::Conflict, "there is an entry already");
    let login = TokenInsert {
        revision: Some(made.revision),
        epoch: made.seq,
        ..insert(1, "anna")
    };
    assert!(is_placed(&store.insert(login).await.unwrap()));
    let again = store.put_user("anna", Some(made.revision), "{1}", true);
    let EntryChange::Done(changed) = again.await.unwrap() else {
        panic!("changed");
    };
    assert_eq!(store.insert(login).await.unwrap(), InsertOutcome::Ended);
    let stale = store.put_user("anna", Some(made.revision), "{2}", true);
    assert_eq!(stale.await.unwrap(), EntryChange::Conflict);
    let login = TokenInsert {
        revision: Some(changed.revision),
        ..login
    };
    assert!(is_placed(&store.insert(login).await.unwrap()));
    assert!(store.remove_user("anna").await.unwrap());
    assert!(!store.remove_user("anna").await.unwrap());
    assert_eq!(store.find(&RecordDigest([1; 32])).await.unwrap(), None);
    assert_eq!(store.insert(login).await.unwrap(), InsertOutcome::Ended);
    let learned = TokenInsert {
        revision: None,
        ..login
    };
    assert_eq!(store.insert(learned).await.unwrap(), InsertOutcome::Ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_gate_at_a_time_logs_in_and_a_lost_lock_publishes_nothing() {
    let server = RedisServer::start();
    let (one, two) = (open(settings(&server)).await, open(settings(&server)).await);
    let pace = LoginRateLimit {
        min_interval: Duration::from_millis(1),
        per_hour: 100,
    };
    let sealed = SealedBytes(vec![0, 255, 10, 13]);
    let LoginTurn::Ours(login) = one.login_turn("main", 0, pace).await.unwrap() else {
        panic!("no other gate wants the lock");
    };
    let LoginTurn::Busy(left) = two.login_turn("main", 0, pace).await.unwrap() else {
        panic!("the other gate holds the lock");
    };
    assert!(left > Duration::from_secs(1));
    // The holder stops: its lock expires, and a login that it still publishes is too late.
    let _: u32 = server.query(&["DEL", "{tollgate}:lock:main"]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let LoginTurn::Ours(second) = two.login_turn("main", 0, pace).await.unwrap() else {
        panic!("the lock is free");
    };
    let life = Duration::from_secs(60);
    let late = one.publish("main", &login, false, life, &sealed).await;
    assert_eq!(late.unwrap(), PublishOutcome::Lost);
    let current = two.publish("main", &second, false, life, &sealed).await;
    assert_eq!(current.unwrap(), PublishOutcome::Current(1));
    let lease = one.lease("main").await.unwrap().unwrap();
    assert_eq!((lease.generation, lease.refused), (1, 0));
    assert_eq!(lease.sealed, sealed);
    assert_eq!(
        one.login_turn("main", 0, pace).await.unwrap(),
        LoginTurn::Newer
    );
    // A refusal during a login marks the login's token as suspect.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let LoginTurn::Ours(third) = one.login_turn("main", 1, pace).await.unwrap() else {
        panic!("a renewal is due");
    };
    assert!(two.refuse_lease("main", 1).await.unwrap());
    assert!(
        !two.refuse_lease("main", 1).await.unwrap(),
        "only the first refusal changes the lease"
    );
    let published = one.publish("main", &third, false, life, &sealed).await;
    assert_eq!(published.unwrap(), PublishOutcome::Superseded);
    let slow = LoginRateLimit {
        min_interval: Duration::from_secs(60),
        per_hour: 100,
    };
    assert!(matches!(
        one.login_turn("main", 1, slow).await.unwrap(),
        LoginTurn::Wait(_)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn permits_are_given_at_the_rate_to_all_gates_together() {
    let server = RedisServer::start();
    let store = open(settings(&server)).await;
    let shape = PermitRate {
        interval: Duration::from_millis(100),
        burst: 10,
    };
    let first = store.take_permits("x", shape, 8).await.unwrap();
    assert_eq!(first.taken, 8);
    let second = store.take_permits("x", shape, 8).await.unwrap();
    assert!((2..=4).contains(&second.taken), "{second:?}");
    assert!(second.wait <= Duration::from_millis(101));
    store.return_permits("x", shape, 5).await.unwrap();
    let third = store.take_permits("x", shape, 8).await.unwrap();
    assert!((5..=8).contains(&third.taken), "{third:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_store_is_restored_and_revoked_tokens_stay_invalid() {
    let server = RedisServer::start();
    let (one, two) = (open(settings(&server)).await, open(settings(&server)).await);
    let (first, second) = (replica(&one), replica(&two));
    for number in 1..4 {
        one.insert(insert(number, "anna")).await.unwrap();
    }
    let seen = one.applied();
    let mut end = None;
    one.end_tokens("bert", false, None, |ended| end = Some(ended))
        .await
        .unwrap();
    let token = |number: u8, user: &str, seq| StateSnapshotItem::Token {
        digest: RecordDigest([number; 32]),
        user: user.into(),
        kind: KIND,
        left: Duration::from_secs(60),
        seq,
    };
    // One gate knows of revocations that the other has missed.
    let keep = Duration::from_secs(60);
    first.facts.lock().unwrap().extend([
        StateSnapshotItem::UserEnded {
            user: "bert".into(),
            end: end.unwrap(),
            keep,
        },
        StateSnapshotItem::TokenRevoked {
            digest: RecordDigest([2; 32]),
            keep,
        },
    ]);
    second.facts.lock().unwrap().extend([
        token(1, "anna", seen),
        token(2, "anna", seen),
        token(9, "bert", seen),
    ]);
    let _: () = server.query(&["FLUSHALL"]);
    for replica in [&first, &second] {
        eventually("the gates notice the loss", async || {
            !replica.doubts.lock().unwrap().is_empty()
        })
        .await;
    }
    eventually("the store has the live tokens again", async || {
        matches!(one.find(&RecordDigest([1; 32])).await, Ok(Some(_)))
    })
    .await;
    eventually("the store does not have the revoked ones", async || {
        matches!(two.find(&RecordDigest([2; 32])).await, Ok(None))
    })
    .await;
    // Revocations are sent first, so by now no gate can bring this token back.
    let ended = two.find(&RecordDigest([9; 32])).await;
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    // No gate knew token 3: the store does not claim that it does not exist.
    assert!(one.find(&RecordDigest([3; 32])).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ended_after_a_loss_is_not_brought_back_by_a_gate_with_higher_numbers() {
    let server = RedisServer::start();
    let (behind, ahead) = (
        FaultyLink::before(server.port).await,
        FaultyLink::before(server.port).await,
    );
    let at = |line: &FaultyLink| {
        let mut settings = settings(&server);
        settings.servers[0].port = line.port();
        settings
    };
    let (one, two) = (open(at(&behind)).await, open(at(&ahead)).await);
    let second_replica = replica(&two);
    behind.set(LinkState::Cut);
    for _ in 0..1500 {
        two.insert(insert(1, "anna")).await.unwrap();
    }
    let seq = two.applied();
    second_replica
        .facts
        .lock()
        .unwrap()
        .push(StateSnapshotItem::Token {
            digest: RecordDigest([1; 32]),
            user: "anna".into(),
            kind: KIND,
            left: Duration::from_secs(60),
            seq,
        });
    ahead.set(LinkState::Cut);
    eventually("both gates have lost the store", async || {
        !one.is_up() && !two.is_up()
    })
    .await;
    let _: () = server.query(&["FLUSHALL"]);
    behind.set(LinkState::Good);
    eventually("the gate with fewer changes is connected", async || {
        one.is_up()
    })
    .await;
    one.end_tokens("anna", false, None, |_| ()).await.unwrap();
    ahead.set(LinkState::Good);
    eventually("the other gate has sent its changes", async || two.is_up()).await;
    let found = one.find(&RecordDigest([1; 32])).await;
    assert!(!matches!(found, Ok(Some(_))), "{found:?}");
}
