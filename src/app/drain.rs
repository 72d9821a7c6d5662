//! The drain: readiness off, a wait for load balancers to see it, then the end of the requests in
//! flight.

use std::time::Duration;

use tracing::{error, info, warn};

use super::{ControlParts, ExitOutcome, ShutdownHandle, worker};

/// For a worker to end after its requests were aborted.
const WORKER_END: Duration = Duration::from_secs(5);

impl ControlParts {
    pub(super) async fn drain(
        &self,
        workers: worker::WorkerThreads,
        steering: &ShutdownHandle,
    ) -> ExitOutcome {
        let settings = self.shared.live.load().config.drain.clone();
        let _draining = self.readiness.not_yet();
        let wait = match steering.skip_wait.is_cancelled() {
            true => Duration::ZERO,
            false => settings.wait,
        };
        info!(
            ?wait,
            deadline = ?settings.deadline,
            "draining: not ready from now on; accepts during the wait, then finishes what is in flight"
        );
        tokio::select! {
            () = tokio::time::sleep(settings.wait) => {}
            () = steering.skip_wait.cancelled() => {}
            () = steering.quit_now.cancelled() => {}
        }
        self.edge.drain();
        let mut all = std::pin::pin!(workers.ended());
        let ended = tokio::select! {
            clean = &mut all => Some(clean),
            () = tokio::time::sleep(settings.deadline) => None,
            () = steering.quit_now.cancelled() => None,
        };
        if ended.is_none() {
            let requests = self.metrics.requests_in_flight.get();
            warn!(
                requests,
                "drain was cut short; requests in flight are dropped"
            );
            self.edge.abort();
            // Dropping requests takes no time: a worker that has not ended by then is stuck.
            if tokio::time::timeout(WORKER_END, all).await.is_err() {
                let requests = self.metrics.requests_in_flight.get();
                error!(
                    requests,
                    "a worker does not end; its requests have no access line"
                );
            }
        }
        match (self.control.tasks.failed(), ended) {
            (0, Some(true)) => ExitOutcome::Clean,
            (0, None) => ExitOutcome::Cut,
            _ => ExitOutcome::Failed,
        }
    }

    pub(super) async fn end(&self) {
        self.control.stop.abort();
        if tokio::time::timeout(Duration::from_secs(5), self.control.tasks.wait())
            .await
            .is_err()
        {
            warn!("a background task did not end in time");
        }
        self.bootstrap.close().await;
        info!(requests = self.metrics.requests_ended(), "stopped");
    }
}
