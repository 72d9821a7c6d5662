//! Checks for every token store, and those for the store in memory.

mod caps;
mod durable;
mod model;
mod race;
mod size;

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::advance;

use super::*;
use crate::config::{AtTokenCap, DirectoryKind, UnknownTokens};
use crate::lifecycle::{ShutdownSignal, TaskSet};

const HOUR: Duration = Duration::from_secs(3600);

fn settings(max_tokens_per_user: usize, max_tokens: usize) -> config::UsersConfig {
    config::UsersConfig {
        directory: DirectoryKind::Gateway,
        unknown_tokens: UnknownTokens::Reject,
        token_lifetime: HOUR,
        max_tokens_per_user,
        at_token_cap: AtTokenCap::Refuse,
        on_password_change: crate::config::OnPasswordChange::EndOthers,
        max_tokens,
        first_admin: None,
        hashing_slots: 1,
        ..config::UsersConfig::default()
    }
}

fn store(max_tokens_per_user: usize, max_tokens: usize) -> Arc<TokenStore> {
    TokenStore::new(&settings(max_tokens_per_user, max_tokens), Metrics::new())
}

async fn login(store: &TokenStore, user: &str) -> Result<TokenDigest, InsertRefused> {
    let epoch = store.epoch(user);
    login_for(store, user, (HOUR, epoch)).await
}

async fn login_for(
    store: &TokenStore,
    user: &str,
    terms: (Duration, DeletionEpoch),
) -> Result<TokenDigest, InsertRefused> {
    login_with(store, Token::mint().digest(), user, terms).await
}

async fn login_with(
    store: &TokenStore,
    digest: TokenDigest,
    user: &str,
    (lifetime, epoch): (Duration, DeletionEpoch),
) -> Result<TokenDigest, InsertRefused> {
    let wanted = GrantRequest {
        user,
        role: Some(Role::User),
        lifetime,
        origin: TokenOrigin::Minted,
        epoch,
        revision: None,
    };
    store.insert(digest, wanted).await.map(|_| digest)
}

/// A digest with the same prefix as others.
fn twin(first: u8) -> TokenDigest {
    let mut digest = Token::mint().digest();
    digest.0[..4].copy_from_slice(&[0, 0, 0, first]);
    digest
}

fn sweep_all(store: &TokenStore) -> usize {
    let mut removed = 0;
    loop {
        let swept = store.sweep(7);
        if swept.seen == 0 {
            return removed;
        }
        assert!(swept.seen <= 7);
        removed += swept.removed;
    }
}

/// Checks for every kind of store. Expects a cap of at least ten tokens per user.
async fn promises(store: &TokenStore) {
    finds_what_was_inserted(store).await;
    forgets_what_was_revoked(store).await;
    revoking_a_user_takes_all_its_tokens_and_no_others(store).await;
    never_returns_an_expired_grant(store).await;
    a_known_token_takes_its_new_expiry(store).await;
    a_deletion_refuses_a_login_that_began_before_it(store).await;
    a_logout_does_not_affect_a_login_in_progress(store).await;
}

async fn finds_what_was_inserted(store: &TokenStore) {
    let token = Token::mint();
    let wanted = GrantRequest {
        user: "anna",
        role: None,
        lifetime: HOUR,
        origin: TokenOrigin::Learned,
        epoch: store.epoch("anna"),
        revision: None,
    };
    let ends = store.insert(token.digest(), wanted).await.unwrap();
    let presented = TokenDigest::of(token.secret().expose());
    let grant = store.find(&presented).unwrap();
    assert_eq!((&*grant.user, grant.role), ("anna", None));
    assert_eq!(grant.ends.unix_seconds(), ends.unix_seconds());
    assert!(grant.ends.left() <= HOUR && grant.ends.left() > HOUR / 2);
    assert!(store.find(&Token::mint().digest()).is_none());
}

async fn forgets_what_was_revoked(store: &TokenStore) {
    let (one, other) = (login(store, "bert").await, login(store, "bert").await);
    let (one, other) = (one.unwrap(), other.unwrap());
    assert!(store.revoke(&one).await);
    assert!(store.find(&one).is_none());
    assert!(store.find(&other).is_some());
    assert!(!store.revoke(&one).await);
}

async fn revoking_a_user_takes_all_its_tokens_and_no_others(store: &TokenStore) {
    let mut tokens = Vec::new();
    for _ in 0..5 {
        tokens.push(login(store, "carl").await.unwrap());
    }
    let remaining = login(store, "dora").await.unwrap();
    assert_eq!(store.revoke_user("carl").await, Ok(5));
    assert!(tokens.iter().all(|token| store.find(token).is_none()));
    assert!(store.find(&remaining).is_some());
    assert_eq!(store.revoke_user("carl").await, Ok(0));
    let again = login(store, "carl").await.unwrap();
    assert!(store.find(&again).is_some());
}

async fn never_returns_an_expired_grant(store: &TokenStore) {
    let epoch = store.epoch("emil");
    let dead = login_for(store, "emil", (Duration::ZERO, epoch)).await;
    assert!(store.find(&dead.unwrap()).is_none());
}

async fn a_known_token_takes_its_new_expiry(store: &TokenStore) {
    let digest = Token::mint().digest();
    for (user, hours) in [("fred", 1), ("fred", 2), ("gina", 3)] {
        let wanted = GrantRequest {
            user,
            role: None,
            lifetime: HOUR * hours,
            origin: TokenOrigin::Learned,
            epoch: store.epoch(user),
            revision: None,
        };
        store.insert(digest, wanted).await.unwrap();
        let grant = store.find(&digest).unwrap();
        assert_eq!(&*grant.user, user);
        assert!(grant.ends.left() > HOUR * (hours - 1));
    }
    assert_eq!(store.revoke_user("fred").await, Ok(0));
    assert_eq!(store.revoke_user("gina").await, Ok(1));
    assert!(store.find(&digest).is_none());
}

async fn a_deletion_refuses_a_login_that_began_before_it(store: &TokenStore) {
    let before = login(store, "hugo").await.unwrap();
    let epoch = store.epoch("hugo");
    assert_eq!(store.end_user("hugo").await, 1);
    assert!(store.find(&before).is_none());
    let late = login_for(store, "hugo", (HOUR, epoch)).await;
    assert_eq!(late, Err(InsertRefused::Ended));
    let recreated = login(store, "hugo").await.unwrap();
    assert!(store.find(&recreated).is_some());
    // A user without tokens can be deleted during a login, too.
    let epoch = store.epoch("ines");
    assert_eq!(store.end_user("ines").await, 0);
    let late = login_for(store, "ines", (HOUR, epoch)).await;
    assert_eq!(late, Err(InsertRefused::Ended));
}

async fn a_logout_does_not_affect_a_login_in_progress(store: &TokenStore) {
    let epoch = store.epoch("jana");
    let before = login(store, "jana").await.unwrap();
    store.revoke_user("jana").await.unwrap();
    let after = login_for(store, "jana", (HOUR, epoch)).await.unwrap();
    assert!(store.find(&before).is_none());
    assert!(store.find(&after).is_some());
}

#[tokio::test]
async fn a_store_in_memory_passes_the_checks() {
    promises(&store(10, 1000)).await;
}

#[tokio::test]
async fn debug_output_contains_no_token_and_no_digest() {
    let token = Token::mint();
    let shown = format!("{token:?} {:?}", token.digest());
    assert_eq!(shown, "Token([secret]) [token digest]");
    assert!(token.secret().expose().starts_with("tg_"));
}

#[tokio::test(start_paused = true)]
async fn caps_refuse_and_never_evict() {
    let store = store(2, 3);
    let remaining = [
        login(&store, "anna").await.unwrap(),
        login(&store, "anna").await.unwrap(),
    ];
    assert!(matches!(
        login(&store, "anna").await,
        Err(InsertRefused::UserFull(_))
    ));
    login(&store, "bert").await.unwrap();
    assert!(matches!(
        login(&store, "carl").await,
        Err(InsertRefused::Full(_))
    ));
    assert!(remaining.iter().all(|token| store.find(token).is_some()));
    assert_eq!(store.metrics.token_events.value(TokenEvent::Refused), 2);
    assert_eq!(store.metrics.tokens.get(), 3);

    store.reload(&settings(1, 10));
    assert!(remaining.iter().all(|token| store.find(token).is_some()));
    assert!(matches!(
        login(&store, "bert").await,
        Err(InsertRefused::UserFull(_))
    ));
    login(&store, "carl").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dead_tokens_free_their_share_of_the_cap() {
    let store = store(2, 3);
    for user in ["anna", "anna", "bert"] {
        login(&store, user).await.unwrap();
    }
    advance(HOUR).await;
    // Dead tokens count towards the total until they are swept, but not towards their user's cap.
    assert!(matches!(
        login(&store, "carl").await,
        Err(InsertRefused::Full(_))
    ));
    login(&store, "anna").await.unwrap();
    assert_eq!(store.metrics.token_events.value(TokenEvent::Expired), 1);
    advance(Duration::from_secs(2)).await;
    assert_eq!(sweep_all(&store), 2);
    login(&store, "carl").await.unwrap();
    login(&store, "dora").await.unwrap();
    assert_eq!(store.metrics.token_events.value(TokenEvent::Expired), 3);

    store.revoke_user("anna").await.unwrap();
    assert!(matches!(
        login(&store, "anna").await,
        Err(InsertRefused::Full(_))
    ));
    assert_eq!(sweep_all(&store), 1);
    login(&store, "anna").await.unwrap();
    assert_eq!(store.metrics.token_events.value(TokenEvent::Expired), 3);
    assert_eq!(store.metrics.token_events.value(TokenEvent::Revoked), 1);
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_removed_when_looked_up() {
    let store = store(10, 10);
    let token = login(&store, "anna").await.unwrap();
    advance(HOUR - Duration::from_secs(1)).await;
    assert!(store.find(&token).is_some());
    advance(Duration::from_secs(1)).await;
    assert!(store.find(&token).is_none());
    assert!(store.is_empty());
    assert_eq!(store.memory.counts(), (0, 0));
    assert_eq!(store.metrics.token_events.value(TokenEvent::Expired), 1);
    assert_eq!(store.metrics.tokens.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_sweep_examines_dead_tokens_only() {
    let store = store(1000, 1000);
    let epoch = store.epoch("anna");
    for minutes in 1..=100 {
        let lifetime = Duration::from_secs(60 * minutes);
        login_for(&store, "anna", (lifetime, epoch)).await.unwrap();
    }
    assert_eq!(store.sweep(usize::MAX), SweptSlice::default());
    advance(Duration::from_secs(601)).await;
    let swept = store.sweep(usize::MAX);
    assert_eq!((swept.seen, swept.removed), (10, 10));
    assert_eq!(store.sweep(usize::MAX), SweptSlice::default());
    assert_eq!(store.len(), 90);
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_set_forward_expires_tokens_at_once_and_the_sweep_follows() {
    let store = store(1000, 1000);
    let mut tokens = Vec::new();
    for _ in 0..20 {
        tokens.push(login(&store, "anna").await.unwrap());
    }
    store.memory.table.jump(store.memory.start);
    let later = login(&store, "bert").await.unwrap();
    assert!(store.find(&tokens[0]).is_none());
    store.notice_jump(store.memory.clock_offset() + 86_400_000);
    // The real clock has not changed, so the next sweep sees it as set back, which is harmless.
    assert_eq!(sweep_all(&store), 19);
    assert!(store.find(&later).is_some());
    assert_eq!(store.memory.counts(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_set_back_prolongs_no_token() {
    let store = store(10, 10);
    let token = login(&store, "anna").await.unwrap();
    store.notice_jump(store.memory.clock_offset() - 86_400_000);
    advance(HOUR + Duration::from_secs(2)).await;
    assert_eq!(sweep_all(&store), 1);
    assert!(store.find(&token).is_none());
}

#[tokio::test(start_paused = true)]
async fn records_of_users_are_removed_with_their_last_token() {
    let store = store(10, 10);
    let token = login(&store, "anna").await.unwrap();
    store.end_user("bert").await;
    assert_eq!(store.memory.counts(), (2, 1));
    store.revoke(&token).await;
    assert_eq!(store.memory.counts(), (1, 0));
    let epoch = store.epoch("bert");
    advance(sweep::MAX_LOGIN_TIME).await;
    sweep_all(&store);
    assert_eq!(store.memory.counts(), (0, 0));
    // The record of the deletion is removed; a login from before it is still refused.
    let late = login_for(
        &store,
        "bert",
        (
            HOUR,
            DeletionEpoch {
                local: 0,
                shared: 0,
            },
        ),
    )
    .await;
    assert_eq!(late, Err(InsertRefused::Ended));
    assert!(login_for(&store, "bert", (HOUR, epoch)).await.is_ok());
    let refused = login_for(
        &store,
        "carl",
        (
            HOUR,
            DeletionEpoch {
                local: 0,
                shared: 0,
            },
        ),
    )
    .await;
    assert_eq!(refused, Err(InsertRefused::Ended));
    assert_eq!(store.memory.counts(), (1, 1), "a refusal leaves no record");
}

#[tokio::test(start_paused = true)]
async fn removing_an_old_deletion_record_refuses_no_login_in_progress() {
    let store = store(10, 10);
    store.end_user("bert").await;
    advance(sweep::MAX_LOGIN_TIME).await;
    let epoch = store.epoch("anna");
    sweep_all(&store);
    assert!(login_for(&store, "anna", (HOUR, epoch)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_sweep_runs_until_drain() {
    let store = store(10, 10);
    let (tasks, stop) = (TaskSet::new(Handle::current()), ShutdownSignal::default());
    tasks.spawn("token sweep", sweep_loop(Arc::clone(&store), stop.clone()));
    login(&store, "anna").await.unwrap();
    advance(HOUR).await;
    while !store.is_empty() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    stop.drain();
    tasks.wait().await;
    assert_eq!(tasks.failed(), 0);
}
