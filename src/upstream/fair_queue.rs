//! The fair queue for upstream permits. While there are more requests than permits, a permit goes to
//! the waiting client that holds the fewest (max-min fairness); among equals, to the one whose last
//! permit is longest ago. The requests of one client keep their order.
//!
//! Two more rules. A client never takes the last free permits (`crate::shares`), so that a new client
//! does not wait for the slow requests of another. Monitoring requests have reserved permits, from
//! the first such request on.
//!
//! Bookkeeping only: no clock, no metrics, no requests. `permits` wraps it.

use std::collections::BTreeSet;
use std::task::{Context, Poll, Waker};

use crate::shares::{ByShareKey, ShareKey, is_within_share};
use crate::sync::{Mutex, MutexGuard, lock};

/// The number of client slots above which those without a permit or a request are removed.
const FEW_CLIENTS: usize = 256;

/// The permits of one upstream, and the requests that wait for one.
#[derive(Debug)]
pub(super) struct FairQueue(Mutex<QueueState>);

/// The slot of a client that holds a permit; given back by `release`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientSlot(usize);

/// A request in the queue, until it gets a permit or calls `leave`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WaiterId(usize);

/// What the queue is doing now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueLength {
    pub(super) waiting: usize,
    /// Permits granted to queued requests so far.
    pub(super) granted: u64,
}

#[derive(Debug)]
struct QueueState {
    free: usize,
    total: usize,
    /// Permits reserved for monitoring; in effect after the first monitoring request.
    reserve: usize,
    is_monitored: bool,
    monitoring_held: usize,
    /// Without a reserve: the last permit went to a monitoring request ahead of others.
    has_gone_first: bool,
    clients: Vec<QueuedClient>,
    free_clients: Vec<usize>,
    /// The length of `clients` at which unused slots are removed.
    forget_at: usize,
    by_key: ByShareKey<usize>,
    waiters: Vec<QueueWaiter>,
    free_waiters: Vec<usize>,
    length: QueueLength,
    /// Waiting clients by permits held and time of the last permit; with their index in `clients`.
    ordinary: BTreeSet<(usize, u64, usize)>,
    /// The same for clients with waiting monitoring requests.
    monitoring: BTreeSet<(usize, u64, usize)>,
    time: u64,
}

#[derive(Debug)]
struct QueuedClient {
    key: ShareKey,
    is_monitoring: bool,
    held: usize,
    /// When it got its last permit, or joined the queue.
    since: u64,
    /// First and last of its waiting requests.
    line: Option<(usize, usize)>,
}

#[derive(Debug)]
struct QueueWaiter {
    client: usize,
    previous: Option<usize>,
    next: Option<usize>,
    is_granted: bool,
    waker: Option<Waker>,
}

impl FairQueue {
    pub(super) fn new(permits: usize, reserve: usize) -> Self {
        let state = QueueState {
            free: permits,
            total: permits,
            reserve,
            is_monitored: false,
            monitoring_held: 0,
            has_gone_first: false,
            clients: Vec::new(),
            free_clients: Vec::new(),
            forget_at: FEW_CLIENTS,
            by_key: ByShareKey::default(),
            waiters: Vec::new(),
            free_waiters: Vec::new(),
            length: QueueLength {
                waiting: 0,
                granted: 0,
            },
            ordinary: BTreeSet::new(),
            monitoring: BTreeSet::new(),
            time: 0,
        };
        Self(Mutex::new(state))
    }

    /// A permit, if one is free for this client and the queue is empty.
    pub(super) fn try_take(&self, key: ShareKey, is_monitoring: bool) -> Option<ClientSlot> {
        let mut state = self.lock();
        if state.length.waiting > 0 {
            return None;
        }
        let client = state.client(key, is_monitoring);
        state.take(client)
    }

    /// Appends a request to the queue. It may have its permit already when this returns.
    pub(super) fn enqueue(&self, key: ShareKey, is_monitoring: bool) -> WaiterId {
        let waiter = self.lock().enqueue(key, is_monitoring);
        self.grant();
        waiter
    }

    /// The permit of a queued request, once granted; that removes the waiter.
    pub(super) fn poll_permit(
        &self,
        WaiterId(waiter): WaiterId,
        cx: &mut Context<'_>,
    ) -> Poll<ClientSlot> {
        let mut state = self.lock();
        let entry = &mut state.waiters[waiter];
        if entry.is_granted {
            let client = entry.client;
            state.free_waiters.push(waiter);
            return Poll::Ready(ClientSlot(client));
        }
        match &entry.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => entry.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Removes a request from the queue: its client disconnected, or `queue_timeout` expired.
    pub(super) fn leave(&self, WaiterId(waiter): WaiterId) {
        let mut state = self.lock();
        let QueueWaiter {
            client, is_granted, ..
        } = state.waiters[waiter];
        if is_granted {
            // The permit was granted, but the request has not taken it.
            state.release(client);
        } else {
            state.unlink(waiter);
        }
        state.waiters[waiter].waker = None;
        state.free_waiters.push(waiter);
        drop(state);
        self.grant();
    }

    pub(super) fn release(&self, ClientSlot(client): ClientSlot) {
        let mut state = self.lock();
        state.release(client);
        let is_wanted = state.length.waiting > 0;
        drop(state);
        if is_wanted {
            self.grant();
        }
    }

    pub(super) fn key(&self, ClientSlot(client): ClientSlot) -> ShareKey {
        self.lock().clients[client].key
    }

    pub(super) fn length(&self) -> QueueLength {
        self.lock().length
    }

    /// Grants free permits to queued requests. Wakers are called outside the lock.
    fn grant(&self) {
        loop {
            let mut state = self.lock();
            let Some(waiter) = state.grant_next() else {
                return;
            };
            let waker = state.waiters[waiter].waker.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        lock(&self.0)
    }
}

impl QueueState {
    /// Free permits that are not reserved for monitoring.
    fn open(&self) -> usize {
        let reserve = if self.is_monitored { self.reserve } else { 0 };
        let kept = reserve.saturating_sub(self.monitoring_held);
        self.free.saturating_sub(kept)
    }

    fn may_take(&self, client: usize) -> bool {
        let client = &self.clients[client];
        let is_reserved = client.is_monitoring && self.monitoring_held < self.reserve;
        (is_reserved && self.free > 0) || is_within_share(client.held, self.open(), self.total)
    }

    fn take(&mut self, client: usize) -> Option<ClientSlot> {
        if !self.may_take(client) {
            return None;
        }
        self.free -= 1;
        let taker = &mut self.clients[client];
        taker.held += 1;
        self.monitoring_held += usize::from(taker.is_monitoring);
        Some(ClientSlot(client))
    }

    fn release(&mut self, client: usize) {
        self.reorder(client, |client| client.held -= 1);
        self.free += 1;
        self.monitoring_held -= usize::from(self.clients[client].is_monitoring);
    }

    fn enqueue(&mut self, key: ShareKey, is_monitoring: bool) -> WaiterId {
        let client = self.client(key, is_monitoring);
        let entry = QueueWaiter {
            client,
            previous: self.clients[client].line.map(|(_, last)| last),
            next: None,
            is_granted: false,
            waker: None,
        };
        let waiter = if let Some(waiter) = self.free_waiters.pop() {
            self.waiters[waiter] = entry;
            waiter
        } else {
            self.waiters.push(entry);
            self.waiters.len() - 1
        };
        self.time += 1;
        let now = self.time;
        self.length.waiting += 1;
        if let Some((first, last)) = self.clients[client].line {
            self.waiters[last].next = Some(waiter);
            self.clients[client].line = Some((first, waiter));
        } else {
            self.reorder(client, |client| {
                client.since = now;
                client.line = Some((waiter, waiter));
            });
        }
        WaiterId(waiter)
    }

    /// The next request that gets a permit now.
    fn grant_next(&mut self) -> Option<usize> {
        let client = self.next_client()?;
        let (waiter, _) = self.clients[client].line?;
        self.unlink(waiter);
        self.time += 1;
        let now = self.time;
        self.free -= 1;
        self.length.granted += 1;
        self.monitoring_held += usize::from(self.clients[client].is_monitoring);
        self.reorder(client, |client| {
            client.held += 1;
            client.since = now;
        });
        self.waiters[waiter].is_granted = true;
        Some(waiter)
    }

    /// Monitoring requests first, up to their reserve. With too few permits for a reserve they go
    /// first every other time.
    fn next_client(&mut self) -> Option<usize> {
        if self.free == 0 {
            return None;
        }
        let ahead = match self.reserve {
            0 => self.monitoring_held == 0 && !self.has_gone_first,
            reserve => self.monitoring_held < reserve,
        };
        if let Some(&(_, _, client)) = self.monitoring.first().filter(|_| ahead) {
            self.has_gone_first = self.reserve == 0;
            return Some(client);
        }
        let &(_, _, client) = self.ordinary.first()?;
        self.has_gone_first = false;
        self.may_take(client).then_some(client)
    }

    /// Removes a request from its client's queue.
    fn unlink(&mut self, waiter: usize) {
        let QueueWaiter {
            client,
            previous,
            next,
            ..
        } = self.waiters[waiter];
        if let Some(previous) = previous {
            self.waiters[previous].next = next;
        }
        if let Some(next) = next {
            self.waiters[next].previous = previous;
        }
        self.length.waiting -= 1;
        let line = self.clients[client].line.and_then(|(first, last)| {
            let first = if first == waiter { next } else { Some(first) };
            let last = if last == waiter { previous } else { Some(last) };
            first.zip(last)
        });
        self.reorder(client, |client| client.line = line);
    }

    /// Changes a client's slot, and its position in the order if it waits.
    fn reorder(&mut self, client: usize, change: impl FnOnce(&mut QueuedClient)) {
        let entry = &mut self.clients[client];
        let before = entry.line.map(|_| (entry.held, entry.since, client));
        change(entry);
        let after = entry.line.map(|_| (entry.held, entry.since, client));
        if before == after {
            return;
        }
        let is_monitoring = entry.is_monitoring;
        for order in [
            Some(&mut self.ordinary),
            is_monitoring.then_some(&mut self.monitoring),
        ] {
            let Some(order) = order else { continue };
            if let Some(before) = &before {
                order.remove(before);
            }
            order.extend(after);
        }
    }

    /// The index of a client in `clients`. Its monitoring requests have a slot of their own.
    fn client(&mut self, ShareKey(hash): ShareKey, is_monitoring: bool) -> usize {
        self.is_monitored |= is_monitoring;
        let key = ShareKey(hash & !1 | u64::from(is_monitoring));
        if let Some(&known) = self.by_key.get(&key) {
            return known;
        }
        if self.by_key.len() >= self.forget_at {
            self.forget_idle();
        }
        let fresh = QueuedClient {
            key,
            is_monitoring,
            held: 0,
            since: self.time,
            line: None,
        };
        let place = if let Some(place) = self.free_clients.pop() {
            self.clients[place] = fresh;
            place
        } else {
            self.clients.push(fresh);
            self.clients.len() - 1
        };
        self.by_key.insert(key, place);
        place
    }

    fn forget_idle(&mut self) {
        let (clients, free) = (&self.clients, &mut self.free_clients);
        self.by_key.retain(|_, &mut place| {
            let is_busy = clients[place].held > 0 || clients[place].line.is_some();
            if !is_busy {
                free.push(place);
            }
            is_busy
        });
        self.forget_at = FEW_CLIENTS.max(self.by_key.len() * 2);
    }
}
