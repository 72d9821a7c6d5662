//! What the gauges say about a session, or about those of all endpoints of an upstream.

use crate::metrics::UpstreamMetrics;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct SessionReading {
    /// A request would get a token.
    pub(in crate::upstream) is_up: bool,
    /// Of the token that lasts longest; 0: there is none.
    pub(in crate::upstream) seconds_to_expiry: u64,
    /// Tokens that this process has obtained and that have not expired.
    pub(in crate::upstream) live_tokens: usize,
}

impl SessionReading {
    /// Of two endpoints: up if one is, the earlier end, the sum of the tokens.
    pub(in crate::upstream) fn and(self, other: Self) -> Self {
        Self {
            is_up: self.is_up || other.is_up,
            seconds_to_expiry: self.seconds_to_expiry.min(other.seconds_to_expiry),
            live_tokens: self.live_tokens + other.live_tokens,
        }
    }

    pub(in crate::upstream) fn show(self, metrics: &UpstreamMetrics) {
        metrics.session_up.set(i64::from(self.is_up));
        let seconds = i64::try_from(self.seconds_to_expiry);
        metrics
            .session_seconds_to_expiry
            .set(seconds.unwrap_or(i64::MAX));
        let tokens = i64::try_from(self.live_tokens);
        metrics.session_live_tokens.set(tokens.unwrap_or(i64::MAX));
    }
}
