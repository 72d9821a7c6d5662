//! What others see of the writer: why it cannot write, if it cannot, and since when it
//! has been waiting for the disk.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct DiskHealth(Mutex<DiskState>);

#[derive(Debug, Default)]
struct DiskState {
    trouble: Option<Arc<str>>,
    /// When the work began that the writer is at.
    at_work: Option<Instant>,
    /// Somebody has said that this takes too long.
    is_told: bool,
}

impl DiskHealth {
    fn held(&self) -> MutexGuard<'_, DiskState> {
        // Single values are set under this lock.
        self.0.lock()
    }

    pub(super) fn trouble(&self) -> Option<Arc<str>> {
        self.held().trouble.clone()
    }

    /// Whether that is news.
    pub(super) fn set(&self, trouble: Option<Arc<str>>) -> bool {
        let mut held = self.held();
        let is_news = held.trouble != trouble;
        held.trouble = trouble;
        is_news
    }

    pub(super) fn begin(&self) {
        self.held().at_work = Some(Instant::now());
    }

    /// Takes back what has been told of work that took so long.
    pub(super) fn end(&self, take_back: impl FnOnce()) {
        let mut held = self.held();
        held.at_work = None;
        if std::mem::take(&mut held.is_told) {
            take_back(); // under the lock: after the telling, whoever does that
        }
    }

    /// Whether the writer has been at one piece of work for longer than `patience`. Tells
    /// of it once.
    pub(super) fn hangs(&self, patience: Duration, tell: impl FnOnce()) -> bool {
        let mut held = self.held();
        let is_late = held.at_work.is_some_and(|begun| begun.elapsed() > patience);
        if is_late && !std::mem::replace(&mut held.is_told, true) {
            tell();
        }
        is_late
    }
}
