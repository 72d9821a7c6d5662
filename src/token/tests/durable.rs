//! The same checks with a file, and the agreement of memory and disk.

use std::path::{Path, PathBuf};

use super::*;
use crate::store::Disk;

fn over(path: &Path, caps: (usize, usize)) -> (Arc<Store>, Arc<TokenStore>) {
    let metrics = Metrics::new();
    let (store, _) = Store::open(path, &metrics).unwrap();
    let store = Arc::new(store);
    let settings = settings(caps.0, caps.1);
    let tokens = TokenStore::over(Arc::clone(&store), &settings, metrics);
    (store, tokens)
}

async fn again(path: &Path) -> (Arc<Store>, Arc<TokenStore>) {
    let (store, tokens) = over(path, (1, 1));
    let loaded = tokens.load(TokenOrigin::Minted, |_| true).await.unwrap();
    assert_eq!(loaded.live, tokens.len() as u64, "no cap ends a token here");
    (store, tokens)
}

fn file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("store.redb")
}

#[tokio::test]
async fn a_store_on_disk_passes_the_same_checks_as_one_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (store, tokens) = over(&file(&folder), (10, 1000));
    promises(&tokens).await;
    store.close().await;
}

#[tokio::test]
async fn tokens_of_unknown_users_and_other_origins_are_counted_and_kept_in_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let (store, tokens) = over(&file(&folder), (10, 10));
    for user in ["anna", "anna", "bert"] {
        login(&tokens, user).await.unwrap();
    }
    store.close().await;
    for (origin, live) in [
        (TokenOrigin::Minted, 2),
        (TokenOrigin::Learned, 0),
        (TokenOrigin::Minted, 2),
    ] {
        let (store, tokens) = over(&file(&folder), (10, 10));
        let loaded = tokens.load(origin, |user| user == "anna").await.unwrap();
        assert_eq!((loaded.live, loaded.others), (live, 3 - live));
        assert_eq!(tokens.len() as u64, live);
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_disk_agree_on_every_token_after_any_race() {
    let folder = tempfile::tempdir().unwrap();
    let (store, tokens) = over(&file(&folder), (usize::MAX, usize::MAX));
    let runtime = Handle::current();
    let digests: Vec<TokenDigest> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8_usize)
            .map(|client| {
                let (tokens, runtime) = (&tokens, &runtime);
                scope.spawn(move || runtime.block_on(race(tokens, client)))
            })
            .collect();
        let clients = clients.into_iter();
        clients.flat_map(|client| client.join().unwrap()).collect()
    });
    let in_memory: Vec<bool> = digests
        .iter()
        .map(|one| tokens.find(one).is_some())
        .collect();
    store.close().await;
    let (store, tokens) = again(&file(&folder)).await;
    let on_disk: Vec<bool> = digests
        .iter()
        .map(|one| tokens.find(one).is_some())
        .collect();
    assert_eq!(in_memory, on_disk);
    assert!(digests.len() > 200 && on_disk.contains(&true) && on_disk.contains(&false));
    store.close().await;
}

async fn race(tokens: &TokenStore, client: usize) -> Vec<TokenDigest> {
    let mut digests = Vec::new();
    for step in 0..60_usize {
        let user = ["anna", "bert", "carl"][(step + client) % 3];
        match (step * 5 + client) % 11 {
            3 => drop(tokens.revoke_user(user).await.unwrap()),
            5 if digests.len() > 1 => {
                let remaining = digests[digests.len() - 1 - step % 2];
                let ended = tokens
                    .end_tokens(user, RevokeCause::AllBut(remaining))
                    .await;
                ended.unwrap();
            }
            7 => drop(tokens.end_user(user).await),
            9 => {
                if let Some(one) = digests.last() {
                    tokens.revoke(one).await;
                }
            }
            _ => digests.extend(login(tokens, user).await.ok()),
        }
    }
    digests
}

/// Polls once, as a worker does before the client leaves.
async fn begin_and_leave(work: impl Future) {
    let mut work = Box::pin(work);
    std::future::poll_fn(|context| {
        let _ = work.as_mut().poll(context);
        std::task::Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_change_is_done_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (store, tokens) = over(&file(&folder), (10, 10));
    let digest = Token::mint().digest();
    let wanted = GrantRequest {
        user: "anna",
        role: None,
        lifetime: HOUR,
        origin: TokenOrigin::Minted,
        epoch: tokens.epoch("anna"),
        revision: None,
    };
    begin_and_leave(tokens.insert(digest, wanted)).await;
    // The user's next change waits for the one in progress.
    let remaining = login(&tokens, "anna").await.unwrap();
    assert!(tokens.find(&digest).is_some() && tokens.find(&remaining).is_some());
    begin_and_leave(tokens.revoke_user("anna")).await;
    let after = login(&tokens, "anna").await.unwrap();
    assert!(tokens.find(&digest).is_none() && tokens.find(&remaining).is_none());
    store.close().await;
    let (store, tokens) = again(&file(&folder)).await;
    assert!(tokens.find(&digest).is_none() && tokens.find(&remaining).is_none());
    assert!(tokens.find(&after).is_some());
    store.close().await;
}

#[tokio::test]
async fn a_change_that_cannot_be_stored_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder);
    let (store, tokens) = over(&path, (10, 10));
    let remaining = login(&tokens, "anna").await.unwrap();
    std::fs::rename(&path, folder.path().join("aside")).unwrap();
    let refused = login(&tokens, "anna").await.unwrap_err();
    assert!(
        matches!(refused, InsertRefused::Unavailable(_)),
        "{refused:?}"
    );
    assert!(tokens.revoke_user("anna").await.is_err());
    assert!(tokens.find(&remaining).is_some());
    assert_eq!(tokens.len(), 1);
    assert!(tokens.trouble().is_some());
    // A revocation at the Webapp takes effect even if the disk refuses it.
    assert_eq!(tokens.end_at_once("anna", RevokeCause::Logout).await, 1);
    assert!(tokens.find(&remaining).is_none());
    store.close().await;
}

#[tokio::test]
async fn while_the_disk_hangs_known_tokens_work_and_calls_time_out() {
    let disk = Disk::laid_out();
    let store = Arc::new(disk.store(Duration::from_millis(200)));
    let tokens = TokenStore::over(Arc::clone(&store), &settings(10, 10), Metrics::new());
    let [remaining, other] = ["anna", "bert"].map(async |user| login(&tokens, user).await.unwrap());
    let (remaining, other) = (remaining.await, other.await);
    disk.hangs(true);
    let late = login(&tokens, "anna").await.unwrap_err();
    assert_eq!(late, InsertRefused::Unavailable(StoreUnavailable::Late));
    // A logout that waits for that login, and one that the disk refuses.
    assert!(tokens.revoke_user("anna").await.is_err());
    assert!(tokens.revoke_user("bert").await.is_err());
    assert!(tokens.find(&remaining).is_some() && tokens.find(&other).is_some());
    // A revocation at the Webapp takes effect even if the disk hangs.
    assert_eq!(tokens.end_at_once("bert", RevokeCause::Logout).await, 1);
    assert!(tokens.find(&other).is_none());
    disk.hangs(false);
    let mut outcome = tokens.revoke_user("anna").await;
    while outcome.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        outcome = tokens.revoke_user("anna").await;
    }
    // The late login was stored, but no client received its token.
    assert_eq!(outcome, Ok(2));
    assert!(tokens.find(&remaining).is_none());
    let again = login(&tokens, "anna").await.unwrap();
    assert!(tokens.find(&again).is_some());
    store.close().await;
}
