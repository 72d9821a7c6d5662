//! A waker for futures that outlive the task that polls them. It remembers each wake-up, and
//! passes it on to the listening task only while that task waits. No wake-up is lost;
//! `tests/waker_model.rs` checks that under every interleaving.

use std::sync::Arc;
use std::task::{Wake, Waker};

use crate::sync::{AtomicBool, Mutex, Ordering, lock};

/// Given to sockets and timers as `Waker::from(Arc<NotifyWaker>)`, once for their whole life.
#[derive(Debug, Default)]
pub(crate) struct NotifyWaker {
    is_woken: AtomicBool,
    listener: Mutex<WakerListener>,
}

/// The task to be woken.
#[derive(Debug, Default)]
struct WakerListener {
    waker: Option<Waker>,
    is_waiting: bool,
    /// Stays `is_waiting` whatever happens.
    is_permanent: bool,
}

impl NotifyWaker {
    /// Wakes `task` at each wake-up, whether it waits or not.
    pub(crate) fn for_task(task: Waker) -> Self {
        let listener = WakerListener {
            waker: Some(task),
            is_waiting: true,
            is_permanent: true,
        };
        Self {
            is_woken: AtomicBool::new(false),
            listener: Mutex::new(listener),
        }
    }

    /// Whether there was a wake-up since the last call.
    pub(crate) fn take_woken(&self) -> bool {
        self.is_woken() && self.is_woken.swap(false, Ordering::AcqRel)
    }

    /// Whether `take_woken` would be true; changes nothing.
    pub(crate) fn is_woken(&self) -> bool {
        self.is_woken.load(Ordering::Acquire)
    }

    /// Makes `task` the listener until its next wake-up. False: a wake-up that has not been taken
    /// yet may have come too early for `task`, which must not wait.
    pub(crate) fn listen(&self, task: &Waker) -> bool {
        let mut listener = lock(&self.listener);
        match &listener.waker {
            Some(known) if known.will_wake(task) => {}
            _ => listener.waker = Some(task.clone()),
        }
        listener.is_waiting = true;
        drop(listener);
        !self.is_woken()
    }

    /// The listener is awake: wake-ups are only remembered.
    pub(crate) fn pause(&self) {
        lock(&self.listener).is_waiting = false;
    }

    /// Drops the listener's waker.
    pub(crate) fn forget_listener(&self) {
        *lock(&self.listener) = WakerListener::default();
    }
}

impl Wake for NotifyWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the lock: a task that begins to listen after it sees the flag.
        // A swap, not a store: it continues the release sequence of a wake-up before it, so that the
        // task sees what every source did before its wake-up.
        self.is_woken.swap(true, Ordering::AcqRel);
        let mut listener = lock(&self.listener);
        let is_waiting = listener.is_waiting;
        listener.is_waiting = listener.is_permanent;
        if is_waiting && let Some(waker) = &listener.waker {
            waker.wake_by_ref();
        }
    }
}
