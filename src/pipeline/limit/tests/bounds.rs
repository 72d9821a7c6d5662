//! Memory bounds, eviction, and extreme quotas.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn small(max_keys: usize) -> Limiter {
    let mut limits = limits(vec![policy("clients", LimitKey::Client, quota(1, 5))]);
    limits.max_keys = max_keys;
    Limiter::new(&limits, None, Metrics::new())
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded_and_keys_beyond_the_bound_share_one_bucket() {
    let limiter = small(2);
    for name in ["anna", "bert"] {
        assert_eq!(admitted(&limiter, subject(&user(name), "x"), 3).await, 3);
    }
    let mut shared = 0;
    for number in 0..100 {
        let client = user(&format!("user-{number}"));
        shared += admitted(&limiter, subject(&client, "x"), 1).await;
    }
    assert_eq!(shared, 5);
    assert_eq!(limiter.policies[0].buckets.sweep(), 2);
    assert_eq!(admitted(&limiter, subject(&user("anna"), "x"), 9).await, 2);
}

#[tokio::test(start_paused = true)]
async fn removing_a_key_never_refills_its_bucket_early() {
    let limiter = small(1);
    let (anna, bert) = (user("anna"), user("bert"));
    assert_eq!(admitted(&limiter, subject(&anna, "x"), 9).await, 5);
    for _ in 0..4 {
        advance(SECOND).await;
        limiter.sweep();
        assert_eq!(admitted(&limiter, subject(&anna, "x"), 9).await, 1);
    }
    // Anna's bucket fills; bert, whose key is beyond the bound, empties the shared bucket meanwhile.
    advance(SECOND * 4).await;
    assert_eq!(admitted(&limiter, subject(&bert, "x"), 9).await, 5);
    advance(SECOND * 3).await;
    limiter.sweep();
    // Bert's key gets a bucket now, which starts with the state of the shared one.
    assert_eq!(admitted(&limiter, subject(&bert, "x"), 9).await, 3);
    assert_eq!(limiter.policies[0].buckets.sweep(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_sweep_removes_full_buckets_and_returns_the_number_left() {
    let limiter = small(100);
    for number in 0..50 {
        let client = user(&format!("user-{number}"));
        assert_eq!(admitted(&limiter, subject(&client, "x"), 1).await, 1);
    }
    let gauge = limiter.metrics.limit_keys.with_label_values(&["clients"]);
    limiter.refresh_gauges();
    assert_eq!(gauge.get(), 50, "correct before any sweep");
    advance(SECOND * 10).await;
    limiter.sweep();
    limiter.refresh_gauges();
    assert_eq!(gauge.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn memory_of_many_keys_is_freed_when_they_are_removed() {
    let buckets = BucketSet::new("clients".into(), quota(1, 5), 1_000_000);
    for key in 0..100_000 {
        assert!(buckets.charge(buckets.key(key)).is_ok());
    }
    assert_eq!(buckets.sweep(), 100_000);
    let full = buckets.capacity();
    assert!(full >= 100_000);
    advance(SECOND * 10).await;
    assert_eq!(buckets.sweep(), 0);
    assert!(
        buckets.capacity() < full / 100,
        "{} of {full}",
        buckets.capacity()
    );
}

#[test]
fn extreme_quotas_neither_panic_nor_block() {
    for (requests, per, burst) in [
        (0, Duration::ZERO, 0),
        (u32::MAX, Duration::from_nanos(1), u32::MAX),
        (1, Duration::MAX, u32::MAX),
        (1, Duration::MAX, 1),
    ] {
        let quota = Quota {
            requests,
            per,
            burst,
        };
        let buckets = BucketSet::new("extreme".into(), quota, 1);
        assert!(buckets.charge(SINGLE_KEY).is_ok());
        buckets.refund(SINGLE_KEY);
        let _ = (
            buckets.charge(SINGLE_KEY),
            buckets.headers(0),
            buckets.sweep(),
        );
    }
}

#[test]
fn charges_from_many_threads_never_exceed_the_burst() {
    let slow = Quota {
        requests: 1,
        per: SECOND * 3600,
        burst: 100,
    };
    let buckets = BucketSet::new("race".into(), slow, 4);
    let passed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let is_ok = buckets.charge(7).is_ok();
                    passed.fetch_add(usize::from(is_ok), Ordering::Relaxed);
                    if is_ok {
                        buckets.refund(7);
                        passed.fetch_sub(1, Ordering::Relaxed);
                    }
                    passed.fetch_add(usize::from(buckets.charge(7).is_ok()), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(passed.load(Ordering::Relaxed), 100);
}
