//! The cap on connections of one listener, shared by its workers. The first half of the
//! slots is for whoever comes; the second half is divided among peer networks, so that
//! one peer alone cannot take them all.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::shares::{SharePool, SharedPlace, network};

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
    /// Slots taken away by a reload while connections still sat in them.
    owed: usize,
}

/// One connection's place; free again when dropped.
#[derive(Debug)]
pub(in crate::listener) struct ConnectionPermit {
    permit: Option<OwnedSemaphorePermit>,
    slots: Arc<ConnectionLimit>,
    _share: Option<SharedPlace>,
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

    /// A new cap. Connections over a smaller one stay; their slots go when they end.
    pub fn resize(&self, total: usize) {
        let total = total.min(Semaphore::MAX_PERMITS);
        let mut size = self.lock();
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

    /// A slot for a connection from `peer`; None when the peer has its share.
    pub(in crate::listener) fn take(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        peer: IpAddr,
    ) -> Option<ConnectionPermit> {
        let total = self.lock().total;
        let free = self.free.available_permits();
        let share = if free < total - total / 2 {
            // With the one for this connection.
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
            slots: Arc::clone(self),
            _share: share,
        })
    }

    fn lock(&self) -> MutexGuard<'_, LimitSize> {
        self.size.lock()
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut size = self.slots.lock();
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

    fn taken(slots: &Arc<ConnectionLimit>) -> Option<ConnectionPermit> {
        taken_by(slots, PEER)
    }

    fn taken_by(slots: &Arc<ConnectionLimit>, peer: [u8; 4]) -> Option<ConnectionPermit> {
        let permit = slots.semaphore().try_acquire_owned().ok()?;
        slots.take(permit, peer.into())
    }

    #[test]
    fn one_peer_leaves_slots_for_the_others() {
        let slots = ConnectionLimit::new(180);
        let greedy: Vec<_> = (0..1000).filter_map(|_| taken(&slots)).collect();
        assert_eq!(greedy.len(), 90 + 75);
        let other: Vec<_> = (0..1000).filter_map(|_| taken_by(&slots, OTHER)).collect();
        assert_eq!(other.len(), 8);
        drop((greedy, other));
        let again: Vec<_> = (0..1000).filter_map(|_| taken(&slots)).collect();
        assert_eq!(again.len(), 90 + 75);
    }

    #[test]
    fn a_smaller_cap_holds_as_soon_as_connections_end() {
        let slots = ConnectionLimit::new(3);
        let all: Vec<_> = (0..3).map(|_| taken(&slots).unwrap()).collect();
        slots.resize(1);
        assert!(taken(&slots).is_none());
        drop(all);
        let one = taken(&slots);
        assert!(one.is_some());
        assert!(taken(&slots).is_none(), "one slot is left, not three");
    }

    #[test]
    fn a_cap_that_shrinks_and_grows_again_loses_nothing() {
        let slots = ConnectionLimit::new(2);
        let all: Vec<_> = (0..2).map(|_| taken(&slots).unwrap()).collect();
        slots.resize(1);
        slots.resize(4);
        let more: Vec<_> = std::iter::from_fn(|| taken(&slots)).collect();
        assert_eq!(more.len(), 2);
        drop(all);
        assert!(taken(&slots).is_some());
    }
}
