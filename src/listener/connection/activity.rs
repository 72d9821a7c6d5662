//! The state of one client connection, and the timeouts that follow from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock;
use crate::config;

/// How long the connection is read after the last byte was written. Closing it with unread input
/// would make the kernel reset it, and the peer would lose the response.
pub(in crate::listener) const LINGER: Duration = Duration::from_secs(2);
/// The longest time to read on while the peer keeps sending: some clients read the response only
/// after they have sent the whole request.
pub(in crate::listener) const LONGEST_LINGER: Duration = Duration::from_secs(30);

/// Shared by a connection's stream, its service and its watch. Times are in milliseconds since
/// the connection was opened, plus one; zero means unset.
#[derive(Debug)]
pub(in crate::listener) struct ConnectionActivity {
    opened: Instant,
    in_flight: AtomicUsize,
    /// How many of them wait for the peer: their last body frame has been handed to hyper, which
    /// has not asked for the next one.
    awaiting_peer: AtomicUsize,
    served: AtomicBool,
    refused: AtomicBool,
    draining: AtomicBool,
    /// The last request was HTTP/1.0: its response may end with the connection.
    http10: AtomicBool,
    /// All bytes received belong to requests that have ended.
    between_requests: AtomicBool,
    /// Time of the first byte of a head that is not complete.
    head_since: AtomicU64,
    /// Last time a request ended or a response made progress.
    last_progress: AtomicU64,
    /// Since when the peer has not taken any bytes.
    blocked_since: AtomicU64,
    /// Response bodies that are not polled until the peer takes bytes.
    blocked_bodies: Mutex<Vec<Waker>>,
    closing_since: AtomicU64,
    /// Time of the last bytes received since then.
    last_received: AtomicU64,
}

/// Which timeout of a connection expires next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::listener) enum TimeoutReason {
    Header,
    Idle,
    /// The peer has stopped taking bytes.
    Stalled,
    Linger,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::listener) struct ConnectionTimeouts {
    pub(in crate::listener) header: Duration,
    pub(in crate::listener) idle: Duration,
}

impl From<&config::Listener> for ConnectionTimeouts {
    fn from(settings: &config::Listener) -> Self {
        Self {
            header: settings.header_timeout,
            idle: settings.idle_timeout,
        }
    }
}

impl ConnectionActivity {
    pub(in crate::listener) fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            in_flight: AtomicUsize::new(0),
            awaiting_peer: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            http10: AtomicBool::new(false),
            between_requests: AtomicBool::new(true),
            head_since: AtomicU64::new(0),
            last_progress: AtomicU64::new(1),
            blocked_since: AtomicU64::new(0),
            blocked_bodies: Mutex::default(),
            closing_since: AtomicU64::new(0),
            last_received: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        let millis = clock::now().duration_since(self.opened).as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX - 1) + 1
    }

    fn instant(&self, stamp: u64) -> Instant {
        self.opened + Duration::from_millis(stamp.saturating_sub(1))
    }

    pub(in crate::listener) fn head_started(&self) {
        self.head_since.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn head_ended(&self) {
        self.head_since.store(0, Ordering::Relaxed);
    }

    pub(super) fn is_in_head(&self) -> bool {
        self.head_since.load(Ordering::Relaxed) != 0
    }

    /// Notes that bytes of a response were written: the idle time counts from the last of them.
    pub(super) fn wrote_response(&self) {
        self.last_progress.store(self.now(), Ordering::Relaxed);
    }

    /// Notes that the peer took bytes, or has all of them. True if writing was blocked before.
    pub(in crate::listener) fn write_progressed(&self) -> bool {
        let was_blocked = self.is_write_blocked();
        if was_blocked {
            self.blocked_since.store(0, Ordering::Relaxed);
        }
        was_blocked
    }

    /// Wakes the response bodies that waited for the peer to take bytes.
    pub(in crate::listener) fn wake_blocked_bodies(&self) {
        let wakers = std::mem::take(&mut *self.blocked_bodies.lock());
        wakers.into_iter().for_each(Waker::wake);
    }

    /// True while the peer takes no bytes; `waker` is woken when it does. Body frames polled
    /// meanwhile would only be buffered in memory.
    pub(in crate::listener) fn register_if_blocked(&self, waker: &Waker) -> bool {
        if !self.is_write_blocked() {
            return false;
        }
        let mut wakers = self.blocked_bodies.lock();
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
        true
    }

    /// Number of response bodies that wait for the peer.
    #[cfg(test)]
    pub(in crate::listener) fn blocked_bodies(&self) -> usize {
        self.blocked_bodies.lock().len()
    }

    pub(in crate::listener) fn set_write_blocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) == 0 {
            self.blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    pub(super) fn is_write_blocked(&self) -> bool {
        self.blocked_since.load(Ordering::Relaxed) != 0
    }

    pub(in crate::listener) fn set_closing(&self) {
        if self.closing_since.load(Ordering::Relaxed) == 0 {
            self.closing_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Notes that the peer still sends after the gateway has closed its side.
    pub(in crate::listener) fn received_while_closing(&self) {
        self.last_received.store(self.now(), Ordering::Relaxed);
    }

    /// Notes that the peer broke the protocol.
    pub(super) fn set_refused(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    pub(in crate::listener) fn has_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn set_http10(&self) {
        self.http10.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_http10(&self) -> bool {
        self.http10.load(Ordering::Relaxed)
    }

    pub(super) fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn set_between_requests(&self, value: bool) {
        self.between_requests.store(value, Ordering::Relaxed);
    }

    /// Since when the connection has been idle in every respect; None while it is not.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let is_open = self.closing_since.load(Ordering::Relaxed) == 0;
        let is_idle = is_open
            && !self.is_busy()
            && !self.is_write_blocked()
            && self.between_requests.load(Ordering::Relaxed);
        is_idle.then(|| self.instant(self.last_progress.load(Ordering::Relaxed)))
    }

    /// Whether any request has been received.
    pub(super) fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// Whether a request is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) != 0
    }

    pub(super) fn opened(&self) -> Instant {
        self.opened
    }

    /// When a timeout of the connection expires if nothing changes, and which one. None while a
    /// request is in flight, because the pipeline applies its deadlines. The exception is a peer
    /// that takes no bytes (the socket is full, or it opens no HTTP/2 window): the pipeline is
    /// not polled then, so that timeout applies here.
    pub(in crate::listener) fn next_timeout(
        &self,
        timeouts: ConnectionTimeouts,
    ) -> Option<(Instant, TimeoutReason)> {
        let closing = self.closing_since.load(Ordering::Relaxed);
        if closing != 0 {
            let lingered = self.last_received.load(Ordering::Relaxed);
            let quiet = self.instant(closing.max(lingered)) + LINGER;
            let longest = self.instant(closing) + LONGEST_LINGER;
            return Some((quiet.min(longest), TimeoutReason::Linger));
        }
        let blocked = self.blocked_since.load(Ordering::Relaxed);
        if blocked != 0 {
            return Some((
                self.instant(blocked) + timeouts.idle,
                TimeoutReason::Stalled,
            ));
        }
        let quiet = self.last_progress.load(Ordering::Relaxed);
        if self.is_busy() {
            let in_flight = self.in_flight.load(Ordering::Acquire);
            let all_wait = self.awaiting_peer.load(Ordering::Acquire) >= in_flight;
            return all_wait.then(|| (self.instant(quiet) + timeouts.idle, TimeoutReason::Stalled));
        }
        let head = self.head_since.load(Ordering::Relaxed);
        if head != 0 {
            // A pipelined head waits for the response before it, which is not the peer's fault.
            let since = self.instant(head.max(quiet));
            return Some((since + timeouts.header, TimeoutReason::Header));
        }
        Some((self.instant(quiet) + timeouts.idle, TimeoutReason::Idle))
    }
}

/// One request in flight, from its head to the end of its response.
#[derive(Debug)]
pub(in crate::listener) struct ActiveRequest {
    activity: Arc<ConnectionActivity>,
    is_awaiting_peer: bool,
}

impl ActiveRequest {
    pub(in crate::listener) fn begin(activity: &Arc<ConnectionActivity>) -> Self {
        activity.in_flight.fetch_add(1, Ordering::AcqRel);
        activity.served.store(true, Ordering::Relaxed);
        Self {
            activity: Arc::clone(activity),
            is_awaiting_peer: false,
        }
    }

    /// True while the connection's socket is full: the next body frame must wait.
    pub(super) fn register_if_blocked(&self, waker: &Waker) -> bool {
        self.activity.register_if_blocked(waker)
    }

    /// Notes that the peer must take what was sent before the body is polled again.
    pub(in crate::listener) fn wait_for_peer(&mut self) {
        if !self.is_awaiting_peer {
            self.is_awaiting_peer = true;
            self.activity.awaiting_peer.fetch_add(1, Ordering::AcqRel);
        }
        let now = self.activity.now();
        self.activity.last_progress.store(now, Ordering::Relaxed);
    }

    pub(in crate::listener) fn resume(&mut self) {
        if self.is_awaiting_peer {
            self.is_awaiting_peer = false;
            self.activity.awaiting_peer.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.resume();
        let now = self.activity.now();
        self.activity.last_progress.store(now, Ordering::Relaxed);
        self.activity.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
