//! What an HTTP/2 connection has to do, shared by its requests, its driver and its bytes.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock;

/// Streams at once on a connection, whatever more the peer allows.
pub(in crate::upstream) const MAX_STREAMS: usize = 100;

/// What a connection has to do; shared with its driver.
#[derive(Debug)]
pub(in crate::upstream) struct ConnectionLoad {
    /// Streams that are open now.
    pub(in crate::upstream) active: AtomicUsize,
    /// Streams that it took before it refused one; more again with each that it takes.
    pub(in crate::upstream) accepted: AtomicUsize,
    /// A response has come on it.
    pub(in crate::upstream) has_served: AtomicBool,
    /// It gets no further stream.
    pub(in crate::upstream) is_closed: AtomicBool,
    pub(in crate::upstream) received: AtomicU64,
    pub(in crate::upstream) written: AtomicU64,
    pub(in crate::upstream) idle_since: Mutex<Instant>,
}

impl ConnectionLoad {
    pub(in crate::upstream) fn new() -> Self {
        Self {
            active: AtomicUsize::new(0),
            accepted: AtomicUsize::new(MAX_STREAMS),
            has_served: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            received: AtomicU64::new(0),
            written: AtomicU64::new(0),
            idle_since: Mutex::new(clock::now()),
        }
    }

    pub(in crate::upstream) fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Gives it no further stream.
    pub(in crate::upstream) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    pub(in crate::upstream) fn is_idle_for(&self, idle_timeout: Duration) -> bool {
        self.active() == 0 && self.idle_since.lock().elapsed() >= idle_timeout
    }
}
