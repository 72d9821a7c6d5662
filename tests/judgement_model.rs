//! The judgement of refused tokens under every interleaving of requests and renewer.

#![expect(
    dead_code,
    unreachable_pub,
    reason = "the model calls a part of what the program does"
)]

#[path = "../src/upstream/login/judgement/mod.rs"]
mod judgement;

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    pub(crate) use loom::sync::{Mutex, MutexGuard};

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().expect("no panic in a model")
    }
}

use judgement::accepted_paths::PathKey;
use judgement::refused_paths::RefusedRequest;
use judgement::speculation::SpeculationPacer;
use judgement::{
    LeaseFacts, LeaseJudgement, LeasePlacement, LoginCause, RetryStep, SettledOutcome,
};
use loom::sync::Arc;
use loom::thread;

const PATH: PathKey = PathKey(1 << 40);
const OTHER: PathKey = PathKey(2 << 40);
/// Long after the first token was obtained.
const NOW: u64 = 100_000;

fn lease(generation: u64, began: u64, cause: LoginCause) -> LeaseFacts {
    LeaseFacts {
        generation,
        began,
        obtained: began,
        cause,
    }
}

/// The state after a login: one path has accepted the token, and the renewer has a probe.
fn logged_in(single_active: bool) -> Arc<LeaseJudgement> {
    let judgement = LeaseJudgement::new(2, single_active, SpeculationPacer::new(120, 1));
    let placed = judgement.offer(lease(1, 0, LoginCause::Renewal), false);
    assert_eq!(placed, LeasePlacement::Current);
    assert!(judgement.is_worth_settling(PATH, 1));
    assert_eq!(
        judgement.record_acceptance(PATH, 1, false, 10),
        SettledOutcome::Nothing
    );
    judgement.set_probe(true);
    Arc::new(judgement)
}

/// A request that is refused with the first token.
fn refused(judgement: &LeaseJudgement, path: PathKey) -> (RefusedRequest, RetryStep) {
    let mut request = RefusedRequest::new(path, true);
    judgement.note_refusal(&mut request, 1, NOW);
    let step = judgement.next_step(&mut request, NOW);
    (request, step)
}

/// The renewer's part: the probe says that the token is dead.
fn renew(judgement: &LeaseJudgement) -> bool {
    let Some(suspicion) = judgement.suspicion() else {
        return false;
    };
    assert_eq!(suspicion.generation, 1);
    judgement.condemn(1);
    judgement.spend_login(NOW);
    judgement.offer(lease(2, NOW, LoginCause::Refusal), true);
    true
}

#[test]
fn concurrent_refusals_of_one_token_cause_one_login_and_none_is_lost() {
    loom::model(|| {
        let judgement = logged_in(false);
        let requests: Vec<_> = [PATH, OTHER]
            .map(|path| {
                let judgement = Arc::clone(&judgement);
                thread::spawn(move || refused(&judgement, path))
            })
            .into_iter()
            .collect();
        let mut logins = usize::from(renew(&judgement));
        let waiting: Vec<_> = requests
            .into_iter()
            .map(|one| one.join().unwrap())
            .collect();
        // A waiting request has woken the renewer, which checks once more.
        logins += usize::from(renew(&judgement));
        assert_eq!(logins, 1, "one login for all requests");
        for (mut request, step) in waiting {
            let step = match step {
                RetryStep::Await | RetryStep::AwaitLease => judgement.next_step(&mut request, NOW),
                step => step,
            };
            assert_eq!(step, RetryStep::Again(2));
        }
    });
}

#[test]
fn a_candidate_is_promoted_once_and_never_replaces_a_newer_lease() {
    loom::model(|| {
        let judgement = logged_in(false);
        let placed = judgement.offer(lease(2, NOW, LoginCause::Renewal), false);
        assert_eq!(placed, LeasePlacement::Candidate);
        let promotions: Vec<_> = [PATH, OTHER]
            .map(|path| {
                let judgement = Arc::clone(&judgement);
                thread::spawn(move || {
                    let is_open = judgement.is_worth_settling(path, 2);
                    is_open
                        && judgement.record_acceptance(path, 2, false, NOW)
                            == SettledOutcome::Promoted(2)
                })
            })
            .into_iter()
            .collect();
        judgement.offer(lease(3, NOW, LoginCause::Renewal), true);
        let promoted = promotions.into_iter();
        let promoted = promoted.map(|one| usize::from(one.join().unwrap()));
        assert!(promoted.sum::<usize>() <= 1);
        assert_eq!(judgement.generations()[0], Some(3));
        assert_eq!(judgement.generations()[1], None);
    });
}

#[test]
fn a_token_found_dead_is_not_used_again() {
    loom::model(|| {
        let judgement = logged_in(false);
        judgement.offer(lease(2, NOW, LoginCause::Renewal), false);
        let accepting = Arc::clone(&judgement);
        let accepted = thread::spawn(move || accepting.record_acceptance(PATH, 2, false, NOW));
        judgement.condemn(1);
        accepted.join().unwrap();
        assert_eq!(
            judgement.generations()[0],
            Some(2),
            "the candidate replaces it"
        );
        assert_ne!(
            judgement.generations()[2],
            Some(1),
            "it is no fallback either"
        );
    });
}

#[test]
fn with_a_single_active_token_a_login_is_in_use_at_once() {
    loom::model(|| {
        let judgement = logged_in(true);
        let refusing = Arc::clone(&judgement);
        let request = thread::spawn(move || refused(&refusing, PATH));
        let placed = judgement.offer(lease(2, 50, LoginCause::Renewal), false);
        assert_eq!(placed, LeasePlacement::Current);
        let (mut request, step) = request.join().unwrap();
        let step = match step {
            RetryStep::Await => judgement.next_step(&mut request, NOW),
            step => step,
        };
        assert_eq!(step, RetryStep::Again(2));
        assert_eq!(judgement.generations(), [Some(2), None, None]);
    });
}
