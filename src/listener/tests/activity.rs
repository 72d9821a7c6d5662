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
    assert_eq!(activity.due(TIMEOUTS), None);
    drop(exchange);
    let idle_from_now = Instant::now() + TIMEOUTS.idle;
    assert_eq!(
        activity.due(TIMEOUTS),
        Some((idle_from_now, TimeoutReason::Idle)),
        "idle time begins at the end of the exchange"
    );
}

#[tokio::test(start_paused = true)]
async fn a_head_sent_ahead_does_not_time_out_behind_a_slow_answer() {
    let activity = ConnectionActivity::new();
    let exchange = ActiveRequest::begin(&activity);
    activity.head_begins();
    tokio::time::advance(Duration::from_secs(600)).await;
    assert_eq!(activity.due(TIMEOUTS), None);
    drop(exchange);
    let from_now = Instant::now() + TIMEOUTS.header;
    assert_eq!(
        activity.due(TIMEOUTS),
        Some((from_now, TimeoutReason::Header))
    );
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_no_bytes_is_not_waited_for_for_ever() {
    let activity = ConnectionActivity::new();
    let _exchange = ActiveRequest::begin(&activity);
    activity.write_blocked();
    let (at, why) = activity.due(TIMEOUTS).unwrap();
    assert_eq!(
        (at, why),
        (Instant::now() + TIMEOUTS.idle, TimeoutReason::Stalled)
    );
    assert!(activity.moves());
    assert_eq!(activity.due(TIMEOUTS), None);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_goes_on_sending_is_read_for_longer_but_not_for_ever() {
    let activity = ConnectionActivity::new();
    let exchange = ActiveRequest::begin(&activity);
    activity.closes();
    drop(exchange);
    let began = Instant::now();
    for _ in 0..20 {
        let due = activity.due(TIMEOUTS).unwrap().0;
        let longest = began + LONGEST_LINGER;
        assert_eq!(due, (Instant::now() + LINGER).min(longest));
        tokio::time::advance(LINGER - Duration::from_millis(1)).await;
        activity.lingers();
    }
    assert!(activity.due(TIMEOUTS).unwrap().0 < Instant::now());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_opens_no_window_is_not_waited_for_for_ever() {
    let activity = ConnectionActivity::new();
    let mut stuck = ActiveRequest::begin(&activity);
    let other = ActiveRequest::begin(&activity);
    stuck.is_their_turn();
    assert_eq!(activity.due(TIMEOUTS), None, "the other one is our doing");
    drop(other);
    let from_now = Instant::now() + TIMEOUTS.idle;
    assert_eq!(
        activity.due(TIMEOUTS),
        Some((from_now, TimeoutReason::Stalled))
    );
    stuck.is_our_turn();
    assert_eq!(activity.due(TIMEOUTS), None);
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
    assert!(!activity.is_held_up(&waker));
    activity.write_blocked();
    assert!(activity.is_held_up(&waker) && activity.is_held_up(&waker));
    assert_eq!(activity.held_up().len(), 1, "asked twice, woken once");
    assert!(activity.moves() && !activity.moves());
    activity.has_room();
    assert!(woken.0.load(Ordering::Relaxed) && !activity.is_held_up(&waker));
}
