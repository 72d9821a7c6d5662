//! One worker's idle connections. The connection used last is reused first, so that surplus
//! connections stay idle and are closed.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::clock;
use crate::lifecycle::TaskSet;

/// What the pool asks of a connection.
pub(in crate::upstream) trait PooledConnection {
    /// Whether the next request can be sent over it, as far as this end knows.
    fn can_send(&mut self) -> bool;

    /// When the upstream may close it; it is not used from then on. None: not announced.
    fn usable_until(&self) -> Option<Instant>;
}

/// Idle connections. Its lock is never contended: one worker uses it.
pub(in crate::upstream) struct IdlePool<C> {
    idle: Mutex<Vec<IdleConnection<C>>>,
    idle_timeout: Duration,
    /// Dropped with the pool: the reaper ends then.
    _gone: oneshot::Sender<()>,
}

struct IdleConnection<C> {
    connection: Box<C>,
    since: Instant,
}

impl<C: PooledConnection + Send + 'static> IdlePool<C> {
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

impl<C: PooledConnection> IdlePool<C> {
    /// A connection that can take a request now.
    pub(in crate::upstream) fn take(&self) -> Option<Box<C>> {
        let mut idle = self.idle.lock();
        let now = clock::now();
        while let Some(mut last) = idle.pop() {
            if last.is_usable(now, self.idle_timeout) {
                return Some(last.connection);
            }
        }
        None
    }

    pub(super) fn give_back(&self, connection: Box<C>) {
        let since = clock::now();
        if connection
            .usable_until()
            .is_some_and(|until| until <= since)
        {
            return; // closed: the upstream is about to do the same
        }
        self.idle.lock().push(IdleConnection { connection, since });
    }

    /// Closes every connection that is not in use.
    pub(in crate::upstream) fn close_idle(&self) {
        self.idle.lock().clear();
    }

    /// Closes those that are idle for too long, and those that the upstream has closed.
    fn sweep(&self) {
        let now = Instant::now();
        self.idle
            .lock()
            .retain_mut(|idle| idle.is_usable(now, self.idle_timeout));
    }
}

impl<C: PooledConnection> IdleConnection<C> {
    fn is_usable(&mut self, now: Instant, idle_timeout: Duration) -> bool {
        let is_kept = |until| now < until;
        now.saturating_duration_since(self.since) < idle_timeout
            && self.connection.usable_until().is_none_or(is_kept)
            && self.connection.can_send()
    }
}

/// Closes idle connections that have timed out or that the upstream has closed; nothing else polls
/// them.
async fn reap<C: PooledConnection>(
    pool: Weak<IdlePool<C>>,
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

impl<C> fmt::Debug for IdlePool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdlePool")
            .field("idle", &self.idle.lock().len())
            .finish_non_exhaustive()
    }
}
