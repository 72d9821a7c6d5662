//! The upstream permit of a request while its bodies move. A permit stands for work at the
//! upstream: while a stream waits for its client, its permit is returned, and the stream keeps only
//! a slot among the stalled streams. The watchdog of each worker samples its streams four times a
//! second.

use std::time::Duration;

use crate::upstream::{PermitTimeout, StalledPlace, UpstreamPermit};

/// Time between two samples of a stream.
pub(super) const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// A stream lags when samples that found it waiting for its client outnumber the others by this.
const LAGGING_SAMPLES: u8 = 2;

/// The upstream permit of a request, or what replaced it.
#[derive(Debug)]
pub(in crate::pipeline) enum PermitState {
    Held(UpstreamPermit),
    /// The client is slow: the permit was returned, and the stream has a slot among the stalled ones.
    Stalled(StalledPlace),
    /// The request's body holds the permit.
    InBody,
}

/// Whether a stream waits for its client most of the time, from samples.
#[derive(Debug, Default)]
pub(super) struct ClientLag(u8);

/// The outcome of returning the permit of a stream whose client is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParkOutcome {
    /// The stream holds no permit any more.
    Parked,
    /// The client has its share of stalled streams; no other request waits for a permit.
    Kept,
    /// The client has its share of stalled streams, and another request waits for a permit.
    MustEnd,
}

impl PermitState {
    /// Returns the permit, and takes a slot among the stalled streams in exchange.
    pub(super) fn park(&mut self) -> ParkOutcome {
        let permit = match std::mem::replace(self, Self::InBody) {
            Self::Held(permit) => permit,
            other => {
                *self = other;
                return ParkOutcome::Parked;
            }
        };
        match permit.park() {
            Ok(slot) => {
                *self = Self::Stalled(slot);
                ParkOutcome::Parked
            }
            Err(permit) => {
                let is_wanted = permit.is_wanted_by_others();
                *self = Self::Held(permit);
                match is_wanted {
                    true => ParkOutcome::MustEnd,
                    false => ParkOutcome::Kept,
                }
            }
        }
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self, Self::Held(_))
    }

    /// Whether ending the stalled stream `other` would free a slot for this stream.
    pub(super) fn can_take_slot_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Held(permit), Self::Stalled(slot)) => permit.is_of_client(slot),
            _ => false,
        }
    }

    /// Waits for a permit again; None unless the permit was returned.
    pub(super) fn reacquire(
        &self,
    ) -> Option<impl Future<Output = Result<UpstreamPermit, PermitTimeout>> + use<>> {
        match self {
            Self::Stalled(slot) => Some(slot.resume()),
            Self::Held(_) | Self::InBody => None,
        }
    }
}

impl ClientLag {
    /// Counts one sample; true when the stream lags and its permit is to be returned.
    pub(super) fn sample(&mut self, is_waiting_for_client: bool) -> bool {
        self.0 = match is_waiting_for_client {
            true => LAGGING_SAMPLES.min(self.0 + 1),
            false => self.0.saturating_sub(1),
        };
        self.0 == LAGGING_SAMPLES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_lags_when_most_samples_find_it_waiting_for_its_client() {
        let mut lag = ClientLag::default();
        assert!(!lag.sample(true));
        assert!(!lag.sample(false));
        assert!(!lag.sample(true));
        assert!(lag.sample(true));
        assert!(!lag.sample(false));
        assert!(lag.sample(true));
    }
}
