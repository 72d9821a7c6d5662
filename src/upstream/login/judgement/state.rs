//! The state of the judgement and its rules. `judgement/mod.rs` has the interface, docs/LOGIN.md
//! describes the rules.

use super::accepted_paths::PathKey;
use super::refused_paths::{RefusedPaths, RefusedRequest};
use super::speculation::{RefusalEvidence, SpeculationPacer};
use super::{
    LeaseChoice, LeaseFacts, LeaseSuspicion, LoginCause, Millis, RetryStep, SettledOutcome,
    YOUNG_PAUSE,
};

/// A token this old is known to all nodes of the upstream.
const MATURE: Millis = 60_000;
/// How long the previous lease serves as fallback where a new one is refused.
const FALLBACK_FOR: Millis = 120_000;
/// How long it is preferred for requests that cannot be sent again.
const PREFERRED_FOR: Millis = 30_000;
/// How long one request may be the only one that tries a candidate.
const TRIAL_LIMIT: Millis = 2_000;
/// Pauses between refusals that count against a candidate: those by paths that accept the
/// lease in use. One more after the last pause, and the candidate is given up.
const TRIAL_PAUSES: [Millis; 5] = [500, 1_000, 2_000, 4_000, 8_000];
/// How long a positive probe verdict counts for paths that have never accepted a token.
const CLEARED_FOR: Millis = 1_000;

#[derive(Clone, Copy, Debug)]
pub(super) struct CandidateLease {
    pub(crate) facts: LeaseFacts,
    pub(super) trial_until: Millis,
    pub(crate) refusals: usize,
    /// Before this it is not tried again, and refusals do not count.
    pub(super) rests_until: Millis,
}

impl CandidateLease {
    pub(crate) fn new(facts: LeaseFacts) -> Self {
        Self {
            facts,
            trial_until: 0,
            refusals: 0,
            rests_until: 0,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct FallbackLease {
    pub(crate) generation: u64,
    pub(crate) until: Millis,
    /// Until then it is used for requests that cannot be sent again, because all nodes accept it.
    pub(super) preferred_until: Millis,
}

/// The last time the probe accepted a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProbeClearance {
    pub(crate) generation: u64,
    pub(crate) at: Millis,
}

#[derive(Debug)]
pub(super) struct JudgementState {
    pub(crate) single_active: bool,
    /// Whether the renewer can probe a token.
    pub(crate) has_probe: bool,
    pub(crate) current: Option<LeaseFacts>,
    pub(crate) candidate: Option<CandidateLease>,
    /// The previous lease.
    pub(crate) fallback: Option<FallbackLease>,
    /// The newest generation that was accepted by a request or by the probe.
    pub(crate) proven: u64,
    /// When the lease in use was last seen accepted; recorded only while a decision is open.
    pub(super) accepted_at: Millis,
    pub(crate) refused: RefusedPaths,
    pub(crate) suspicion: Option<LeaseSuspicion>,
    pub(super) cleared: Option<ProbeClearance>,
    /// The last generation whose refusal was counted as fruitless.
    pub(super) fruitless: u64,
    pub(crate) pacer: SpeculationPacer,
}

impl JudgementState {
    pub(crate) fn new(single_active: bool, pacer: SpeculationPacer) -> Self {
        Self {
            single_active,
            has_probe: false,
            current: None,
            candidate: None,
            fallback: None,
            proven: 0,
            accepted_at: 0,
            refused: RefusedPaths::default(),
            suspicion: None,
            cleared: None,
            fruitless: 0,
            pacer,
        }
    }

    /// `is_old_good`: there is no evidence against the previous lease.
    pub(super) fn replace_current(&mut self, facts: LeaseFacts, is_old_good: bool, now: Millis) {
        let old = self.current.replace(facts);
        self.candidate = None;
        self.cleared = None;
        self.fallback = match old {
            Some(old) if !self.single_active => Some(FallbackLease {
                generation: old.generation,
                until: now + FALLBACK_FOR,
                preferred_until: match is_old_good {
                    true => now + PREFERRED_FOR,
                    false => 0,
                },
            }),
            _ => None,
        };
    }

    /// `was_refused`: the same request was refused with another token before.
    pub(crate) fn accepted(
        &mut self,
        path: PathKey,
        generation: u64,
        was_refused: bool,
        now: Millis,
    ) -> SettledOutcome {
        if let Some(candidate) = self.candidate
            && candidate.facts.generation == generation
        {
            self.suspicion = None;
            // A path that refused the old lease says nothing good about it.
            let is_healed = was_refused || self.refused.accepted(path).is_some();
            if was_refused {
                // The login was not fruitless.
                self.pacer.forget_fruitless();
            }
            self.replace_current(candidate.facts, !is_healed, now);
            self.proven = self.proven.max(generation);
            self.refused.forget_recent(now);
            return SettledOutcome::Promoted(generation);
        }
        if self
            .current
            .is_none_or(|current| current.generation != generation)
        {
            return SettledOutcome::Nothing;
        }
        self.proven = self.proven.max(generation);
        self.accepted_at = now;
        let refused_last = self.refused.accepted(path);
        let Some(candidate) = &mut self.candidate else {
            return SettledOutcome::Nothing;
        };
        if refused_last != Some(candidate.facts.generation) {
            return SettledOutcome::Nothing;
        }
        candidate.trial_until = now;
        if now < candidate.rests_until {
            return SettledOutcome::Nothing;
        }
        candidate.refusals += 1;
        if let Some(pause) = TRIAL_PAUSES.get(candidate.refusals - 1) {
            candidate.rests_until = now + pause;
            return SettledOutcome::Nothing;
        }
        let rejected = candidate.facts.generation;
        self.candidate = None;
        SettledOutcome::Rejected(rejected)
    }

    /// Whether requests have more than one lease to choose from.
    pub(crate) fn has_choice(&self, now: Millis) -> bool {
        let is_preferred = |fallback: &FallbackLease| now < fallback.preferred_until;
        self.candidate.is_some() || self.fallback.as_ref().is_some_and(is_preferred)
    }

    pub(crate) fn choose(&mut self, path: PathKey, can_repeat: bool, now: Millis) -> LeaseChoice {
        let is_refusing = self.refused.is_refusing(path);
        let Some(candidate) = &mut self.candidate else {
            let is_preferred = |fallback: &FallbackLease| now < fallback.preferred_until;
            return match self.fallback.filter(is_preferred) {
                Some(fallback) if !can_repeat && !is_refusing => {
                    LeaseChoice::Fallback(fallback.generation)
                }
                _ => LeaseChoice::Current,
            };
        };
        if is_refusing {
            return LeaseChoice::Candidate(candidate.facts.generation);
        }
        if !can_repeat || now < candidate.rests_until.max(candidate.trial_until) {
            return LeaseChoice::Current;
        }
        candidate.trial_until = now + TRIAL_LIMIT;
        LeaseChoice::Candidate(candidate.facts.generation)
    }

    pub(crate) fn next_step(
        &mut self,
        request: &mut RefusedRequest,
        is_known: bool,
        now: Millis,
    ) -> RetryStep {
        if request.is_exhausted() {
            return RetryStep::Upheld;
        }
        let Some(current) = self.current else {
            return RetryStep::AwaitLease;
        };
        if !request.has_tried(current.generation) {
            return RetryStep::Again(current.generation);
        }
        if self.refused.is_habitual(request.path, now) {
            return RetryStep::Upheld;
        }
        let candidate = self.candidate.map(|candidate| candidate.facts);
        if let Some(candidate) = candidate
            && !request.has_tried(candidate.generation)
        {
            return RetryStep::Again(candidate.generation);
        }
        if let Some(fallback) = self.fallback
            && now < fallback.until
            && request.can_repeat
            && !request.has_tried(fallback.generation)
        {
            return RetryStep::Again(fallback.generation);
        }
        // The newest token was obtained after the refusals began and is refused too: this path refuses any
        // token.
        let newest = candidate.unwrap_or(current);
        let may_be_early = newest.is_young(now) && !request.has_repeated(newest.generation);
        let since = self.refused.since(request.path).unwrap_or(now);
        let since = since.min(request.since);
        if newest.began > since {
            if may_be_early {
                return RetryStep::AgainAfter(YOUNG_PAUSE, newest.generation);
            }
            self.refused.note_habit(request.path, is_known, now);
            self.count_fruitless(newest, now);
            return RetryStep::Upheld;
        }
        self.doubt(request, newest, is_known, now)
    }

    /// The token may be dead: asks the renewer to probe it or to log in, if the pauses allow it.
    fn doubt(
        &mut self,
        request: &mut RefusedRequest,
        newest: LeaseFacts,
        is_known: bool,
        now: Millis,
    ) -> RetryStep {
        let generation = newest.generation;
        let has_repeated = request.has_repeated(generation);
        if self.is_cleared(request, generation, is_known) {
            return match (has_repeated, newest.is_young(now), is_known) {
                (false, true, _) => RetryStep::AgainAfter(YOUNG_PAUSE, generation),
                (false, false, true) => RetryStep::Again(generation),
                (_, _, true) => RetryStep::Upheld,
                (_, _, false) => {
                    self.refused.note_habit(request.path, false, now);
                    RetryStep::Upheld
                }
            };
        }
        let evidence = match (is_known, self.refused.is_streak()) {
            (true, _) if self.refused.is_everything_refused(now) => {
                RefusalEvidence::NothingAccepted
            }
            (true, _) => RefusalEvidence::ChangedMind,
            (false, true) => RefusalEvidence::SeveralPaths,
            (false, false) => RefusalEvidence::UnseenPath,
        };
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.evidence = suspicion.evidence.max(evidence);
            request.asked = Some(generation);
            return RetryStep::Await;
        }
        let wait = self.login_wait(generation, evidence, now);
        // A path that has never accepted a token most likely refuses this request; a login would not help.
        let postponed = match is_known {
            true => RetryStep::Postponed(wait),
            false => RetryStep::Upheld,
        };
        if request.asked == Some(generation) {
            return postponed;
        }
        if !self.has_probe {
            if newest.is_young(now) && !has_repeated {
                return RetryStep::AgainAfter(YOUNG_PAUSE, generation);
            }
            // A single refusal may be that of one node.
            if is_known && (!has_repeated || self.refused.count(request.path) < 2) {
                return RetryStep::Again(generation);
            }
            if wait > 0 {
                return postponed;
            }
        }
        request.asked = Some(generation);
        self.suspicion = Some(LeaseSuspicion {
            generation,
            evidence,
        });
        RetryStep::Await
    }

    /// Applies to the lease in use and to the candidate only.
    pub(crate) fn is_dead(&self, generation: u64, since: Millis) -> bool {
        let candidate = self.candidate.map(|candidate| candidate.facts);
        let facts = [self.current, candidate].into_iter().flatten();
        let mut facts = facts.filter(|facts| facts.generation == generation);
        let is_mature = |facts: LeaseFacts| since.saturating_sub(facts.obtained) >= MATURE;
        facts.next().is_some_and(is_mature) && self.accepted_at < since
    }

    /// The probe accepted this generation.
    pub(crate) fn clear(&mut self, generation: u64, now: Millis) {
        self.suspicion = None;
        self.proven = self.proven.max(generation);
        self.cleared = Some(ProbeClearance {
            generation,
            at: now,
        });
    }

    /// How long until a refusal of this token may cause a login; 0: now. Logins for a token
    /// that nothing accepts are paced by the renewer, as failed ones are.
    pub(crate) fn login_wait(
        &self,
        generation: u64,
        evidence: RefusalEvidence,
        now: Millis,
    ) -> Millis {
        match self.is_at_stake(generation, evidence) {
            true => self.pacer.wait(evidence, now),
            false => self.pacer.pause(evidence, now),
        }
    }

    /// Whether this token may still work for some clients, so that refusals may use only their
    /// share of the login budget.
    pub(crate) fn is_at_stake(&self, generation: u64, evidence: RefusalEvidence) -> bool {
        self.proven >= generation && evidence != RefusalEvidence::NothingAccepted
    }

    fn is_cleared(&self, request: &RefusedRequest, generation: u64, is_known: bool) -> bool {
        let fresh_enough = match is_known {
            true => 0,
            false => CLEARED_FOR,
        };
        self.cleared.is_some_and(|cleared| {
            cleared.generation == generation && cleared.at + fresh_enough >= request.since
        })
    }

    fn count_fruitless(&mut self, facts: LeaseFacts, now: Millis) {
        if facts.cause != LoginCause::Renewal && facts.generation > self.fruitless {
            self.fruitless = facts.generation;
            self.pacer.was_fruitless(now);
        }
    }
}
