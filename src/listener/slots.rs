//! The cap on connections of one listener, shared by its workers.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many connections one listener may have at once, over all workers.
#[derive(Debug)]
pub struct Slots {
    free: Arc<Semaphore>,
    size: Mutex<Size>,
}

#[derive(Debug)]
struct Size {
    total: usize,
    /// Slots taken away by a reload while connections still sat in them.
    owed: usize,
}

/// One connection's place; free again when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    slots: Arc<Slots>,
}

impl Slots {
    pub fn new(total: usize) -> Arc<Self> {
        let total = total.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            free: Arc::new(Semaphore::new(total)),
            size: Mutex::new(Size { total, owed: 0 }),
        })
    }

    /// A new cap. Connections over a smaller one stay; their slots go when they end.
    pub fn resize(&self, total: usize) {
        let total = total.min(Semaphore::MAX_PERMITS);
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
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

    pub(super) fn semaphore(&self) -> Arc<Semaphore> {
        Arc::clone(&self.free)
    }

    pub(super) fn take(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Slot {
        Slot {
            permit: Some(permit),
            slots: Arc::clone(self),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut size = self
            .slots
            .size
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
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

    fn taken(slots: &Arc<Slots>) -> Option<Slot> {
        let permit = slots.semaphore().try_acquire_owned().ok()?;
        Some(slots.take(permit))
    }

    #[test]
    fn a_smaller_cap_holds_as_soon_as_connections_end() {
        let slots = Slots::new(3);
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
        let slots = Slots::new(2);
        let all: Vec<_> = (0..2).map(|_| taken(&slots).unwrap()).collect();
        slots.resize(1);
        slots.resize(4);
        let more: Vec<_> = std::iter::from_fn(|| taken(&slots)).collect();
        assert_eq!(more.len(), 2);
        drop(all);
        assert!(taken(&slots).is_some());
    }
}
