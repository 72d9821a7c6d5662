//! The limit on open connections of one listener, shared by its workers. The first half of the
//! permits goes to any peer; the second half is divided among peer networks, so that one peer
//! alone cannot take them all.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::GaugeGuard;
use crate::shares::{SharePermit, SharePool, network};

/// How many connections one listener may have at once, over all workers.
#[derive(Debug)]
pub struct ConnectionLimit {
    free: Arc<Semaphore>,
    size: Mutex<LimitSize>,
    shared: Arc<SharePool>,
}

#[derive(Debug)]
struct LimitSize {
    total: usize,
    /// Permits that a reload took away while connections still held them.
    owed: usize,
}

/// One connection's share of the limit, counted in the gauge of open connections. Dropping it
/// releases both.
#[derive(Debug)]
pub(in crate::listener) struct ConnectionPermit {
    permit: Option<OwnedSemaphorePermit>,
    limit: Arc<ConnectionLimit>,
    _share: Option<SharePermit>,
    _open: GaugeGuard,
}

impl ConnectionLimit {
    pub fn new(total: usize) -> Arc<Self> {
        let total = total.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            free: Arc::new(Semaphore::new(total)),
            size: Mutex::new(LimitSize { total, owed: 0 }),
            shared: SharePool::new(),
        })
    }

    /// Changes the limit. Connections above a smaller limit stay open; their permits are
    /// withdrawn when they close.
    pub fn resize(&self, total: usize) {
        let total = total.min(Semaphore::MAX_PERMITS);
        let mut size = self.size.lock();
        if total >= size.total {
            let grown = total - size.total;
            let paid = grown.min(size.owed);
            size.owed -= paid;
            self.free.add_permits(grown - paid);
        } else {
            let shrunk = size.total - total;
            size.owed += shrunk - self.free.forget_permits(shrunk);
        }
        size.total = total;
    }

    pub(in crate::listener) fn semaphore(&self) -> Arc<Semaphore> {
        Arc::clone(&self.free)
    }

    /// Turns a semaphore permit into the permit of a connection from `peer`, counted in `open`.
    /// None if the peer already has its share.
    pub(in crate::listener) fn take(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        peer: IpAddr,
        open: &IntGauge,
    ) -> Option<ConnectionPermit> {
        let total = self.size.lock().total;
        let free = self.free.available_permits();
        let share = if free < total - total / 2 {
            // The permit of this connection has been acquired already.
            let free = free + 1;
            Some(
                self.shared
                    .take_of_free(self.shared.key(network(peer)), free)?,
            )
        } else {
            None
        };
        Some(ConnectionPermit {
            permit: Some(permit),
            limit: Arc::clone(self),
            _share: share,
            _open: GaugeGuard::enter(open),
        })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut size = self.limit.size.lock();
        if size.owed > 0
            && let Some(permit) = self.permit.take()
        {
            size.owed -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: [u8; 4] = [192, 0, 2, 1];
    const OTHER: [u8; 4] = [192, 0, 2, 2];

    fn acquire(limit: &Arc<ConnectionLimit>) -> Option<ConnectionPermit> {
        acquire_for(limit, PEER)
    }

    fn acquire_for(limit: &Arc<ConnectionLimit>, peer: [u8; 4]) -> Option<ConnectionPermit> {
        let permit = limit.semaphore().try_acquire_owned().ok()?;
        let open = IntGauge::new("open", "open").unwrap();
        limit.take(permit, peer.into(), &open)
    }

    #[test]
    fn one_peer_leaves_permits_for_the_others() {
        let limit = ConnectionLimit::new(180);
        let greedy: Vec<_> = (0..1000).filter_map(|_| acquire(&limit)).collect();
        assert_eq!(greedy.len(), 90 + 75);
        let other: Vec<_> = (0..1000)
            .filter_map(|_| acquire_for(&limit, OTHER))
            .collect();
        assert_eq!(other.len(), 8);
        drop((greedy, other));
        let again: Vec<_> = (0..1000).filter_map(|_| acquire(&limit)).collect();
        assert_eq!(again.len(), 90 + 75);
    }

    #[test]
    fn a_smaller_limit_applies_as_soon_as_connections_close() {
        let limit = ConnectionLimit::new(3);
        let all: Vec<_> = (0..3).map(|_| acquire(&limit).unwrap()).collect();
        limit.resize(1);
        assert!(acquire(&limit).is_none());
        drop(all);
        let one = acquire(&limit);
        assert!(one.is_some());
        assert!(acquire(&limit).is_none(), "one permit is left, not three");
    }

    #[test]
    fn a_limit_that_shrinks_and_grows_again_loses_nothing() {
        let limit = ConnectionLimit::new(2);
        let all: Vec<_> = (0..2).map(|_| acquire(&limit).unwrap()).collect();
        limit.resize(1);
        limit.resize(4);
        let more: Vec<_> = std::iter::from_fn(|| acquire(&limit)).collect();
        assert_eq!(more.len(), 2);
        drop(all);
        assert!(acquire(&limit).is_some());
    }
}
