//! Login against logout against deletion, on real threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::*;

/// Numbers of revocations begun and done, and each token with the number of the last
/// revocation that had begun when the token could no longer escape the next one.
#[derive(Default)]
struct RaceState {
    begun: AtomicU64,
    done: AtomicU64,
    tokens: Mutex<Vec<(TokenDigest, u64)>>,
    is_over: AtomicBool,
}

impl RaceState {
    fn wait_for_a_token(&self) {
        let deadline = Deadline::after(Duration::from_secs(30));
        while self.tokens.lock().unwrap().is_empty() {
            assert!(!deadline.has_passed(), "no login succeeds");
            std::thread::yield_now();
        }
    }

    /// Checks that completed revocations have ended their tokens; returns how many.
    fn check(&self, store: &TokenStore) -> usize {
        let tokens = self.tokens.lock().unwrap().clone();
        let done = self.done.load(SeqCst);
        let revoked = tokens.iter().filter(|(_, begun)| *begun < done);
        let revoked = revoked.inspect(|(token, _)| {
            assert!(
                store.find(token).is_none(),
                "a token survived its revocation"
            );
        });
        revoked.count()
    }
}

/// Stops the threads even if a check fails.
struct StopOnDrop<'a>(&'a RaceState);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, SeqCst);
    }
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

#[derive(Clone, Copy, PartialEq)]
enum Ending {
    Logout,
    Deletion,
}

fn race(ending: Ending) {
    let store = store(usize::MAX, usize::MAX);
    let state = RaceState::default();
    let mut checked = 0;
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&state);
        let log_in = || {
            run(async {
                while !state.is_over.load(SeqCst) {
                    let epoch = store.epoch("anna");
                    let at_epoch = state.begun.load(SeqCst);
                    // In place of the password check: time for a revocation in between.
                    std::thread::yield_now();
                    let Ok(token) = login_for(&store, "anna", (HOUR, epoch)).await else {
                        continue;
                    };
                    // A logout ends inserted tokens; a deletion also refuses logins that have begun.
                    let begun = match ending {
                        Ending::Logout => state.begun.load(SeqCst),
                        Ending::Deletion => at_epoch,
                    };
                    state.tokens.lock().unwrap().push((token, begun));
                }
            });
        };
        scope.spawn(log_in);
        scope.spawn(log_in);
        scope.spawn(|| {
            while !state.is_over.load(SeqCst) {
                store.sweep(16);
                std::thread::yield_now();
            }
        });
        let enough = Deadline::after(Duration::from_secs(2));
        for number in 1..=300 {
            // On a loaded machine a round takes many time slices.
            if enough.has_passed() && checked > 0 {
                break;
            }
            state.wait_for_a_token();
            state.begun.store(number, SeqCst);
            run(async {
                match ending {
                    Ending::Logout => store.revoke_user("anna").await.unwrap(),
                    Ending::Deletion => store.end_user("anna").await,
                }
            });
            state.done.store(number, SeqCst);
            checked += state.check(&store);
            let mut tokens = state.tokens.lock().unwrap();
            tokens.retain(|(_, begun)| *begun >= number);
        }
    });
    checked += state.check(&store);
    assert!(checked > 0, "no token met a revocation: nothing was tested");
    run(store.end_user("anna"));
    sweep_all(&store);
    assert_eq!(store.len(), 0);
    assert_eq!(store.memory.counts().1, 0);
}

#[test]
fn no_token_survives_a_later_logout() {
    race(Ending::Logout);
}

#[test]
fn no_token_survives_a_deletion_during_its_login() {
    race(Ending::Deletion);
}

#[test]
fn concurrent_inserts_and_revocations_leave_no_records() {
    let store = store(usize::MAX, usize::MAX);
    let digests: Vec<TokenDigest> = (0..8).map(|number| twin(number % 2)).collect();
    let work = |seed: usize| {
        run(async {
            for round in 0..2000 {
                let pick = round * 7 + seed;
                let digest = &digests[pick % digests.len()];
                let user = ["anna", "bert", "carl"][pick % 3];
                let wanted = GrantRequest {
                    user,
                    role: None,
                    lifetime: HOUR * u32::try_from(pick % 2).unwrap(),
                    origin: TokenOrigin::Learned,
                    epoch: store.epoch(user),
                    revision: None,
                };
                let _ = store.insert(*digest, wanted).await;
                match pick % 5 {
                    0 => drop(store.revoke(digest).await),
                    1 => drop(store.revoke_user(user).await),
                    2 => drop(store.sweep(3)),
                    _ => drop(store.find(digest)),
                }
            }
        });
    };
    std::thread::scope(|scope| {
        for seed in 0..3 {
            scope.spawn(move || work(seed));
        }
    });
    run(async {
        for digest in &digests {
            store.revoke(digest).await;
        }
    });
    sweep_all(&store);
    assert_eq!(store.len(), 0);
    assert_eq!(store.metrics.tokens.get(), 0);
    assert_eq!(store.memory.counts(), (0, 0));
}
