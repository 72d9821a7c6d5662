//! How often a refusal may cost a login when nothing proves that the token is at fault.
//! Numbers only; times are milliseconds since the session began.

use super::judgement::Millis;

const SECOND: Millis = 1000;
const MINUTE: Millis = 60 * SECOND;
const HOUR: Millis = 60 * MINUTE;
/// Fruitless logins are forgotten after this long without another one.
const FORGET_AFTER: Millis = 2 * HOUR;

/// What speaks against a token. Later ones are stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Evidence {
    /// A path refused it that has never accepted it.
    UnseenPath,
    /// Several such paths in a row, and nothing was accepted in between.
    SeveralPaths,
    /// A path refused it that had accepted it before.
    ChangedMind,
}

impl Evidence {
    /// The pause after one fruitless login, and the longest after many.
    const fn pauses(self) -> [Millis; 2] {
        match self {
            Self::UnseenPath => [5 * MINUTE, 30 * MINUTE],
            Self::SeveralPaths => [30 * SECOND, 5 * MINUTE],
            Self::ChangedMind => [2 * SECOND, MINUTE],
        }
    }

    /// The pause after `fruitless` logins that were refused like the ones before them.
    pub(super) fn pause(self, fruitless: u32) -> Millis {
        let [first, longest] = self.pauses();
        match fruitless.checked_sub(1) {
            None => 0,
            Some(doubled) => longest.min(first << doubled.min(16)),
        }
    }
}

/// Logins that a refusal may cause: half of the hourly budget, a few at once. The other
/// half stays for renewals, whatever clients provoke.
#[derive(Debug)]
pub(super) struct SpeculationPacer {
    capacity: u32,
    /// Time in which one permit comes back.
    refill: Millis,
    /// Permits spent, in units of `refill`: when the last of them will be back.
    full_at: Millis,
    fruitless: u32,
    last_fruitless: Millis,
}

impl SpeculationPacer {
    /// `sharers`: gates that share one login and its budget.
    pub(super) fn new(logins_per_hour: u32, sharers: u32) -> Self {
        let mut pacer = Self {
            capacity: 0,
            refill: 0,
            full_at: 0,
            fruitless: 0,
            last_fruitless: 0,
        };
        pacer.resize(logins_per_hour, sharers);
        pacer
    }

    /// Other settings; what was spent stays spent.
    pub(super) fn resize(&mut self, logins_per_hour: u32, sharers: u32) {
        self.capacity = (logins_per_hour / 4).clamp(1, 10);
        let half = Millis::from(logins_per_hour.max(2) / 2);
        self.refill = (HOUR / half.max(1)).saturating_mul(Millis::from(sharers.max(1)));
    }

    /// How long until such evidence may cause a login; 0: it may now.
    pub(super) fn wait(&self, evidence: Evidence, now: Millis) -> Millis {
        let fruitless = match now.saturating_sub(self.last_fruitless) > FORGET_AFTER {
            true => 0,
            false => self.fruitless,
        };
        let paused_until = self.last_fruitless + evidence.pause(fruitless);
        let paused = match fruitless {
            0 => 0,
            _ => paused_until.saturating_sub(now),
        };
        paused.max(self.permit_wait(now))
    }

    fn permit_wait(&self, now: Millis) -> Millis {
        let owed = self.full_at.saturating_sub(now);
        let room = self.refill.saturating_mul(Millis::from(self.capacity - 1));
        owed.saturating_sub(room)
    }

    /// A login was begun because of a refusal.
    pub(super) fn spend(&mut self, now: Millis) {
        self.full_at = self.full_at.max(now).saturating_add(self.refill);
    }

    /// The token of that login was refused where the one before it was.
    pub(super) fn was_fruitless(&mut self, now: Millis) {
        if now.saturating_sub(self.last_fruitless) > FORGET_AFTER {
            self.fruitless = 0;
        }
        self.fruitless = self.fruitless.saturating_add(1);
        self.last_fruitless = now;
    }

    /// A login helped, or the operator has changed something: pauses begin anew.
    pub(super) fn forget_fruitless(&mut self) {
        self.fruitless = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_speculation_is_free_and_fruitless_ones_are_spaced_out() {
        let mut pacer = SpeculationPacer::new(120, 1);
        for evidence in [
            Evidence::UnseenPath,
            Evidence::SeveralPaths,
            Evidence::ChangedMind,
        ] {
            assert_eq!(pacer.wait(evidence, 0), 0);
        }
        pacer.spend(0);
        pacer.was_fruitless(10);
        assert_eq!(pacer.wait(Evidence::UnseenPath, 10), 5 * MINUTE);
        assert_eq!(pacer.wait(Evidence::ChangedMind, 10), 2 * SECOND);
        for _ in 0..40 {
            pacer.was_fruitless(20);
        }
        assert_eq!(pacer.wait(Evidence::UnseenPath, 20), 30 * MINUTE);
        assert_eq!(pacer.wait(Evidence::SeveralPaths, 20), 5 * MINUTE);
        assert_eq!(pacer.wait(Evidence::ChangedMind, 20), MINUTE);
        assert_eq!(pacer.wait(Evidence::UnseenPath, 20 + 121 * MINUTE), 0);
        pacer.forget_fruitless();
        assert_eq!(pacer.wait(Evidence::UnseenPath, 20), 0);
    }

    #[test]
    fn refusals_never_take_more_than_half_of_the_budget() {
        for per_hour in [1, 2, 3, 10, 120, 36_000] {
            let mut pacer = SpeculationPacer::new(per_hour, 1);
            let (mut now, mut spent) = (0, 0_u32);
            while now < HOUR {
                match pacer.wait(Evidence::ChangedMind, now) {
                    0 => {
                        pacer.spend(now);
                        spent += 1;
                    }
                    wait => now += wait,
                }
            }
            let most = per_hour / 2 + (per_hour / 4).clamp(1, 10);
            assert!(spent <= most.max(2), "{per_hour}: {spent}");
            assert!(spent >= 1);
        }
    }

    #[test]
    fn gates_that_share_a_login_share_what_refusals_may_cost() {
        let (mut alone, mut one_of_three) =
            (SpeculationPacer::new(40, 1), SpeculationPacer::new(40, 3));
        for pacer in [&mut alone, &mut one_of_three] {
            for _ in 0..10 {
                pacer.spend(0);
            }
        }
        let wait = |pacer: &SpeculationPacer| pacer.wait(Evidence::ChangedMind, 0);
        assert_eq!(3 * wait(&alone), wait(&one_of_three));
    }
}
