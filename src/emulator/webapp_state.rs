//! What all nodes of the emulated Webapp share.

use tokio::time::Instant;

use super::counts::Counts;
use super::directory::Directory;
use super::faults::{Faults, Switches};
use super::issued_tokens::Tokens;
use crate::clock;
use crate::secret::Secret;

/// Users, tokens, faults and counters. Lost when the emulator stops.
pub(super) struct WebappState {
    pub directory: Directory,
    pub tokens: Tokens,
    pub faults: Faults,
    pub counts: Counts,
    pub api_key: Option<Secret>,
    pub started: Instant,
}

impl WebappState {
    /// The time on the emulated Webapp's own clock, which may be wrong.
    pub(super) fn now(&self, switches: &Switches) -> i64 {
        clock::unix_seconds().saturating_add(switches.clock_offset_seconds)
    }
}
