//! One worker's idle connections. The connection used last is reused first, so that surplus
//! connections stay idle and are closed.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

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
    state: Mutex<PoolState<C>>,
    idle_timeout: Duration,
    tasks: TaskSet,
}

struct PoolState<C> {
    idle: Vec<IdleConnection<C>>,
    /// Dropped with the pool: the reaper ends then. None: none runs, since no connection is idle.
    reaper: Option<oneshot::Sender<()>>,
}

struct IdleConnection<C> {
    connection: Box<C>,
    since: Instant,
}

impl<C: PooledConnection + Send + 'static> IdlePool<C> {
    pub(in crate::upstream) fn new(idle_timeout: Duration, tasks: &TaskSet) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(PoolState {
                idle: Vec::new(),
                reaper: None,
            }),
            idle_timeout,
            tasks: tasks.clone(),
        })
    }

    pub(super) fn give_back(self: &Arc<Self>, connection: Box<C>) {
        let since = clock::now();
        if connection
            .usable_until()
            .is_some_and(|until| until <= since)
        {
            return; // closed: the upstream is about to do the same
        }
        let mut state = self.state.lock();
        state.idle.push(IdleConnection { connection, since });
        if state.reaper.is_none() {
            state.reaper = Some(self.reap());
        }
    }

    /// Starts the reaper; it ends when the sender is dropped.
    #[cold]
    fn reap(self: &Arc<Self>) -> oneshot::Sender<()> {
        let (gone, is_gone) = oneshot::channel();
        let reaper = reap(Arc::downgrade(self), self.idle_timeout, is_gone);
        self.tasks.spawn("idle upstream connections", reaper);
        gone
    }
}

impl<C: PooledConnection> IdlePool<C> {
    /// A connection that can take a request now.
    pub(in crate::upstream) fn take(&self) -> Option<Box<C>> {
        let mut state = self.state.lock();
        let now = clock::now();
        while let Some(mut last) = state.idle.pop() {
            if last.is_usable(now, self.idle_timeout) {
                return Some(last.connection);
            }
        }
        None
    }

    /// Closes every connection that is not in use.
    pub(in crate::upstream) fn close_idle(&self) {
        self.state.lock().idle.clear();
    }

    /// Closes those that are idle for too long, and those that the upstream has closed. False: none is left,
    /// and the reaper ends.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock();
        state
            .idle
            .retain_mut(|idle| idle.is_usable(now, self.idle_timeout));
        if state.idle.is_empty() {
            state.idle.shrink_to_fit();
            state.reaper = None;
        }
        state.reaper.is_some()
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
    // Not at once: under load the pool is often empty for a moment.
    let mut tick = interval_at(Instant::now() + often, often);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            _ = &mut is_gone => return,
            _ = tick.tick() => {}
        }
        let Some(pool) = pool.upgrade() else { return };
        if !pool.sweep() {
            return;
        }
    }
}

impl<C> fmt::Debug for IdlePool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdlePool")
            .field("idle", &self.state.lock().idle.len())
            .finish_non_exhaustive()
    }
}
