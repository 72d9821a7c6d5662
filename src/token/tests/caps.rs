//! At a user's cap its oldest unused token ends: in memory and on disk, or in neither.

use proptest::prelude::*;

use super::*;
use crate::config::UsersConfig;
use crate::metrics::TokenCap;
use crate::store::Disk;

fn ending(per_user: usize, all: usize) -> UsersConfig {
    UsersConfig {
        at_token_cap: AtTokenCap::EndOldest,
        ..settings(per_user, all)
    }
}

fn ending_store(per_user: usize, all: usize) -> Arc<TokenStore> {
    TokenStore::new(&ending(per_user, all), Metrics::new())
}

/// Logs in one second after the previous login, so that the expiry times differ.
async fn later(store: &TokenStore, user: &str) -> TokenDigest {
    advance(Duration::from_secs(1)).await;
    login(store, user).await.unwrap()
}

fn live(store: &TokenStore, tokens: &[TokenDigest]) -> Vec<bool> {
    // Not by `find`, which counts as a use.
    let is_live = |token| store.memory.table.find(token).is_some();
    tokens.iter().map(is_live).collect()
}

#[tokio::test(start_paused = true)]
async fn the_users_oldest_unused_token_ends_and_no_other() {
    let store = ending_store(5, 100);
    let others = later(&store, "bert").await;
    let mut tokens = Vec::new();
    for _ in 0..5 {
        tokens.push(later(&store, "anna").await);
    }
    for token in [0, 2] {
        assert!(store.find(&tokens[token]).is_some());
    }
    tokens.push(later(&store, "anna").await);
    assert_eq!(live(&store, &tokens), [true, false, true, true, true, true]);
    tokens.push(later(&store, "anna").await);
    assert_eq!(live(&store, &tokens[2..]), [true, false, true, true, true]);
    assert!(store.find(&others).is_some());
    assert_eq!(store.metrics.tokens.get(), 6);
    assert_eq!(store.metrics.token_events.value(TokenEvent::Displaced), 2);
    assert_eq!(store.metrics.token_events.value(TokenEvent::Refused), 0);
    // The warnings begin at 80 % of the cap.
    assert_eq!(store.metrics.token_cap_warnings.value(TokenCap::User), 4);
    // A logout ends all tokens and clears the records of their use.
    assert_eq!(store.revoke_user("anna").await, Ok(5));
    sweep_all(&store);
    assert_eq!(store.memory.counts(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_token_in_constant_use_is_not_ended_before_tokens_used_once() {
    let store = ending_store(5, 100);
    let steady = later(&store, "anna").await;
    for _ in 0..200 {
        assert!(store.find(&steady).is_some());
        let once = later(&store, "anna").await;
        assert!(store.find(&once).is_some(), "the newest token is valid");
    }
    assert!(store.find(&steady).is_some());
    assert_eq!(store.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn in_a_full_store_a_new_token_replaces_one_of_the_same_user() {
    let store = ending_store(2, 3);
    for user in ["anna", "anna", "bert"] {
        later(&store, user).await;
    }
    let refused = login(&store, "carl").await.unwrap_err();
    let InsertRefused::Full(Some(next)) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        next > HOUR - Duration::from_secs(5) && next <= HOUR,
        "{next:?}"
    );
    later(&store, "anna").await;
    assert_eq!((store.len(), store.metrics.tokens.get()), (3, 3));
    assert!(store.metrics.token_cap_warnings.value(TokenCap::All) >= 2);
    advance(next).await;
    sweep_all(&store);
    login(&store, "carl").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lowered_cap_ends_no_token_and_a_refusal_says_when_to_retry() {
    let store = ending_store(10, 100);
    for _ in 0..6 {
        later(&store, "anna").await;
    }
    store.reload(&ending(2, 100));
    later(&store, "anna").await;
    assert_eq!(store.len(), 6, "each new token replaces one");
    store.reload(&settings(2, 100));
    let refused = login(&store, "anna").await.unwrap_err();
    let InsertRefused::UserFull(Some(next)) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        next > HOUR - Duration::from_secs(10) && next <= HOUR,
        "{next:?}"
    );
}

#[tokio::test]
async fn a_replaced_token_ends_in_the_same_commit_and_lives_on_if_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let over = |path: &std::path::Path| {
        let metrics = Metrics::new();
        let (store, _) = Store::open(path, &metrics).unwrap();
        let store = Arc::new(store);
        (
            Arc::clone(&store),
            TokenStore::over(store, &ending(1, 10), metrics),
        )
    };
    let (store, tokens) = over(&path);
    let first = login(&tokens, "anna").await.unwrap();
    let second = login(&tokens, "anna").await.unwrap();
    assert!(tokens.find(&first).is_none() && tokens.find(&second).is_some());
    assert_eq!(tokens.len(), 1);
    store.close().await;
    let (store, tokens) = over(&path);
    tokens.load(TokenOrigin::Minted, |_| true).await.unwrap();
    assert!(tokens.find(&first).is_none() && tokens.find(&second).is_some());

    std::fs::rename(&path, folder.path().join("aside")).unwrap();
    let refused = login(&tokens, "anna").await.unwrap_err();
    assert!(matches!(refused, InsertRefused::Unavailable(_)));
    assert!(tokens.find(&second).is_some(), "the token stays valid");
    assert_eq!(tokens.len(), 1);
    store.close().await;
}

/// A login ends no other token before it is on disk; many logins at once do not exceed the cap.
#[tokio::test]
async fn concurrent_logins_respect_the_cap_once_committed() {
    let disk = Disk::laid_out();
    let store = Arc::new(disk.store(Duration::from_millis(200)));
    let tokens = TokenStore::over(Arc::clone(&store), &ending(2, 100), Metrics::new());
    let remaining = [
        login(&tokens, "anna").await.unwrap(),
        login(&tokens, "anna").await.unwrap(),
    ];
    disk.hangs(true);
    let late = login(&tokens, "anna").await.unwrap_err();
    assert_eq!(late, InsertRefused::Unavailable(StoreUnavailable::Late));
    assert_eq!(live(&tokens, &remaining), [true, true]);
    disk.hangs(false);
    let mut last = login(&tokens, "anna").await;
    while last.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        last = login(&tokens, "anna").await;
    }
    let all = (0..8).map(|_| login(&tokens, "anna"));
    for outcome in futures_util::future::join_all(all).await {
        outcome.unwrap();
    }
    login(&tokens, "anna").await.unwrap();
    assert!(tokens.len() <= 3, "{} tokens", tokens.len());
    store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// For any sequence of steps, no login is refused at the user's cap, no user exceeds it,
    /// and the newest token of each user is valid.
    #[test]
    fn a_cap_that_ends_the_oldest_refuses_no_login(
        cap in 1..6_usize,
        steps in proptest::collection::vec((0..3_usize, 0..4_u8, 0..90_u64), 1..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let store = ending_store(cap, 1000);
            let names = ["anna", "bert", "carl"];
            let mut tokens: [Vec<TokenDigest>; 3] = Default::default();
            for (user, what, seconds) in steps {
                match what {
                    0 => advance(Duration::from_secs(seconds)).await,
                    1 => {
                        if let Some(token) = tokens[user].first() {
                            let _ = store.find(token);
                        }
                    }
                    _ => tokens[user].push(login(&store, names[user]).await.unwrap()),
                }
                for tokens in &tokens {
                    let live = live(&store, tokens);
                    assert!(live.iter().filter(|is_live| **is_live).count() <= cap);
                    assert!(live.last().is_none_or(|is_live| *is_live));
                }
            }
            advance(HOUR * 2).await;
            sweep_all(&store);
            assert_eq!((store.len(), store.memory.counts()), (0, (0, 0)));
        });
    }
}
