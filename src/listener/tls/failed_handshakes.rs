//! TLS handshakes that failed: who and why, in the log. One line in ten seconds a worker at
//! level info, with the number of those that had none; all of them at level debug, and in
//! `tollgate_connection_failures_total`. Strangers can fail as often as they like.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, info};

const TOLD_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(in crate::listener) struct FailedHandshakes(Mutex<FailureLogState>);

#[derive(Debug, Default)]
struct FailureLogState {
    last: Option<Instant>,
    /// Failures since then that had no line.
    left_out: u64,
}

impl FailedHandshakes {
    pub(in crate::listener) fn tell(&self, peer: SocketAddr, why: &dyn fmt::Display) {
        match self.turn() {
            Some(left_out) => info!(%peer, %why, left_out, "TLS handshake failed"),
            None => debug!(%peer, %why, "TLS handshake failed"),
        }
    }

    /// How many had no line, when the next one may have one.
    fn turn(&self) -> Option<u64> {
        let mut told = self.0.lock();
        let now = Instant::now();
        if told.last.is_some_and(|last| now - last < TOLD_EVERY) {
            told.left_out += 1;
            return None;
        }
        told.last = Some(now);
        Some(std::mem::take(&mut told.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_failures_is_one_line_in_ten_seconds() {
        let failed = FailedHandshakes::default();
        let turns: Vec<_> = (0..5).map(|_| failed.turn()).collect();
        assert_eq!(turns, [Some(0), None, None, None, None]);
        tokio::time::advance(TOLD_EVERY).await;
        assert_eq!((failed.turn(), failed.turn()), (Some(4), None));
    }
}
