//! The waker of one upstream connection. It outlives the requests that use the
//! connection, so nothing is registered anew for each of them.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

/// Rung by everything that concerns a connection: its socket, its alarm, the body on
/// its way up. Wakes the holder only while that waits; else the ring is noted.
#[derive(Debug, Default)]
pub(super) struct NotifyWaker {
    rung: AtomicBool,
    holder: Mutex<WakerHolder>,
}

#[derive(Debug, Default)]
struct WakerHolder {
    waker: Option<Waker>,
    is_waiting: bool,
}

impl NotifyWaker {
    /// Whether it has rung since this was last asked.
    pub(in crate::upstream) fn has_rung(&self) -> bool {
        self.rung.swap(false, Ordering::AcqRel)
    }

    /// The same without forgetting it.
    pub(super) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// Whether the holder may wait to be woken; false: it has rung already.
    pub(super) fn wakes(&self, waker: &Waker) -> bool {
        let mut holder = self.lock();
        match &holder.waker {
            Some(known) if known.will_wake(waker) => {}
            _ => holder.waker = Some(waker.clone()),
        }
        holder.is_waiting = true;
        drop(holder);
        !self.rung.load(Ordering::Acquire)
    }

    /// The holder is awake: rings are only noted.
    pub(super) fn clear_waiter(&self) {
        self.lock().is_waiting = false;
    }

    /// Nobody holds the connection any more.
    pub(super) fn forget_holder(&self) {
        *self.lock() = WakerHolder::default();
    }

    fn lock(&self) -> MutexGuard<'_, WakerHolder> {
        self.holder.lock()
    }
}

impl Wake for NotifyWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the lock: whoever begins to wait after it sees the ring.
        self.rung.store(true, Ordering::Release);
        let mut holder = self.lock();
        if std::mem::take(&mut holder.is_waiting)
            && let Some(waker) = &holder.waker
        {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_ring_is_never_lost_and_wakes_only_who_waits() {
        let (bell, woken) = (Arc::new(NotifyWaker::default()), Arc::new(Woken::default()));
        let (ring, waker) = (
            Waker::from(Arc::clone(&bell)),
            Waker::from(Arc::clone(&woken)),
        );
        let times = || woken.0.load(Ordering::Relaxed);
        ring.wake_by_ref();
        assert!(!bell.wakes(&waker), "rung before the wait");
        assert!(bell.has_rung() && !bell.has_rung());
        assert!(bell.wakes(&waker));
        ring.wake_by_ref();
        ring.wake_by_ref();
        assert_eq!(times(), 1, "woken once, and then awake");
        assert!(bell.has_rung());
        assert!(bell.wakes(&waker));
        bell.clear_waiter();
        ring.wake_by_ref();
        assert_eq!(times(), 1);
        assert!(bell.has_rung(), "noted");
        assert!(bell.wakes(&waker));
        bell.forget_holder();
        ring.wake_by_ref();
        assert_eq!(times(), 1);
        assert_eq!(Arc::strong_count(&woken), 2, "the test's own two are left");
    }
}
