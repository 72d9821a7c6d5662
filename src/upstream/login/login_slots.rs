//! Spreads the logins of a gate with many upstreams, so that a start with a thousand of them does not
//! make a thousand TLS connections at once.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Logins at once, of all upstreams; slow ones do not count.
const MAX_AT_ONCE: usize = 64;
/// A login that takes longer passes its slot on, so that upstreams that hang do not delay the logins of
/// the others.
const MAX_TIME: Duration = Duration::from_secs(1);

/// The slots of all logins of the process. Clones share them.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct UpstreamLoginSlots(Arc<Semaphore>);

/// The slot of one login.
#[derive(Debug)]
pub(super) struct UpstreamLoginSlot {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Default for UpstreamLoginSlots {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_AT_ONCE)))
    }
}

impl UpstreamLoginSlots {
    /// Waits for a slot; first come, first served.
    pub(super) async fn next(&self) -> UpstreamLoginSlot {
        // Never fails: the semaphore is not closed.
        let permit = Arc::clone(&self.0).acquire_owned().await.ok();
        UpstreamLoginSlot { _permit: permit }
    }
}

impl UpstreamLoginSlot {
    /// Logs in, and keeps the slot until the end, or for `MAX_TIME`.
    pub(super) async fn hold_during<F: Future>(self, mut login: Pin<&mut F>) -> F::Output {
        if let Ok(outcome) = timeout(MAX_TIME, login.as_mut()).await {
            return outcome;
        }
        drop(self);
        login.await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;

    use futures_util::future::join_all;
    use tokio::time::{Instant, sleep};

    use super::*;

    /// The most logins at once, and how long `count` of them took.
    async fn log_in(slots: &UpstreamLoginSlots, count: usize, each: Duration) -> (usize, Duration) {
        let (running, max) = (Cell::new(0), Cell::new(0));
        let begin = Instant::now();
        let one = async || {
            let slot = slots.next().await;
            running.set(running.get() + 1);
            max.set(max.get().max(running.get()));
            slot.hold_during(pin!(sleep(each))).await;
            running.set(running.get() - 1);
        };
        join_all((0..count).map(|_| one())).await;
        (max.get(), begin.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_logins_are_spread() {
        let each = Duration::from_millis(100);
        let (max, took) = log_in(&UpstreamLoginSlots::default(), 1000, each).await;
        assert_eq!(max, MAX_AT_ONCE);
        assert_eq!(took, each * 16);
    }

    #[tokio::test(start_paused = true)]
    async fn logins_that_hang_pass_their_slot_on() {
        let slots = UpstreamLoginSlots::default();
        let hanging = log_in(&slots, MAX_AT_ONCE, Duration::from_secs(30));
        let other = async {
            sleep(Duration::from_millis(10)).await;
            let begin = Instant::now();
            slots.next().await.hold_during(pin!(async {})).await;
            begin.elapsed()
        };
        let (_, waited) = tokio::join!(hanging, other);
        assert!(waited <= MAX_TIME, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_costs_no_slot() {
        let slots = UpstreamLoginSlots::default();
        let held = join_all((0..MAX_AT_ONCE).map(|_| slots.next())).await;
        let brief = Duration::from_millis(1);
        assert!(timeout(brief, slots.next()).await.is_err());
        drop(held);
        let all = join_all((0..MAX_AT_ONCE).map(|_| slots.next()));
        assert!(timeout(brief, all).await.is_ok());
    }
}
