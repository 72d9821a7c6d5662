//! The operator's request to read files again at once: SIGHUP.

use std::future::pending;

use tokio::sync::watch;

/// Requests a look at the files from everything that has subscribed.
#[derive(Clone, Debug)]
pub struct ReloadSignal(watch::Sender<()>);

/// One subscription. A request that comes while its owner is busy is received afterwards; several
/// of them count as one.
#[derive(Clone, Debug)]
pub struct ReloadRequests(watch::Receiver<()>);

impl Default for ReloadSignal {
    fn default() -> Self {
        Self(watch::Sender::new(()))
    }
}

impl ReloadSignal {
    pub fn send(&self) {
        self.0.send_replace(());
    }

    /// Receives the requests from now on.
    pub fn subscribe(&self) -> ReloadRequests {
        ReloadRequests(self.0.subscribe())
    }
}

impl ReloadRequests {
    /// For files that are only polled.
    pub fn never() -> Self {
        ReloadSignal::default().subscribe()
    }

    /// Waits for the next request; for ever once the signal is gone.
    pub async fn received(&mut self) {
        if self.0.changed().await.is_err() {
            pending().await
        }
    }
}
