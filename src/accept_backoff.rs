//! Back-off of a loop that accepts connections, for every listening socket of the program.

use std::io::{self, ErrorKind};
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use crate::backoff::Backoff;

const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(10),
    max: Duration::from_secs(1),
    jitter: 0.0,
};

/// How long an accept loop waits after an error. The most likely cause is the limit of open
/// files, and it passes when other connections end.
#[derive(Debug)]
pub struct AcceptBackoff {
    /// Names the listening socket in the log.
    listener: &'static str,
    /// Errors since the last connection was accepted.
    failures: u32,
}

impl AcceptBackoff {
    pub fn new(listener: &'static str) -> Self {
        Self {
            listener,
            failures: 0,
        }
    }

    /// Notes that a connection was accepted.
    pub fn succeeded(&mut self) {
        if std::mem::take(&mut self.failures) > 0 {
            info!(listener = self.listener, "accepting connections again");
        }
    }

    /// Waits after `error`, longer each time. The first error of a series is logged. An error
    /// that concerns only the connection being accepted causes no wait.
    pub async fn failed(&mut self, error: &io::Error) {
        if is_of_one_connection(error) {
            return;
        }
        let pause = self.next(error);
        sleep(pause).await;
    }

    fn next(&mut self, error: &io::Error) -> Duration {
        if self.failures == 0 {
            warn!(
                listener = self.listener,
                %error,
                "cannot accept connections; is the limit of open files too low?"
            );
        }
        self.failures = self.failures.saturating_add(1);
        BACKOFF.pause(self.failures)
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_second_and_starts_over_after_a_success() {
        let mut backoff = AcceptBackoff::new("test");
        let out_of_files = io::Error::from_raw_os_error(24);
        let waits: Vec<_> = (0..9).map(|_| backoff.next(&out_of_files)).collect();
        assert_eq!(waits[..3], [10, 20, 40].map(Duration::from_millis));
        assert_eq!(waits[8], BACKOFF.max);
        backoff.succeeded();
        assert_eq!(backoff.next(&out_of_files), BACKOFF.first);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_of_one_connection_causes_no_wait() {
        let mut backoff = AcceptBackoff::new("test");
        let start = tokio::time::Instant::now();
        for kind in [ErrorKind::ConnectionAborted, ErrorKind::Interrupted] {
            backoff.failed(&kind.into()).await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        backoff.failed(&ErrorKind::OutOfMemory.into()).await;
        assert!(start.elapsed() >= BACKOFF.first);
    }
}
