//! Memory per token, and what a restart restores.

use super::*;
use crate::clock;
use crate::store::{GrantSink as _, LiveGrant};

#[test]
fn a_grant_and_its_digest_take_56_bytes_and_its_expiry_entry_12() {
    assert_eq!(size_of::<(TokenDigest, grant_table::StoredGrant)>(), 56);
    assert_eq!(size_of::<expiry_index::ExpiryEntry>(), 12);
}

#[tokio::test(start_paused = true)]
async fn tokens_that_share_an_expiry_entry_are_distinguished() {
    // Once more if the wall clock began another second meanwhile: tokens share an entry by the second.
    let (store, tokens) = loop {
        let store = store(10, 10);
        let epoch = store.epoch("anna");
        let began = clock::unix_seconds();
        let mut tokens = Vec::new();
        for user in ["anna", "anna", "anna", "bert"] {
            let token = login_with(&store, twin(0), user, (HOUR, epoch)).await;
            tokens.push(token.unwrap());
        }
        if clock::unix_seconds() == began {
            break (store, tokens);
        }
    };
    assert_eq!(
        store.memory.counts(),
        (2, 2),
        "three tokens share one expiry entry"
    );
    assert!(store.revoke(&tokens[1]).await);
    for (token, is_live) in tokens.iter().zip([true, false, true, true]) {
        assert_eq!(store.find(token).is_some(), is_live);
    }
    advance(HOUR + Duration::from_secs(2)).await;
    assert_eq!(sweep_all(&store), 3);
    assert!(store.is_empty());
    assert_eq!(store.memory.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_logout_is_one_step_and_its_tokens_are_freed_in_slices() {
    let store = store(usize::MAX, usize::MAX);
    let mut tokens = Vec::new();
    for _ in 0..500 {
        tokens.push(login(&store, "anna").await.unwrap());
    }
    assert_eq!(store.revoke_user("anna").await, Ok(500));
    assert_eq!(store.len(), 500, "a logout frees no token itself");
    assert!(
        tokens
            .iter()
            .skip(490)
            .all(|token| store.find(token).is_none())
    );
    let remaining = login(&store, "anna").await.unwrap();
    for left in [400, 300, 200, 100, 0] {
        assert!(store.sweep(100).removed <= 100);
        assert!(store.len() <= left + 1);
    }
    assert_eq!(sweep_all(&store), 0);
    assert!(store.find(&remaining).is_some());
    assert_eq!(store.memory.counts(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_cap_is_exact_while_entries_are_examined_after_a_clock_jump() {
    let store = store(3, 100);
    for _ in 0..3 {
        login(&store, "anna").await.unwrap();
    }
    assert!(matches!(
        login(&store, "anna").await,
        Err(InsertRefused::UserFull(_))
    ));
    store.memory.table.jump(store.memory.start);
    store.notice_jump(store.memory.clock_offset() + 86_400_000);
    for _ in 0..3 {
        login(&store, "anna").await.unwrap();
    }
    assert!(matches!(
        login(&store, "anna").await,
        Err(InsertRefused::UserFull(_))
    ));
    assert_eq!(store.metrics.token_events.value(TokenEvent::Expired), 3);
}

#[tokio::test(start_paused = true)]
async fn memory_is_released() {
    let store = store(usize::MAX, usize::MAX);
    for _ in 0..300_000 {
        login(&store, "anna").await.unwrap();
    }
    let capacity = store.memory.table.capacity();
    assert!(capacity >= 300_000);
    store.revoke_user("anna").await.unwrap();
    assert_eq!(sweep_all(&store), 300_000);
    assert!(store.memory.table.capacity() < capacity / 2);
}

fn stored_grant(
    digest: TokenDigest,
    names: &[Arc<str>],
    index: usize,
    ends_millis: u64,
) -> LiveGrant<'_> {
    LiveGrant {
        digest: digest.into(),
        user: &names[index],
        token_user: index as u32,
        role: Some(Role::Admin),
        ends_millis,
        epoch: 0,
        origin: TokenOrigin::Minted,
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_loads_live_tokens_only() {
    let store = store(2, 3);
    let now = clock::unix_millis();
    let mut tokens = Vec::new();
    let names = ["anna", "bert", "carl"].map(Arc::<str>::from);
    let mut restore = store.restore(TokenOrigin::Minted, |user| user != "carl");
    restore.users(&names);
    let mut part = restore.part();
    // Anna's next expiry comes last, and in the second part.
    for (holder, seconds) in [(0, 7200), (0, 120), (1, 60), (2, 60)] {
        let digest = twin(0);
        let mut grant = stored_grant(digest, &names, holder, now + seconds * 1000);
        if holder == 1 {
            grant.origin = TokenOrigin::Learned;
        }
        part(&[grant]);
        tokens.push(digest);
    }
    drop(part);
    let mut part = restore.part();
    tokens.push(twin(0));
    part(&[stored_grant(tokens[4], &names, 0, now + 60_000)]);
    drop(part);
    restore.finish();
    assert_eq!((store.len(), store.metrics.tokens.get()), (3, 3));

    let grant = store.find(&tokens[4]).unwrap();
    assert_eq!((&*grant.user, grant.role), ("anna", Some(Role::Admin)));
    assert_eq!(
        grant.ends.unix_seconds(),
        i64::try_from(now / 1000).unwrap() + 60
    );
    assert!(
        store.find(&tokens[2]).is_none(),
        "a token of another origin"
    );
    assert!(store.find(&tokens[3]).is_none(), "the user is unknown");
    // Restored tokens beyond the cap stay valid; further logins are refused.
    assert!(matches!(
        login(&store, "anna").await,
        Err(InsertRefused::UserFull(_))
    ));

    for left in [2, 1] {
        advance(Duration::from_secs(61)).await;
        assert_eq!(sweep_all(&store), 1);
        assert_eq!(store.memory.counts(), (1, left));
    }
    assert_eq!(store.revoke_user("anna").await, Ok(1));
    assert!(store.find(&tokens[0]).is_none());
    sweep_all(&store);
    assert_eq!(store.memory.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn parts_of_a_restore_share_users_and_a_logout_ends_all_their_tokens() {
    const EACH: usize = 10_000;
    const USERS: usize = 2500; // several per shard
    let store = store(1, 1);
    let now = clock::unix_millis();
    let names = (0..USERS + 100).map(|user| format!("user {user}").into());
    let names: Vec<Arc<str>> = names.collect();
    let digests = |part: usize| {
        let digest = |number: usize| TokenDigest::of(&format!("{part} {number}"));
        let mut digests: Vec<_> = (0..EACH)
            .map(|number| (digest(number), number % USERS))
            .collect();
        digests.sort_unstable();
        digests
    };
    let mut restore = store.restore(TokenOrigin::Minted, |_| true);
    restore.users(&names);
    std::thread::scope(|scope| {
        for part in 0..2 {
            let (names, digests, mut part) = (&names, digests(part), restore.part());
            scope.spawn(move || {
                // The first row twice: it is one token.
                for (digest, name) in digests.iter().take(1).chain(&digests) {
                    let seconds = u64::from(digest.tag()) % 50 + 10;
                    part(&[stored_grant(*digest, names, *name, now + seconds * 1000)]);
                }
            });
        }
    });
    restore.finish();
    assert_eq!(store.len(), 2 * EACH);
    let (users, entries) = store.memory.counts();
    assert_eq!(
        (users, entries),
        (USERS, 2 * EACH),
        "users without tokens have no record"
    );
    let mut ended = 0;
    for name in &names {
        ended += store.revoke_user(name).await.unwrap();
    }
    assert_eq!(
        ended,
        2 * EACH,
        "each token belongs to one user, whichever part it came from"
    );
    for (digest, _) in digests(0).iter().chain(&digests(1)) {
        assert!(store.find(digest).is_none());
    }
    sweep_all(&store);
    assert_eq!((store.len(), store.memory.counts()), (0, (0, 0)));
}
