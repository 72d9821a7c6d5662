//! The engine's guarantee: a confirmed change is stored, whatever happens to the disk.

pub(super) mod disk;
mod faults;
mod files;
mod log_lines;
mod model;

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::clock;
use crate::profiles::Role;
use crate::store::{
    ExportRecord, GrantBatchSink, GrantRecord, KeyRecord, OfflineStore, PhcText, RecordDigest,
    SealedBytes, SealedLease, TokenOrigin, UserRecord, threads_for,
};
use disk::Disk;

const HOUR: u64 = 3_600_000;

fn digest(number: u64) -> RecordDigest {
    use sha2::Digest as _;
    RecordDigest(sha2::Sha256::digest(number.to_le_bytes()).into())
}

fn grant(number: u64, user: &str) -> GrantRecord {
    GrantRecord {
        digest: digest(number),
        user: user.into(),
        role: Some(Role::User),
        ends_millis: clock::unix_millis() + HOUR,
        epoch: 0,
        origin: TokenOrigin::Minted,
    }
}

fn put(number: u64, user: &str) -> StoreChange {
    StoreChange::PutGrant(grant(number, user))
}

fn end(user: &str) -> StoreChange {
    StoreChange::EndTokens { user: user.into() }
}

fn user(name: &str) -> UserRecord {
    UserRecord {
        name: name.into(),
        role: Role::User,
        hash: PhcText("$argon2id$hash".to_owned()),
        must_change: false,
        is_first_admin: false,
        configured: None,
    }
}

/// The engine over a simulated disk.
fn start(disk: &Disk) -> Result<EmbeddedStore, OpenError> {
    let path = Path::new("no such file");
    let database = disk.open()?;
    let again = disk.clone();
    let opener = Box::new(move || again.open());
    let (embedded, _) = EmbeddedStore::start(path, opener, database, &Metrics::new())?;
    Ok(embedded)
}

async fn commit(engine: &EmbeddedStore, change: StoreChange) -> Result<(), StoreUnavailable> {
    let (sender, receiver) = oneshot::channel();
    let done = Box::new(|outcome| drop(sender.send(outcome)));
    engine.submit(change, done);
    receiver.await.unwrap()
}

/// Every live grant's digest and user, in order.
async fn grants(engine: &EmbeddedStore) -> Vec<(RecordDigest, String)> {
    let (send, receive) = std::sync::mpsc::channel();
    let sink = Box::new(move || -> GrantBatchSink<'static> {
        let send = send.clone();
        Box::new(move |grants| {
            for grant in grants {
                send.send((grant.digest, grant.user.to_string())).unwrap();
            }
        })
    });
    engine.load(sink).await.unwrap();
    let mut grants: Vec<_> = receive.iter().collect();
    grants.sort();
    grants
}

async fn has(engine: &EmbeddedStore, number: u64) -> bool {
    let found = grants(engine).await;
    found.iter().any(|(known, _)| *known == digest(number))
}

#[tokio::test]
async fn all_records_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data/store.redb");
    let (engine, contents) = EmbeddedStore::open(&path, &Metrics::new()).unwrap();
    assert!(contents.users.is_empty() && contents.keys.is_empty());
    let key = KeyRecord {
        name: "bot".into(),
        digest: digest(7),
        expires: Some(7),
        role: Role::Admin,
        paths: vec!["/v1/*".to_owned()],
        methods: Vec::new(),
        limit: None,
        upstreams: vec!["north".to_owned()],
    };
    let lease = SealedLease {
        upstream: "main".into(),
        ends_millis: 9,
        sealed: SealedBytes(vec![1, 2, 3]),
    };
    let changes = [
        StoreChange::PutUser(user("anna")),
        StoreChange::PutUser(user("bert")),
        StoreChange::RemoveUser {
            name: "bert".into(),
        },
        StoreChange::PutKey(key.clone()),
        StoreChange::PutLease(lease.clone()),
        put(1, "anna"),
        put(2, "carl"),
        end("carl"),
        put(3, "carl"),
        put(4, "anna"),
        StoreChange::RemoveGrant(digest(4)),
    ];
    for change in changes {
        commit(&engine, change).await.unwrap();
    }
    engine.close().await;
    let (engine, contents) = EmbeddedStore::open(&path, &Metrics::new()).unwrap();
    assert_eq!(contents.users, [user("anna")]);
    assert_eq!(contents.keys, [key]);
    assert_eq!(contents.leases, [lease]);
    let mut wanted = vec![
        (digest(1), "anna".to_owned()),
        (digest(3), "carl".to_owned()),
    ];
    wanted.sort();
    assert_eq!(grants(&engine).await, wanted);
}

#[tokio::test]
async fn a_user_created_again_has_no_tokens_of_the_deleted_one() {
    let engine = start(&Disk::laid_out()).unwrap();
    for change in [
        StoreChange::PutUser(user("anna")),
        put(1, "anna"),
        StoreChange::RemoveUser {
            name: "anna".into(),
        },
        // The grant of a login during which its user was deleted.
        put(2, "anna"),
        StoreChange::PutUser(user("anna")),
        put(3, "anna"),
        // A new password ends no token.
        StoreChange::PutUser(user("anna")),
    ] {
        commit(&engine, change).await.unwrap();
    }
    assert_eq!(grants(&engine).await, [(digest(3), "anna".to_owned())]);
}

#[tokio::test]
async fn concurrent_changes_share_a_commit() {
    let disk = Disk::laid_out();
    let engine = start(&disk).unwrap();
    let before = disk.state().syncs;
    let mut responses = Vec::new();
    for number in 0..500 {
        let (sender, receiver) = oneshot::channel();
        let done = Box::new(|outcome| drop(sender.send(outcome)));
        engine.submit(put(number, "anna"), done);
        responses.push(receiver);
    }
    for receiver in responses {
        receiver.await.unwrap().unwrap();
    }
    let syncs = disk.state().syncs - before;
    assert!(syncs < 250, "{syncs} syncs for 500 changes");
    assert_eq!(grants(&engine).await.len(), 500);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_nothing_is_lost() {
    let engine = start(&Disk::laid_out()).unwrap();
    let (hold, released) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = oneshot::channel();
    let mut begun = Some(begun);
    // A callback that does not return blocks the writer.
    let done = Box::new(move |_| {
        begun.take().map(|begun| begun.send(()));
        let _ = released.recv();
    });
    engine.submit(put(0, "anna"), done);
    has_begun.await.unwrap();
    let mut responses = Vec::new();
    for number in 0..=MAX_QUEUED as u64 {
        let (sender, receiver) = oneshot::channel();
        let done = Box::new(|outcome| drop(sender.send(outcome)));
        engine.submit(put(number + 1, "anna"), done);
        responses.push(receiver);
    }
    let last = responses.pop().unwrap().await.unwrap();
    assert_eq!(last, Err(StoreUnavailable::Busy));
    assert_eq!(engine.metrics.store_changes.value(StoreOutcome::Busy), 1);
    hold.send(()).unwrap();
    for receiver in responses {
        receiver.await.unwrap().unwrap();
    }
    assert_eq!(grants(&engine).await.len(), MAX_QUEUED + 1);
}

/// Waits until `condition` is true; fails with `what` after a timeout.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = clock::Deadline::after(Duration::from_secs(30));
    while !condition().await {
        assert!(!deadline.has_passed(), "timeout: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn every_user_is_loaded_with_any_number_of_threads() {
    for count in [127, 128, 190, 201, 256] {
        let engine = start(&Disk::laid_out()).unwrap();
        let mut wanted = Vec::new();
        for number in 0..count {
            let mut grant = grant(number, &format!("user {number}"));
            // Boundaries between the parts of the file that the threads load.
            grant.digest = RecordDigest(if number % 2 == 0 { [0; 32] } else { [255; 32] });
            grant.digest.0[0] = u8::try_from(number).unwrap();
            wanted.push((grant.digest, grant.user.to_string()));
            commit(&engine, StoreChange::PutGrant(grant)).await.unwrap();
        }
        wanted.sort();
        assert_eq!(grants(&engine).await, wanted);
        engine.close().await;
    }
}

#[tokio::test]
async fn every_row_is_loaded_while_the_file_is_read_ahead() {
    const COUNT: u64 = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let offline = OfflineStore::open_or_create(&path).unwrap();
    let mut import = offline.import().unwrap();
    for number in 0..COUNT {
        let grant = grant(number, &format!("user {}", number % 500));
        import.put(ExportRecord::Grant(grant)).unwrap();
    }
    import.commit().unwrap();
    drop(offline);
    let (engine, _) = EmbeddedStore::open(&path, &Metrics::new()).unwrap();
    let progress = Arc::new(LoadProgress::default());
    let (sender, receiver) = oneshot::channel();
    let sink = Box::new(|| -> GrantBatchSink<'static> { Box::new(|_| ()) });
    let job = WriterJob::Load(sink, Arc::clone(&progress), sender);
    engine.jobs.send(job).unwrap();
    assert_eq!(receiver.await.unwrap().unwrap().live, COUNT);
    let (megabytes, rows, total) = progress.current();
    assert_eq!((rows, total), (COUNT, COUNT));
    assert_eq!(megabytes > 0, threads_for(COUNT as usize) > 1);
}

#[tokio::test]
async fn a_vacuum_removes_dead_rows_and_keeps_live_ones() {
    let disk = Disk::laid_out();
    let engine = start(&disk).unwrap();
    for number in 0..3000 {
        let mut grant = grant(number, if number % 3 == 0 { "anna" } else { "bert" });
        if number % 3 == 1 {
            grant.ends_millis = clock::unix_millis();
        }
        commit(&engine, StoreChange::PutGrant(grant)).await.unwrap();
    }
    commit(&engine, end("anna")).await.unwrap();
    commit(&engine, put(5000, "anna")).await.unwrap();
    let before = grants(&engine).await;
    assert_eq!(before.len(), 1001);
    // The load has counted two thousand dead rows, enough for a vacuum.
    eventually("the vacuum has removed the dead rows", async || {
        let sink = Box::new(|| -> GrantBatchSink<'static> { Box::new(|_| ()) });
        let loaded = engine.load(sink).await.unwrap();
        loaded.expired + loaded.ended == 0
    })
    .await;
    assert_eq!(grants(&engine).await, before);
}
