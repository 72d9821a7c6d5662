//! A waker that remembers that it was woken: a task that many sources wake sees whether these were
//! among them. `tests/waker_model.rs` checks it under every interleaving.

use std::sync::Arc;
use std::task::{Wake, Waker};

use crate::sync::{AtomicBool, Ordering};

/// Given to timers and signals as `Waker::from(Arc<NotifyWaker>)`. Wakes its task each time.
#[derive(Debug)]
pub(crate) struct NotifyWaker {
    is_woken: AtomicBool,
    task: Waker,
}

impl NotifyWaker {
    pub(crate) fn new(task: Waker) -> Self {
        Self {
            is_woken: AtomicBool::new(false),
            task,
        }
    }

    /// Whether there was a wake-up since the last call.
    pub(crate) fn take_woken(&self) -> bool {
        self.is_woken.load(Ordering::Acquire) && self.is_woken.swap(false, Ordering::AcqRel)
    }
}

impl Wake for NotifyWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the task: it looks once it runs. A swap, not a store: it continues the release
        // sequence of a wake-up before it, so that the task sees what every source did before its
        // wake-up.
        self.is_woken.swap(true, Ordering::AcqRel);
        self.task.wake_by_ref();
    }
}
