//! What one connection is doing, and how long it may go on doing that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::config;

/// After our last byte we read on for this long: closing with unread input would
/// make the kernel reset the connection and take the answer with it.
pub(in crate::listener) const LINGER: Duration = Duration::from_secs(2);
/// And as long as the peer goes on sending, for this long at most: a client that reads its
/// answer only when all is sent gets it.
pub(in crate::listener) const LONGEST_LINGER: Duration = Duration::from_secs(30);

/// Shared by a connection's stream, its service and its watch. Times are
/// milliseconds since it was opened, plus one; zero is "not now".
#[derive(Debug)]
pub(in crate::listener) struct ConnectionActivity {
    opened: Instant,
    in_flight: AtomicUsize,
    /// Of those, answers that gave a piece of body and were not asked for another.
    theirs: AtomicUsize,
    served: AtomicBool,
    tunnel: AtomicBool,
    refused: AtomicBool,
    draining: AtomicBool,
    /// Its last request was HTTP/1.0: an answer may end with the connection.
    http10: AtomicBool,
    /// All that came belongs to requests that have ended.
    between: AtomicBool,
    /// First byte of a head whose end has not come.
    head: AtomicU64,
    /// Last time an exchange ended, or an answer moved on.
    quiet: AtomicU64,
    /// Since when the peer takes none of our bytes.
    blocked: AtomicU64,
    /// Answers that are not read further until the peer takes bytes.
    held_up: Mutex<Vec<Waker>>,
    closing: AtomicU64,
    /// Last bytes that came since.
    lingered: AtomicU64,
}

/// Why a connection's time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::listener) enum TimeoutReason {
    Header,
    Idle,
    /// The peer has stopped taking our bytes.
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
            theirs: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            tunnel: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            http10: AtomicBool::new(false),
            between: AtomicBool::new(true),
            head: AtomicU64::new(0),
            quiet: AtomicU64::new(1),
            blocked: AtomicU64::new(0),
            held_up: Mutex::default(),
            closing: AtomicU64::new(0),
            lingered: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        let millis = self.opened.elapsed().as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX - 1) + 1
    }

    fn at(&self, stamp: u64) -> Instant {
        self.opened + Duration::from_millis(stamp.saturating_sub(1))
    }

    pub(in crate::listener) fn head_begins(&self) {
        self.head.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn head_ends(&self) {
        self.head.store(0, Ordering::Relaxed);
    }

    pub(in crate::listener) fn is_in_head(&self) -> bool {
        self.head.load(Ordering::Relaxed) != 0
    }

    /// Bytes of an answer go out: the idle time begins after the last of them.
    pub(in crate::listener) fn answers(&self) {
        self.quiet.store(self.now(), Ordering::Relaxed);
    }

    /// The peer took bytes of ours, or has all of them. True when it had not before.
    pub(in crate::listener) fn moves(&self) -> bool {
        let was_blocked = self.is_write_blocked();
        if was_blocked {
            self.blocked.store(0, Ordering::Relaxed);
        }
        was_blocked
    }

    /// The peer has room again: answers are read on.
    pub(in crate::listener) fn has_room(&self) {
        let held_up = std::mem::take(&mut *self.held_up());
        held_up.into_iter().for_each(Waker::wake);
    }

    /// True when the peer takes nothing at present; `waker` is woken when it does.
    /// What is read meanwhile would only lie in our memory.
    pub(in crate::listener) fn is_held_up(&self, waker: &Waker) -> bool {
        if !self.is_write_blocked() {
            return false;
        }
        let mut held_up = self.held_up();
        if !held_up.iter().any(|known| known.will_wake(waker)) {
            held_up.push(waker.clone());
        }
        true
    }

    pub(in crate::listener) fn held_up(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.held_up.lock()
    }

    pub(in crate::listener) fn write_blocked(&self) {
        if self.blocked.load(Ordering::Relaxed) == 0 {
            self.blocked.store(self.now(), Ordering::Relaxed);
        }
    }

    pub(super) fn is_write_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) != 0
    }

    pub(in crate::listener) fn closes(&self) {
        if self.closing.load(Ordering::Relaxed) == 0 {
            self.closing.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The peer still sends although we have closed.
    pub(in crate::listener) fn lingers(&self) {
        self.lingered.store(self.now(), Ordering::Relaxed);
    }

    /// From here on the bytes are not HTTP any more.
    pub(in crate::listener) fn becomes_tunnel(&self) {
        self.tunnel.store(true, Ordering::Release);
    }

    pub(in crate::listener) fn is_tunnel(&self) -> bool {
        self.tunnel.load(Ordering::Acquire)
    }

    /// The peer broke the protocol.
    pub(in crate::listener) fn refuses(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    pub(in crate::listener) fn has_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    pub(in crate::listener) fn speaks_http10(&self) {
        self.http10.store(true, Ordering::Relaxed);
    }

    pub(in crate::listener) fn is_http10(&self) -> bool {
        self.http10.load(Ordering::Relaxed)
    }

    pub(super) fn drains(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(in crate::listener) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(in crate::listener) fn is_between_requests(&self, is: bool) {
        self.between.store(is, Ordering::Relaxed);
    }

    /// Since when nothing at all has been under way.
    pub(super) fn rests(&self) -> Option<Instant> {
        let is_open = self.closing.load(Ordering::Relaxed) == 0;
        let rests = is_open && !self.is_busy() && !self.is_write_blocked() && !self.is_tunnel();
        let rests = rests && self.between.load(Ordering::Relaxed);
        rests.then(|| self.at(self.quiet.load(Ordering::Relaxed)))
    }

    /// A request has come at some time.
    pub(super) fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// A request is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) != 0
    }

    pub(in crate::listener) fn opened(&self) -> Instant {
        self.opened
    }

    /// When the connection's time is up if nothing changes. None while a request
    /// is under way: its deadlines are the pipeline's. But the pipeline is not asked
    /// for more while the peer takes nothing, be it that the socket is full or that
    /// it opens no HTTP/2 window; so that is watched here.
    pub(in crate::listener) fn due(
        &self,
        timeouts: ConnectionTimeouts,
    ) -> Option<(Instant, TimeoutReason)> {
        let closing = self.closing.load(Ordering::Relaxed);
        if closing != 0 {
            let lingered = self.lingered.load(Ordering::Relaxed);
            let quiet = self.at(closing.max(lingered)) + LINGER;
            let longest = self.at(closing) + LONGEST_LINGER;
            return Some((quiet.min(longest), TimeoutReason::Linger));
        }
        let blocked = self.blocked.load(Ordering::Relaxed);
        if blocked != 0 {
            return Some((self.at(blocked) + timeouts.idle, TimeoutReason::Stalled));
        }
        let quiet = self.quiet.load(Ordering::Relaxed);
        if self.is_busy() {
            let in_flight = self.in_flight.load(Ordering::Acquire);
            let all_wait = self.theirs.load(Ordering::Acquire) >= in_flight;
            return all_wait.then(|| (self.at(quiet) + timeouts.idle, TimeoutReason::Stalled));
        }
        let head = self.head.load(Ordering::Relaxed);
        if head != 0 {
            // A head that was sent ahead waits for the answer before it: not the peer's fault.
            let since = self.at(head.max(quiet));
            return Some((since + timeouts.header, TimeoutReason::Header));
        }
        Some((self.at(quiet) + timeouts.idle, TimeoutReason::Idle))
    }
}

/// One request under way, from its head to the end of its answer.
#[derive(Debug)]
pub(in crate::listener) struct ActiveRequest {
    activity: Arc<ConnectionActivity>,
    is_theirs: bool,
}

impl ActiveRequest {
    pub(in crate::listener) fn begin(activity: &Arc<ConnectionActivity>) -> Self {
        activity.in_flight.fetch_add(1, Ordering::AcqRel);
        activity.served.store(true, Ordering::Relaxed);
        Self {
            activity: Arc::clone(activity),
            is_theirs: false,
        }
    }

    /// The connection's socket is full: this answer's next piece can wait.
    pub(in crate::listener) fn is_held_up(&self, waker: &Waker) -> bool {
        self.activity.is_held_up(waker)
    }

    /// The peer must take what it got before it gets more.
    pub(in crate::listener) fn is_their_turn(&mut self) {
        if !self.is_theirs {
            self.is_theirs = true;
            self.activity.theirs.fetch_add(1, Ordering::AcqRel);
        }
        let now = self.activity.now();
        self.activity.quiet.store(now, Ordering::Relaxed);
    }

    pub(in crate::listener) fn is_our_turn(&mut self) {
        if self.is_theirs {
            self.is_theirs = false;
            self.activity.theirs.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.is_our_turn();
        let now = self.activity.now();
        self.activity.quiet.store(now, Ordering::Relaxed);
        self.activity.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
