//! The timeouts of a connection.

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
async fn a_pipelined_head_does_not_time_out_behind_a_slow_response() {
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
async fn a_peer_that_does_not_read_times_out() {
    let activity = ConnectionActivity::new();
    let _exchange = ActiveRequest::begin(&activity);
    activity.set_write_blocked();
    let (at, reason) = activity.next_timeout(TIMEOUTS).unwrap();
    assert_eq!(
        (at, reason),
        (Instant::now() + TIMEOUTS.idle, TimeoutReason::Stalled)
    );
    assert!(activity.write_progressed());
    assert_eq!(activity.next_timeout(TIMEOUTS), None);
}

#[tokio::test(start_paused = true)]
async fn lingering_lasts_while_the_peer_sends_up_to_a_limit() {
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
async fn a_peer_that_opens_no_window_times_out() {
    let activity = ConnectionActivity::new();
    let mut blocked = ActiveRequest::begin(&activity);
    let other = ActiveRequest::begin(&activity);
    blocked.wait_for_peer();
    assert_eq!(
        activity.next_timeout(TIMEOUTS),
        None,
        "the gateway delays the other request"
    );
    drop(other);
    let from_now = Instant::now() + TIMEOUTS.idle;
    assert_eq!(
        activity.next_timeout(TIMEOUTS),
        Some((from_now, TimeoutReason::Stalled))
    );
    blocked.resume();
    assert_eq!(activity.next_timeout(TIMEOUTS), None);
}

#[test]
fn a_response_body_is_not_polled_while_the_peer_does_not_read() {
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
    assert_eq!(activity.blocked_bodies(), 1, "registered twice, woken once");
    assert!(activity.write_progressed() && !activity.write_progressed());
    activity.wake_blocked_bodies();
    assert!(woken.0.load(Ordering::Relaxed) && !activity.register_if_blocked(&waker));
}
