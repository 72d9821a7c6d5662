//! The state of the writer as other threads see it: why it cannot write, and how long it has been
//! waiting for the disk.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct DiskHealth(Mutex<DiskState>);

#[derive(Debug, Default)]
struct DiskState {
    trouble: Option<Arc<str>>,
    /// When the current piece of work began; None: the writer is idle.
    at_work: Option<Instant>,
    /// The "disk is not responding" alarm has been raised.
    is_alarm_raised: bool,
}

impl DiskHealth {
    pub(super) fn trouble(&self) -> Option<Arc<str>> {
        self.0.lock().trouble.clone()
    }

    /// Sets the reason why the store cannot be written; returns whether it has changed.
    pub(super) fn set(&self, trouble: Option<Arc<str>>) -> bool {
        let mut state = self.0.lock();
        let has_changed = state.trouble != trouble;
        state.trouble = trouble;
        has_changed
    }

    pub(super) fn begin(&self) {
        self.0.lock().at_work = Some(Instant::now());
    }

    /// Ends a piece of work. Clears the "disk is not responding" alarm, and calls `on_recovered`
    /// if it had been raised.
    pub(super) fn end(&self, on_recovered: impl FnOnce()) {
        let mut state = self.0.lock();
        state.at_work = None;
        if std::mem::take(&mut state.is_alarm_raised) {
            on_recovered(); // under the lock, so that it comes after `on_alarm`
        }
    }

    /// Whether the current piece of work has taken longer than `timeout`. The first such call
    /// raises the alarm and calls `on_alarm`.
    pub(super) fn hangs(&self, timeout: Duration, on_alarm: impl FnOnce()) -> bool {
        let mut state = self.0.lock();
        let is_late = state.at_work.is_some_and(|begun| begun.elapsed() > timeout);
        if is_late && !std::mem::replace(&mut state.is_alarm_raised, true) {
            on_alarm();
        }
        is_late
    }
}
