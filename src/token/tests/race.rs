//! Login against logout against deletion, on real threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::*;

/// Endings begun and endings done, by number, and the tokens with the number of the
/// last ending begun when the token could no longer escape the next one.
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

    /// Every token that an ending which is over should have ended, is dead.
    fn check(&self, store: &TokenStore) -> usize {
        let tokens = self.tokens.lock().unwrap().clone();
        let done = self.done.load(SeqCst);
        let doomed = tokens.iter().filter(|(_, begun)| *begun < done);
        let doomed = doomed.inspect(|(token, _)| {
            assert!(store.find(token).is_none(), "a token outlived its end");
        });
        doomed.count()
    }
}

/// Ends the scene even when a check fails, or its threads would go on for ever.
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
                    // Where the password is checked: give an ending time to come between.
                    std::thread::yield_now();
                    let Ok(token) = login_for(&store, "anna", (HOUR, epoch)).await else {
                        continue;
                    };
                    // A logout takes what is inserted, a deletion what has begun.
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
            // On a loaded machine a round costs many turns of the scheduler.
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
    assert!(
        checked > 0,
        "no token met an ending: the race did not take place"
    );
    run(store.end_user("anna"));
    sweep_all(&store);
    assert_eq!(store.len(), 0);
    assert_eq!(store.memory.counts().1, 0);
}

#[test]
fn no_token_outlives_a_logout_that_came_after_it() {
    race(Ending::Logout);
}

#[test]
fn no_token_outlives_a_deletion_that_its_login_began_before() {
    race(Ending::Deletion);
}

#[test]
fn tokens_put_in_and_taken_out_from_all_sides_leave_nothing_behind() {
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
