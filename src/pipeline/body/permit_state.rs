//! What a request holds at the upstream while its bodies move. A turn is for work: when
//! it is the client that a stream waits for, the turn goes back, and the stream keeps
//! only a place among the stalled ones. Each worker looks at its streams four times a
//! second.

use std::sync::Arc;
use std::time::Duration;

use super::upload::UploadState;
use crate::upstream::{PermitTimeout, StalledPlace, UpstreamPermit};

/// Between two looks at a stream.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);
/// So many more looks must find the stream waiting for its client than for the upstream.
const LOOKS: u8 = 2;

/// A turn at the upstream, or what is left of it.
#[derive(Debug)]
pub(in crate::pipeline) enum UpstreamTurn {
    Permit(UpstreamPermit),
    /// The client is slow, and the turn was given back.
    Stalled(StalledPlace),
    /// It lies with the request's body.
    Nothing,
}

/// A turn on its way down with the answer, and the upload that goes on beside it.
#[derive(Debug)]
pub(in crate::pipeline) struct AnswerTurn {
    pub(in crate::pipeline) turn: UpstreamTurn,
    pub(in crate::pipeline) upload: Option<Arc<UploadState>>,
}

impl AnswerTurn {
    /// The upstream waits for the rest of the client's body.
    pub(super) fn awaits_upload(&self) -> bool {
        self.upload
            .as_ref()
            .is_some_and(|upload| upload.is_clients_turn())
    }
}

/// Whether a stream waits for its client most of the time, from samples.
#[derive(Debug, Default)]
pub(super) struct ClientLag(u8);

/// What became of a turn whose client is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParkedTurn {
    Done,
    /// The client has its share of stalled streams, and no other request waits.
    Kept,
    /// The client has its share of stalled streams, and another request needs the turn.
    MustEnd,
}

impl UpstreamTurn {
    pub(super) fn park(&mut self) -> ParkedTurn {
        let permit = match std::mem::replace(self, Self::Nothing) {
            Self::Permit(permit) => permit,
            other => {
                *self = other;
                return ParkedTurn::Done;
            }
        };
        match permit.park() {
            Ok(place) => {
                *self = Self::Stalled(place);
                ParkedTurn::Done
            }
            Err(permit) => {
                let is_wanted = permit.is_wanted_by_others();
                *self = Self::Permit(permit);
                if is_wanted {
                    ParkedTurn::MustEnd
                } else {
                    ParkedTurn::Kept
                }
            }
        }
    }

    pub(super) fn is_permit(&self) -> bool {
        matches!(self, Self::Permit(_))
    }

    /// Whether the end of the stalled stream `other` would make room for this one.
    pub(super) fn would_gain_by(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Permit(permit), Self::Stalled(place)) => permit.is_of_client(place),
            _ => false,
        }
    }

    /// The turn again, where it was given back.
    pub(super) fn resumed(
        &self,
    ) -> Option<impl Future<Output = Result<UpstreamPermit, PermitTimeout>> + use<>> {
        match self {
            Self::Stalled(place) => Some(place.resume()),
            Self::Permit(_) | Self::Nothing => None,
        }
    }
}

impl ClientLag {
    /// Takes one look; true when the turn is to be given back.
    pub(super) fn check_stalled(&mut self, is_clients_turn: bool) -> bool {
        self.0 = if is_clients_turn {
            LOOKS.min(self.0 + 1)
        } else {
            self.0.saturating_sub(1)
        };
        self.0 == LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_lags_when_most_looks_find_it_waiting_for_its_client() {
        let mut lag = ClientLag::default();
        assert!(!lag.check_stalled(true));
        assert!(!lag.check_stalled(false));
        assert!(!lag.check_stalled(true));
        assert!(lag.check_stalled(true));
        assert!(!lag.check_stalled(false));
        assert!(lag.check_stalled(true));
    }
}
