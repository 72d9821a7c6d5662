//! Somebody found that a connection is of no use: the link is asked for another one.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(in crate::store::shared) struct ReconnectSignal {
    why: Mutex<Arc<str>>,
    asked: Notify,
}

impl ReconnectSignal {
    pub(in crate::store::shared) fn ask(&self, why: &Arc<str>) {
        // One assignment: a panic elsewhere leaves no half of it.
        *self.why.lock() = Arc::clone(why);
        self.asked.notify_one();
    }

    /// Returns when somebody has asked, with the reason.
    pub(in crate::store::shared) async fn asked(&self) -> Arc<str> {
        self.asked.notified().await;
        Arc::clone(&self.why.lock())
    }
}
