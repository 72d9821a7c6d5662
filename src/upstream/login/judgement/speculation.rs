//! How often refusals may cause logins while it is unproven that the token is at fault. Pure; times are
//! milliseconds since the session began.

use super::Millis;

pub(crate) const SECOND: Millis = 1000;
pub(crate) const MINUTE: Millis = 60 * SECOND;
pub(crate) const HOUR: Millis = 60 * MINUTE;
/// The count of fruitless logins is reset after this long without another one.
const FORGET_AFTER: Millis = 2 * HOUR;

/// The interval between consecutive logins caused by refusals: doubled each time, from the first value
/// up to the second. An upstream whose nodes accept tokens late needs time, not a newer token.
const APART: [Millis; 2] = [SECOND, MINUTE];
/// Logins count as consecutive if there is less than this between them.
const IN_A_ROW: Millis = 2 * MINUTE;

/// The evidence against a token, from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RefusalEvidence {
    /// A path refused it that has never accepted it.
    UnseenPath,
    /// Several such paths in a row, with no accepted request in between.
    SeveralPaths,
    /// A path refused it that had accepted it before.
    ChangedMind,
    /// The same for several paths, and no request was accepted for a minute.
    NothingAccepted,
}

impl RefusalEvidence {
    /// The pause after one fruitless login, and the longest after many.
    const fn pauses(self) -> [Millis; 2] {
        match self {
            Self::UnseenPath => [5 * MINUTE, 30 * MINUTE],
            Self::SeveralPaths => [30 * SECOND, 5 * MINUTE],
            Self::ChangedMind | Self::NothingAccepted => [2 * SECOND, MINUTE],
        }
    }

    /// The pause after `fruitless` logins that were refused like the ones before them.
    pub(crate) fn pause(self, fruitless: u32) -> Millis {
        let [first, longest] = self.pauses();
        match fruitless.checked_sub(1) {
            None => 0,
            Some(doubled) => longest.min(first << doubled.min(16)),
        }
    }
}

/// The share of the hourly budget that refusals may use: half of it, a part of that at once. The other
/// half is kept for renewals, whatever clients provoke.
#[derive(Debug)]
pub(crate) struct SpeculationPacer {
    capacity: u32,
    /// The time in which one permit is refilled.
    refill: Millis,
    /// When the last of the spent permits will have been refilled.
    full_at: Millis,
    in_a_row: u32,
    last: Millis,
    fruitless: u32,
    last_fruitless: Millis,
}

impl SpeculationPacer {
    /// `sharers`: gateways that share one login and its budget.
    pub(crate) fn new(logins_per_hour: u32, sharers: u32) -> Self {
        let mut pacer = Self {
            capacity: 0,
            refill: 0,
            full_at: 0,
            in_a_row: 0,
            last: 0,
            fruitless: 0,
            last_fruitless: 0,
        };
        pacer.resize(logins_per_hour, sharers);
        pacer
    }

    /// Applies other settings; spent permits stay spent.
    pub(crate) fn resize(&mut self, logins_per_hour: u32, sharers: u32) {
        let sharers = sharers.max(1);
        let burst = (logins_per_hour / 4).clamp(1, 10);
        // Both together are at most half in any hour, and a spent share is refilled in parts.
        let per_hour = (logins_per_hour / 2).saturating_sub(burst).max(1);
        self.capacity = (burst / sharers).max(1);
        self.refill = (HOUR / Millis::from(per_hour)).saturating_mul(Millis::from(sharers));
    }

    /// The wait until such evidence may cause a login; 0: now.
    pub(crate) fn wait(&self, evidence: RefusalEvidence, now: Millis) -> Millis {
        self.pause(evidence, now).max(self.permit_wait(now))
    }

    /// The same without the limit of the share.
    pub(crate) fn pause(&self, evidence: RefusalEvidence, now: Millis) -> Millis {
        let fruitless = match now.saturating_sub(self.last_fruitless) > FORGET_AFTER {
            true => 0,
            false => self.fruitless,
        };
        let paused_until = self.last_fruitless + evidence.pause(fruitless);
        let paused = match fruitless {
            0 => 0,
            _ => paused_until.saturating_sub(now),
        };
        paused.max(self.distance(now))
    }

    fn distance(&self, now: Millis) -> Millis {
        let [first, longest] = APART;
        match self.in_a_row.checked_sub(1) {
            Some(_) if now.saturating_sub(self.last) > IN_A_ROW => 0,
            Some(doubled) => {
                (self.last + longest.min(first << doubled.min(16))).saturating_sub(now)
            }
            None => 0,
        }
    }

    fn permit_wait(&self, now: Millis) -> Millis {
        let owed = self.full_at.saturating_sub(now);
        let room = self.refill.saturating_mul(Millis::from(self.capacity - 1));
        owed.saturating_sub(room)
    }

    /// A refusal has caused a login.
    pub(crate) fn spend(&mut self, now: Millis) {
        self.full_at = self.full_at.max(now).saturating_add(self.refill);
        if now.saturating_sub(self.last) > IN_A_ROW {
            self.in_a_row = 0;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.last = now;
    }

    /// The token of that login was refused in the same place.
    pub(crate) fn was_fruitless(&mut self, now: Millis) {
        if now.saturating_sub(self.last_fruitless) > FORGET_AFTER {
            self.fruitless = 0;
        }
        self.fruitless = self.fruitless.saturating_add(1);
        self.last_fruitless = now;
    }

    /// A login has helped.
    pub(crate) fn forget_fruitless(&mut self) {
        self.fruitless = 0;
    }

    /// The operator has acted: all pauses begin anew.
    pub(crate) fn forget_pauses(&mut self) {
        self.fruitless = 0;
        self.in_a_row = 0;
    }
}
