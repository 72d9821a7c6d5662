//! Disks that are full, report wrong results, or lose power.

use std::collections::BTreeSet;

use super::disk::Fault;
use super::*;
use crate::store::Store;

#[tokio::test]
async fn on_a_full_disk_changes_are_refused_until_there_is_room() {
    let disk = Disk::laid_out();
    let engine = start(&disk).unwrap();
    commit(&engine, put(0, "anna")).await.unwrap();
    let room = disk.state().synced.len() as u64;
    disk.state().fault = Fault::Full(room);
    // Free pages within the file are used first.
    let mut number = 0;
    let refused = loop {
        number += 1;
        assert!(number < 100_000, "the disk never became full");
        if let Err(refused) = commit(&engine, put(number, "anna")).await {
            break refused;
        }
    };
    let StoreUnavailable::Failed(reason) = &refused else {
        panic!("{refused:?}");
    };
    assert!(
        reason.contains("full") || reason.contains("space"),
        "{reason}"
    );
    assert!(refused.retry_after() >= Duration::from_secs(1));
    assert_eq!(engine.trouble().as_ref(), Some(reason));
    assert_eq!(engine.metrics.store_up.get(), 0);
    assert!(commit(&engine, end("anna")).await.is_err());

    disk.state().fault = Fault::None;
    eventually("changes succeed again", async || {
        commit(&engine, put(200_000, "bert")).await.is_ok()
    })
    .await;
    assert_eq!(engine.trouble(), None);
    assert_eq!(engine.metrics.store_up.get(), 1);
    assert!(!has(&engine, number).await, "a refused change is not made");
    let found = grants(&engine).await;
    let wanted = usize::try_from(number).unwrap() + 1;
    assert_eq!(found.len(), wanted, "earlier changes are still stored");
}

#[tokio::test]
async fn a_hanging_disk_is_waited_for_once_and_changes_succeed_once_it_responds() {
    const TEST_TIMEOUT: Duration = Duration::from_millis(200);
    let disk = Disk::laid_out();
    let store = disk.store(TEST_TIMEOUT);
    let Store::Embedded(engine) = &store else {
        panic!("expected the embedded engine");
    };
    commit(engine, put(0, "anna")).await.unwrap();
    disk.hangs(true);
    assert_eq!(
        store.commit(put(1, "anna")).await,
        Err(StoreUnavailable::Late)
    );
    // From now on every call is refused at once.
    eventually("the hanging disk is noticed", async || {
        store.trouble().is_some()
    })
    .await;
    let begin = tokio::time::Instant::now();
    let refused = store.commit(put(2, "anna")).await.unwrap_err();
    assert!(
        matches!(refused, StoreUnavailable::Failed(_)),
        "{refused:?}"
    );
    assert!(
        begin.elapsed() < TEST_TIMEOUT,
        "changes are refused at once"
    );
    assert_eq!(engine.metrics.store_up.get(), 0);
    disk.hangs(false);
    eventually("changes succeed again", async || {
        store.commit(put(3, "anna")).await.is_ok()
    })
    .await;
    assert_eq!(store.trouble(), None);
    assert_eq!(engine.metrics.store_up.get(), 1);
    assert!(has(engine, 0).await && has(engine, 3).await);
    assert!(has(engine, 1).await, "the change in progress was made");
    assert!(!has(engine, 2).await, "the refused change was not made");
    // Closing does not wait for the disk either.
    disk.hangs(true);
    assert_eq!(
        store.commit(put(4, "anna")).await,
        Err(StoreUnavailable::Late)
    );
    store.close().await;
    disk.hangs(false);
}

#[test]
fn a_full_queue_on_a_hanging_disk_does_not_block_a_stop() {
    let disk = Disk::laid_out();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = runtime.block_on(async { disk.store(Duration::from_secs(1)) });
    let Store::Embedded(engine) = &store else {
        panic!("expected the embedded engine");
    };
    disk.hangs(true);
    let (sender, outcomes) = std::sync::mpsc::channel();
    let submit = |number| {
        let sender = sender.clone();
        engine.submit(
            put(number, "anna"),
            Box::new(move |outcome| sender.send(outcome).unwrap()),
        );
    };
    // The writer processes one job, the queue is full, and one more job is sent.
    let calls = disk.state().calls;
    submit(0);
    while disk.state().calls == calls {
        std::thread::yield_now();
    }
    (0..=MAX_QUEUED as u64).for_each(submit);
    assert_eq!(
        outcomes.try_iter().last(),
        Some(Err(StoreUnavailable::Busy))
    );
    runtime.block_on(engine.close());
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(runtime);
        ended.send(()).unwrap();
    });
    let end = end.recv_timeout(Duration::from_secs(20));
    disk.hangs(false);
    assert_eq!(end, Ok(()), "the runtime does not wait for the disk");
}

#[tokio::test]
async fn a_refused_change_that_reached_the_disk_is_undone() {
    let disk = Disk::laid_out();
    let engine = start(&disk).unwrap();
    commit(&engine, StoreChange::PutUser(user("anna")))
        .await
        .unwrap();
    commit(&engine, put(1, "anna")).await.unwrap();
    for change in [
        put(2, "anna"),
        end("anna"),
        StoreChange::RemoveGrant(digest(1)),
        StoreChange::RemoveUser {
            name: "anna".into(),
        },
        StoreChange::PutUser(user("bert")),
    ] {
        disk.state().fault = Fault::SyncLies;
        let refused = commit(&engine, change.clone()).await;
        assert!(
            matches!(refused, Err(StoreUnavailable::Failed(_))),
            "{change:?}"
        );
        eventually("the store works again", async || {
            commit(&engine, StoreChange::RemoveGrant(digest(99)))
                .await
                .is_ok()
        })
        .await;
        let found = grants(&engine).await;
        assert_eq!(found, [(digest(1), "anna".to_owned())], "{change:?}");
    }
    engine.close().await;
    let contents = read::contents(&disk.open().unwrap()).unwrap();
    assert_eq!(contents.users, [user("anna")]);
}

#[tokio::test]
async fn an_older_copy_put_in_place_of_the_file_is_not_written_to() {
    let disk = Disk::laid_out();
    let older = disk.state().synced.clone();
    let engine = start(&disk).unwrap();
    commit(&engine, put(1, "anna")).await.unwrap();
    commit(&engine, put(2, "anna")).await.unwrap();
    disk.state().fault = Fault::SyncLies;
    assert!(commit(&engine, put(3, "anna")).await.is_err());
    disk.replace(older);
    eventually("the older file is noticed", async || {
        let _ = commit(&engine, put(4, "anna")).await;
        engine
            .trouble()
            .is_some_and(|reason| reason.contains("older file"))
    })
    .await;
}

/// A generator with a fixed seed, to pick sectors.
struct SeededRandom(u64);

impl SeededRandom {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The changes that were confirmed before the power cut.
#[derive(Default)]
struct KnownState {
    live: BTreeSet<u64>,
    dead: BTreeSet<u64>,
}

/// Logins, logouts and revocations of single tokens, one after the other, until the power cut.
async fn load(disk: &Disk) -> (KnownState, Option<StoreChange>) {
    let mut known = KnownState::default();
    let Ok(engine) = start(disk) else {
        return (known, None);
    };
    for number in 0..24_u64 {
        let (change, ended): (_, Vec<u64>) = match number % 6 {
            4 => (
                StoreChange::RemoveGrant(digest(number - 1)),
                vec![number - 1],
            ),
            5 => (end("anna"), (0..number).filter(|n| n % 2 == 0).collect()),
            _ => {
                let user = if number % 2 == 0 { "anna" } else { "bert" };
                (put(number, user), Vec::new())
            }
        };
        if commit(&engine, change.clone()).await.is_err() {
            return (known, Some(change));
        }
        for ended in ended {
            if known.live.remove(&ended) {
                known.dead.insert(ended);
            }
        }
        if number % 6 < 4 {
            known.live.insert(number);
        }
    }
    engine.close().await;
    (known, None)
}

#[tokio::test]
async fn a_power_cut_at_any_write_loses_no_confirmed_change_and_revives_no_token() {
    let whole = Disk::laid_out();
    let image = whole.state().synced.clone();
    load(&whole).await;
    let calls = whole.state().calls;
    assert!(calls > 100, "only {calls} calls: the load does too little");
    let rounds = std::env::var("TOLLGATE_ROUNDS").ok();
    let seeds = rounds.and_then(|text| text.parse().ok()).unwrap_or(15_u64) / 5;
    let mut with_unconfirmed = 0;
    for cut in 0..calls {
        for seed in 0..seeds {
            let disk = Disk::of(image.clone());
            disk.state().fault = Fault::PowerAfter(cut);
            let (known, unconfirmed) = load(&disk).await;
            let mut random = SeededRandom(cut * 1000 + seed + 1);
            // All unsynced sectors, none, or some.
            let after = disk.after_a_power_cut(|| match seed % 3 {
                0 => false,
                1 => true,
                _ => random.next().is_multiple_of(2),
            });
            with_unconfirmed += u64::from(unconfirmed.is_some());
            check(&after, &known, unconfirmed.as_ref(), cut).await;
        }
    }
    assert!(
        with_unconfirmed > 0,
        "no power cut happened during a change"
    );
}

/// All confirmed changes are stored; the one unconfirmed change is stored or not.
async fn check(disk: &Disk, known: &KnownState, unconfirmed: Option<&StoreChange>, cut: u64) {
    let engine = start(disk).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
    let found: BTreeSet<RecordDigest> =
        grants(&engine).await.into_iter().map(|row| row.0).collect();
    let all = |numbers: &BTreeSet<u64>| -> BTreeSet<RecordDigest> {
        numbers.iter().map(|number| digest(*number)).collect()
    };
    let (live, dead) = (all(&known.live), all(&known.dead));
    assert!(
        found.is_disjoint(&dead),
        "cut at {cut}: a revoked token is valid again"
    );
    let mut with = live.clone();
    match unconfirmed {
        Some(StoreChange::PutGrant(grant)) => {
            with.insert(grant.digest);
        }
        Some(StoreChange::RemoveGrant(digest)) => {
            with.remove(digest);
        }
        Some(StoreChange::EndTokens { .. }) => {
            let ended = known.live.iter().filter(|number| **number % 2 == 0);
            for number in ended {
                with.remove(&digest(*number));
            }
        }
        _ => {}
    }
    assert!(
        found == live || found == with,
        "cut at {cut}: {unconfirmed:?}"
    );
    engine.close().await;
}
