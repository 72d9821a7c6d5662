//! The generation fence under every interleaving of its callers.

#[path = "../src/upstream/fence.rs"]
mod fence;

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

use fence::Fence;
use loom::sync::Arc;
use loom::thread;

fn logged_in(single_active: bool) -> Arc<Fence> {
    let fence = Arc::new(Fence::new(single_active));
    assert_eq!(fence.publish(fence.begin()), Some(1));
    fence
}

#[test]
fn many_refusals_of_one_generation_are_news_once() {
    loom::model(|| {
        let fence = logged_in(false);
        let refusals: Vec<_> = (0..3)
            .map(|_| {
                let fence = Arc::clone(&fence);
                thread::spawn(move || usize::from(fence.refuse(1)))
            })
            .collect();
        let news: usize = refusals.into_iter().map(|t| t.join().unwrap()).sum();
        assert_eq!(news, 1);
        assert!(fence.is_refused(1));
    });
}

#[test]
fn a_login_begun_before_a_refusal_never_publishes_after_it() {
    loom::model(|| {
        let fence = logged_in(false);
        let refusing = Arc::clone(&fence);
        let attempt = fence.begin();
        let refusal = thread::spawn(move || refusing.refuse(1));
        let published = fence.publish(attempt);
        let was_news = refusal.join().unwrap();
        match published {
            // The refusal came first: the token is doubtful and must not be used.
            None => assert!(was_news && fence.is_refused(1)),
            // It came second, about a generation that is no longer in use.
            Some(generation) => {
                assert_eq!(generation, 2);
                assert!(!was_news && !fence.is_refused(1));
            }
        }
    });
}

#[test]
fn a_login_begun_after_the_refusal_always_publishes() {
    loom::model(|| {
        let fence = logged_in(false);
        let late = Arc::clone(&fence);
        assert!(fence.refuse(1));
        let attempt = fence.begin();
        // Complaints still under way when the login for them has begun.
        let complaint = thread::spawn(move || late.refuse(1));
        assert_eq!(fence.publish(attempt), Some(2));
        assert!(!complaint.join().unwrap());
        assert!(!fence.is_refused(2));
    });
}

#[test]
fn whatever_the_order_the_session_ends_with_a_generation_nobody_refused() {
    loom::model(|| {
        let fence = logged_in(false);
        let complaints: Vec<_> = (0..2)
            .map(|_| {
                let fence = Arc::clone(&fence);
                thread::spawn(move || fence.refuse(1))
            })
            .collect();
        // Two renewals, one of which may fall to the fence, as in the renewer's loop.
        let mut last = 1;
        for _ in 0..2 {
            if let Some(generation) = fence.publish(fence.begin()) {
                assert!(generation > last);
                last = generation;
            }
        }
        for complaint in complaints {
            complaint.join().unwrap();
        }
        assert!(last > 1, "two attempts and one possible refusal");
        assert!(!fence.is_refused(last));
    });
}

#[test]
fn with_a_single_active_token_our_own_login_explains_the_refusal() {
    loom::model(|| {
        let fence = logged_in(true);
        let refusing = Arc::clone(&fence);
        let attempt = fence.begin();
        let refusal = thread::spawn(move || refusing.refuse(1));
        assert_eq!(fence.publish(attempt), Some(2));
        refusal.join().unwrap();
        assert!(!fence.is_refused(2));
    });
}

#[test]
fn a_stale_refusal_does_nothing() {
    loom::model(|| {
        let fence = logged_in(false);
        assert_eq!(fence.publish(fence.begin()), Some(2));
        let late = Arc::clone(&fence);
        let attempt = fence.begin();
        let complaint = thread::spawn(move || late.refuse(1));
        assert_eq!(fence.publish(attempt), Some(3));
        assert!(!complaint.join().unwrap());
        assert!(!fence.is_refused(1), "nobody holds it against generation 1");
    });
}

#[test]
fn a_lease_adopted_from_another_gate_is_refused_only_by_its_own_number() {
    loom::model(|| {
        let fence = logged_in(false);
        let late = Arc::clone(&fence);
        let refusal = thread::spawn(move || late.refuse(1));
        fence.adopt(2);
        refusal.join().unwrap();
        assert!(!fence.is_refused(2), "a refusal of 1 says nothing of 2");
        assert!(fence.refuse(2) && fence.is_refused(2));
    });
}
