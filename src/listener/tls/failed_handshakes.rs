//! Logs failed TLS handshakes with their peer and cause. Any stranger can cause failures, so level
//! info has at most one line in ten seconds per worker, with the number of failures left out;
//! level debug has all of them, and `tollgate_connection_failures_total` counts them.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, info};

const LOG_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(in crate::listener) struct FailedHandshakes(Mutex<FailureLogState>);

#[derive(Debug, Default)]
struct FailureLogState {
    last: Option<Instant>,
    /// Failures since then without a line.
    suppressed: u64,
}

impl FailedHandshakes {
    pub(in crate::listener) fn log(&self, peer: SocketAddr, cause: &dyn fmt::Display) {
        match self.next_line() {
            Some(suppressed) => info!(%peer, %cause, suppressed, "TLS handshake failed"),
            None => debug!(%peer, %cause, "TLS handshake failed"),
        }
    }

    /// If a line may be written now: how many failures had none since the last.
    fn next_line(&self) -> Option<u64> {
        let mut state = self.0.lock();
        let now = Instant::now();
        if state.last.is_some_and(|last| now - last < LOG_INTERVAL) {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_failures_has_one_line_in_ten_seconds() {
        let failed = FailedHandshakes::default();
        let lines: Vec<_> = (0..5).map(|_| failed.next_line()).collect();
        assert_eq!(lines, [Some(0), None, None, None, None]);
        tokio::time::advance(LOG_INTERVAL).await;
        assert_eq!((failed.next_line(), failed.next_line()), (Some(4), None));
    }
}
