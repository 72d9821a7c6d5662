//! What all nodes of the emulated Webapp share.

use tokio::time::Instant;

use super::counts::RequestCounts;
use super::directory::EmulatedUsers;
use super::faults::{FaultSwitches, Switches};
use super::issued_tokens::IssuedTokens;
use crate::clock;
use crate::secret::Secret;

/// Users, tokens, faults and counters. Lost when the emulator stops.
pub(super) struct WebappState {
    pub directory: EmulatedUsers,
    pub tokens: IssuedTokens,
    pub faults: FaultSwitches,
    pub counts: RequestCounts,
    pub api_key: Option<Secret>,
    pub started: Instant,
}

impl WebappState {
    /// The time on the emulated Webapp's own clock, which may be wrong.
    pub(super) fn now(&self, switches: &Switches) -> i64 {
        clock::unix_seconds().saturating_add(switches.clock_offset_seconds)
    }
}
