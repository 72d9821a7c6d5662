//! How long a connection may go on doing what it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use crate::listener::connection::activity::{
    ActiveRequest, ConnectionActivity, ConnectionTimeouts, LINGER, LONGEST_LINGER, TimeoutReason,
};

const TIMEOUTS: ConnectionTimeouts = ConnectionTimeouts {
    header: Duration::from_secs(10),
    idle: Duration::from_secs(60),
};

#[tokio::test(start_paused = true)]
async fn a_slow_request_is_never_idle() {
    let activity = ConnectionActivity::new();
    let exchange = ActiveRequest::begin(&activity);
    tokio::time::advance(Duration::from_secs(600)).await;
    assert_eq!(activity.next_timeout(TIMEOUTS), None);
    drop(exchange);
    let idle_from_now = Instant::now() + TIMEOUTS.idle;
    assert_eq!(
        activity.next_timeout(TIMEOUTS),
        Some((idle_from_now, TimeoutReason::Idle)),
        "idle time begins at the end of the exchange"
    );
}

#[tokio::test(start_paused = true)]
async fn a_head_sent_ahead_does_not_time_out_behind_a_slow_answer() {
    let activity = ConnectionActivity::new();
    let exchange = ActiveRequest::begin(&activity);
    activity.head_started();
    tokio::time::advance(Duration::from_secs(600)).await;
    assert_eq!(activity.next_timeout(TIMEOUTS), None);
    drop(exchange);
    let from_now = Instant::now() + TIMEOUTS.header;
    assert_eq!(
        activity.next_timeout(TIMEOUTS),
        Some((from_now, TimeoutReason::Header))
    );
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_no_bytes_is_not_waited_for_for_ever() {
    let activity = ConnectionActivity::new();
    let _exchange = ActiveRequest::begin(&activity);
    activity.set_write_blocked();
    let (at, why) = activity.next_timeout(TIMEOUTS).unwrap();
    assert_eq!(
        (at, why),
        (Instant::now() + TIMEOUTS.idle, TimeoutReason::Stalled)
    );
    assert!(activity.write_progressed());
    assert_eq!(activity.next_timeout(TIMEOUTS), None);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_goes_on_sending_is_read_for_longer_but_not_for_ever() {
    let activity = ConnectionActivity::new();
    let exchange = ActiveRequest::begin(&activity);
    activity.set_closing();
    drop(exchange);
    let began = Instant::now();
    for _ in 0..20 {
        let due = activity.next_timeout(TIMEOUTS).unwrap().0;
        let longest = began + LONGEST_LINGER;
        assert_eq!(due, (Instant::now() + LINGER).min(longest));
        tokio::time::advance(LINGER - Duration::from_millis(1)).await;
        activity.received_while_closing();
    }
    assert!(activity.next_timeout(TIMEOUTS).unwrap().0 < Instant::now());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_opens_no_window_is_not_waited_for_for_ever() {
    let activity = ConnectionActivity::new();
    let mut stuck = ActiveRequest::begin(&activity);
    let other = ActiveRequest::begin(&activity);
    stuck.wait_for_peer();
    assert_eq!(
        activity.next_timeout(TIMEOUTS),
        None,
        "the other one is our doing"
    );
    drop(other);
    let from_now = Instant::now() + TIMEOUTS.idle;
    assert_eq!(
        activity.next_timeout(TIMEOUTS),
        Some((from_now, TimeoutReason::Stalled))
    );
    stuck.resume();
    assert_eq!(activity.next_timeout(TIMEOUTS), None);
}

#[test]
fn an_answer_is_not_read_on_while_the_peer_takes_nothing() {
    struct Woken(AtomicBool);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&woken));
    let activity = ConnectionActivity::new();
    assert!(!activity.register_if_blocked(&waker));
    activity.set_write_blocked();
    assert!(activity.register_if_blocked(&waker) && activity.register_if_blocked(&waker));
    assert_eq!(activity.blocked_bodies(), 1, "asked twice, woken once");
    assert!(activity.write_progressed() && !activity.write_progressed());
    activity.wake_blocked_bodies();
    assert!(woken.0.load(Ordering::Relaxed) && !activity.register_if_blocked(&waker));
}
