//! A request to `link` for a new connection, from a task that found the current one unusable.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(in crate::store::shared) struct ReconnectSignal {
    reason: Mutex<Arc<str>>,
    requested: Notify,
}

impl ReconnectSignal {
    pub(in crate::store::shared) fn request(&self, reason: &Arc<str>) {
        *self.reason.lock() = Arc::clone(reason);
        self.requested.notify_one();
    }

    /// Waits for a request; returns its reason.
    pub(in crate::store::shared) async fn requested(&self) -> Arc<str> {
        self.requested.notified().await;
        Arc::clone(&self.reason.lock())
    }
}
