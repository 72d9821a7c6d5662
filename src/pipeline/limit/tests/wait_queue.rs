//! Waiting for an empty bucket.

use super::*;

#[tokio::test(start_paused = true)]
async fn waiting_requests_are_admitted_in_order() {
    let limiter = limiter(vec![policy("clients", LimitKey::Client, quota(10, 1))]);
    let anna = user("anna");
    assert_eq!(admitted(&limiter, subject(&anna, "x"), 1).await, 1);
    let start = Instant::now();
    let done = std::sync::Mutex::new(Vec::new());
    let wait = async |number: usize| {
        let outcome = limiter.admit(subject(&anna, "x"), SECOND).await;
        done.lock()
            .unwrap()
            .push((number, outcome.is_ok(), start.elapsed()));
    };
    tokio::join!(wait(0), wait(1), wait(2), wait(3), wait(4));
    let done = done.into_inner().unwrap();
    let order: Vec<usize> = done.iter().map(|(number, ..)| *number).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
    assert!(done.iter().all(|(_, is_ok, _)| *is_ok));
    let last = done[4].2;
    assert!(last >= SECOND / 2 && last < SECOND * 6 / 10, "{last:?}");
    assert_eq!(
        limiter.metrics.limit_exceeded.value(LimitOutcome::Waited),
        5
    );
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_its_deadline_and_does_not_begin_if_it_cannot_succeed() {
    let limiter = limiter(vec![policy("clients", LimitKey::Client, quota(1, 1))]);
    let anna = user("anna");
    assert_eq!(admitted(&limiter, subject(&anna, "x"), 1).await, 1);
    let start = Instant::now();
    let hopeless = limiter.admit(subject(&anna, "x"), SECOND / 2).await;
    assert!(hopeless.is_err() && start.elapsed().is_zero());
    let wait = || limiter.admit(subject(&anna, "x"), SECOND * 2);
    let outcomes = tokio::join!(wait(), wait(), wait(), wait());
    let outcomes = [outcomes.0, outcomes.1, outcomes.2, outcomes.3];
    let good = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!((1..=2).contains(&good), "{good}");
    assert!(start.elapsed() <= SECOND * 2 + Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_the_queue_is_not_charged_and_delays_no_other() {
    let limiter = limiter(vec![policy("clients", LimitKey::Client, quota(1, 1))]);
    let anna = user("anna");
    assert_eq!(admitted(&limiter, subject(&anna, "x"), 1).await, 1);
    let cancelled = limiter.admit(subject(&anna, "x"), SECOND * 5);
    assert!(tokio::time::timeout(SECOND / 2, cancelled).await.is_err());
    let start = Instant::now();
    limiter
        .admit(subject(&anna, "x"), SECOND * 5)
        .await
        .unwrap();
    assert!(start.elapsed() < SECOND * 6 / 10);
}
