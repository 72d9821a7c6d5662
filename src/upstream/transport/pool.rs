//! One worker's connections that nobody holds. The last one used is used again
//! first, so that those in excess grow idle and close.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::connection::HeldConnection;
use crate::lifecycle::TaskSet;

/// Idle connections. Its lock is never contended: one worker uses it.
pub(in crate::upstream) struct IdlePool<B> {
    idle: Mutex<Vec<IdleConnection<B>>>,
    idle_timeout: Duration,
    /// Dropped with the pool: the reaper ends then.
    _gone: oneshot::Sender<()>,
}

struct IdleConnection<B> {
    connection: Box<HeldConnection<B>>,
    since: Instant,
}

impl<B: Send + Sync + 'static> IdlePool<B> {
    pub(in crate::upstream) fn new(idle_timeout: Duration, tasks: &TaskSet) -> Arc<Self> {
        let (gone, is_gone) = oneshot::channel();
        let pool = Arc::new(Self {
            idle: Mutex::default(),
            idle_timeout,
            _gone: gone,
        });
        let reaper = reap(Arc::downgrade(&pool), idle_timeout, is_gone);
        tasks.spawn("idle upstream connections", reaper);
        pool
    }
}

impl<B> IdlePool<B> {
    /// A connection that can take a request now.
    pub(in crate::upstream) fn take(&self) -> Option<Box<HeldConnection<B>>> {
        let mut idle = self.lock();
        let now = Instant::now();
        while let Some(mut last) = idle.pop() {
            if last.is_usable(now, self.idle_timeout) {
                return Some(last.connection);
            }
        }
        None
    }

    pub(super) fn give_back(&self, connection: Box<HeldConnection<B>>) {
        let since = Instant::now();
        if connection
            .usable_until()
            .is_some_and(|until| until <= since)
        {
            return; // closed: the upstream is about to do the same
        }
        self.lock().push(IdleConnection { connection, since });
    }

    /// Closes every connection that is not in use.
    pub(super) fn close_idle(&self) {
        self.lock().clear();
    }

    /// Closes those that are idle for too long, and those that the upstream has closed.
    fn sweep(&self) {
        let now = Instant::now();
        self.lock()
            .retain_mut(|idle| idle.is_usable(now, self.idle_timeout));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<IdleConnection<B>>> {
        self.idle.lock()
    }
}

impl<B> IdleConnection<B> {
    fn is_usable(&mut self, now: Instant, idle_timeout: Duration) -> bool {
        let is_kept = |until| now < until;
        now.saturating_duration_since(self.since) < idle_timeout
            && self.connection.usable_until().is_none_or(is_kept)
            && self.connection.can_send()
    }
}

/// Nothing else looks at a connection that nobody holds.
async fn reap<B>(
    pool: Weak<IdlePool<B>>,
    idle_timeout: Duration,
    mut is_gone: oneshot::Receiver<()>,
) {
    let often = (idle_timeout / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
    let mut tick = interval(often);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            _ = &mut is_gone => return,
            _ = tick.tick() => {}
        }
        let Some(pool) = pool.upgrade() else { return };
        pool.sweep();
    }
}

impl<B> fmt::Debug for IdlePool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("idle", &self.lock().len())
            .finish_non_exhaustive()
    }
}
