//! The judgement of refused tokens: whether the token is at fault, which lease the request tries next,
//! and when a login is worth its cost. A lease that is accepted somewhere is replaced only by one that
//! was accepted.
//!
//! Pure: no clock, no sockets; times are milliseconds since the session began. docs/LOGIN.md describes
//! the rules. `tests/judgement_model.rs` runs them under loom, `upstream/tests/login_model/` against a
//! simulated upstream.

pub(crate) mod accepted_paths;
pub(crate) mod refused_paths;
pub(crate) mod speculation;
pub(crate) mod state;

use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering, lock};
use accepted_paths::{AcceptedPaths, PathKey};
use refused_paths::RefusedRequest;
use speculation::{RefusalEvidence, SpeculationPacer};
use state::{CandidateLease, FallbackLease, JudgementState};

pub(super) type Millis = u64;

/// Some nodes of the upstream may not accept a token younger than this yet.
pub(super) const YOUNG: Millis = 5_000;
/// The pause before a request tries a young token once more.
pub(super) const YOUNG_PAUSE: Millis = 500;
/// Why a login was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoginCause {
    /// There was no lease, or its renewal was due.
    Renewal,
    /// A token that is accepted elsewhere was refused.
    Refusal,
    /// A token was refused that no request has accepted yet, or none accepts any more.
    Unproven,
}

/// What the judgement needs to know of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseFacts {
    pub(crate) generation: u64,
    /// When the login that brought it began.
    pub(crate) began: Millis,
    /// When it was obtained.
    pub(super) obtained: Millis,
    pub(crate) cause: LoginCause,
}

impl LeaseFacts {
    pub(super) fn is_young(&self, now: Millis) -> bool {
        now.saturating_sub(self.obtained) < YOUNG
    }
}

/// What a new lease becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeasePlacement {
    /// In use by all requests from now on.
    Current,
    /// Tried by single requests until one is accepted.
    Candidate,
}

/// Which lease a request carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseChoice {
    Current,
    Candidate(u64),
    Fallback(u64),
}

/// What an accepted request decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SettledOutcome {
    Nothing,
    /// The candidate is the lease in use from now on.
    Promoted(u64),
    /// The candidate is rejected: it was refused where the lease in use is accepted.
    Rejected(u64),
}

/// What a refused request does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryStep {
    /// Sent again at once, with the lease of this generation.
    Again(u64),
    /// Sent again after a pause, with the lease of this generation.
    AgainAfter(Millis, u64),
    /// Waits until the renewer has probed the token or logged in.
    Await,
    /// There is no lease in use: waits for one.
    AwaitLease,
    /// The token may be at fault, and no login is possible for this long.
    Postponed(Millis),
    /// The refusal concerns the request: a login would not help.
    Upheld,
}

/// A token that may be dead, and the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseSuspicion {
    pub(crate) generation: u64,
    pub(crate) evidence: RefusalEvidence,
}

/// The state of the session's tokens, shared by requests and the renewer.
#[derive(Debug)]
pub(crate) struct LeaseJudgement {
    accepted: AcceptedPaths,
    /// Whether an accepted response may decide something.
    is_open: AtomicBool,
    /// Whether requests have more than one lease to choose from.
    has_choice: AtomicBool,
    state: Mutex<JudgementState>,
}

// Called by requests.
impl LeaseJudgement {
    /// `slots`: the number of accepting paths that are remembered.
    pub(crate) fn new(slots: usize, single_active: bool, pacer: SpeculationPacer) -> Self {
        Self {
            accepted: AcceptedPaths::new(slots),
            is_open: AtomicBool::new(false),
            has_choice: AtomicBool::new(false),
            state: Mutex::new(JudgementState::new(single_active, pacer)),
        }
    }

    /// Whether this acceptance may decide something, so that `record_acceptance` must be called. One atomic
    /// load and a compare for most requests.
    pub(super) fn is_worth_settling(&self, path: PathKey, generation: u64) -> bool {
        self.accepted.note(path, generation) || self.is_open.load(Ordering::Relaxed)
    }

    /// A request with this lease succeeded. `was_refused`: it was refused with another lease before.
    pub(super) fn record_acceptance(
        &self,
        path: PathKey,
        generation: u64,
        was_refused: bool,
        now: Millis,
    ) -> SettledOutcome {
        let mut state = lock(&self.state);
        let settled = state.accepted(path, generation, was_refused, now);
        self.refresh_open(&state);
        settled
    }

    /// Records a response that is neither a success nor a refusal: the path does not refuse the
    /// token.
    pub(super) fn forget_refusals(&self, path: PathKey, generation: u64) {
        let mut state = lock(&self.state);
        if state
            .current
            .is_some_and(|current| current.generation == generation)
        {
            state.refused.accepted(path);
            self.refresh_open(&state);
        }
    }

    /// Whether a request may have to call `choose`; false: it takes the lease in use.
    pub(super) fn has_choice(&self) -> bool {
        self.has_choice.load(Ordering::Relaxed)
    }

    /// Which lease the next request to `path` carries. A candidate goes to one repeatable request at a
    /// time, and to paths that refuse the lease in use. For a while after a renewal the previous lease
    /// goes to requests that cannot be sent again.
    pub(super) fn choose(&self, path: PathKey, can_repeat: bool, now: Millis) -> LeaseChoice {
        let mut state = lock(&self.state);
        let choice = state.choose(path, can_repeat, now);
        let has_choice = state.has_choice(now);
        self.has_choice.store(has_choice, Ordering::Relaxed);
        choice
    }

    /// The upstream answered 401 to `request`, which carried the lease of `generation`.
    pub(super) fn note_refusal(&self, request: &mut RefusedRequest, generation: u64, now: Millis) {
        request.was_refused_with(generation, now);
        self.accepted.reopen(request.path);
        let mut state = lock(&self.state);
        state.refused.note(request.path, generation, now);
        self.refresh_open(&state);
    }

    /// The next step of `request`, whose last refusal has been recorded.
    pub(super) fn next_step(&self, request: &mut RefusedRequest, now: Millis) -> RetryStep {
        let is_known = self.accepted.knows(request.path);
        let mut state = lock(&self.state);
        let step = state.next_step(request, is_known, now);
        self.refresh_open(&state);
        step
    }

    fn refresh_open(&self, state: &MutexGuard<'_, JudgementState>) {
        let is_open =
            state.candidate.is_some() || state.suspicion.is_some() || state.refused.has_streak();
        self.is_open.store(is_open, Ordering::Relaxed);
        // `choose` finds out whether a fallback is still preferred.
        let has_choice = state.has_choice(0);
        self.has_choice.store(has_choice, Ordering::Relaxed);
    }
}

// Called by the renewer.
impl LeaseJudgement {
    pub(crate) fn suspicion(&self) -> Option<LeaseSuspicion> {
        lock(&self.state).suspicion
    }

    /// How long until a refusal of this token may cause a login; 0: now.
    pub(super) fn login_wait(
        &self,
        generation: u64,
        evidence: RefusalEvidence,
        now: Millis,
    ) -> Millis {
        lock(&self.state).login_wait(generation, evidence, now)
    }

    /// Whether this token may still work for some clients: it was accepted, and not everything has
    /// been refused since.
    pub(super) fn is_at_stake(&self, generation: u64, evidence: RefusalEvidence) -> bool {
        lock(&self.state).is_at_stake(generation, evidence)
    }

    /// A login begins because of a refusal.
    pub(super) fn spend_login(&self, now: Millis) {
        lock(&self.state).pacer.spend(now);
    }

    /// The investigation led to no lease. Later refusals raise the suspicion again.
    pub(super) fn drop_suspicion(&self) {
        let mut state = lock(&self.state);
        state.suspicion = None;
        self.refresh_open(&state);
    }

    /// The probe accepted this generation.
    pub(crate) fn clear(&self, generation: u64, now: Millis) {
        let mut state = lock(&self.state);
        state.clear(generation, now);
    }

    /// Whether a token that the probe has refused is dead: it is so old that all nodes must know it, and no
    /// request was accepted since.
    pub(super) fn is_dead(&self, generation: u64, since: Millis) -> bool {
        lock(&self.state).is_dead(generation, since)
    }

    /// Drops a dead generation. A candidate replaces the lease in use.
    pub(super) fn condemn(&self, generation: u64) {
        let mut state = lock(&self.state);
        state.suspicion = None;
        let candidate = state.candidate.map(|candidate| candidate.facts);
        if candidate.is_some_and(|candidate| candidate.generation == generation) {
            state.candidate = None;
        } else if state
            .current
            .is_some_and(|lease| lease.generation == generation)
        {
            state.current = candidate;
            state.candidate = None;
            state.fallback = None;
        }
        // It may have been replaced in the meantime.
        let is_fallback = |fallback: &FallbackLease| fallback.generation == generation;
        state.fallback = state.fallback.filter(|fallback| !is_fallback(fallback));
        self.refresh_open(&state);
    }

    pub(super) fn is_young(&self, generation: u64, now: Millis) -> bool {
        let state = lock(&self.state);
        let candidate = state.candidate.map(|candidate| candidate.facts);
        let mut known = [state.current, candidate].into_iter().flatten();
        known.any(|facts| facts.generation == generation && facts.is_young(now))
    }

    /// A login of this or another gateway brought a lease. `is_proven`: the probe accepted it.
    pub(crate) fn offer(&self, facts: LeaseFacts, is_proven: bool) -> LeasePlacement {
        let mut state = lock(&self.state);
        state.suspicion = None;
        if state.current.is_some() && !is_proven && !state.single_active {
            state.candidate = Some(CandidateLease::new(facts));
            self.refresh_open(&state);
            return LeasePlacement::Candidate;
        }
        let is_old_good = facts.cause == LoginCause::Renewal;
        state.replace_current(facts, is_old_good, facts.obtained);
        if is_proven {
            state.proven = state.proven.max(facts.generation);
            state.refused.forget_recent(facts.obtained);
            if facts.cause != LoginCause::Renewal {
                state.pacer.forget_fruitless();
            }
        }
        self.refresh_open(&state);
        LeasePlacement::Current
    }

    /// The generations that requests may carry: in use, candidate, fallback.
    pub(super) fn generations(&self) -> [Option<u64>; 3] {
        let state = lock(&self.state);
        [
            state.current.map(|facts| facts.generation),
            state.candidate.map(|candidate| candidate.facts.generation),
            state.fallback.map(|fallback| fallback.generation),
        ]
    }

    /// The lease in use has expired: the candidate, if there is one, replaces it.
    pub(super) fn expire(&self, generation: u64) {
        let mut state = lock(&self.state);
        if state
            .current
            .is_some_and(|lease| lease.generation == generation)
        {
            state.current = state.candidate.take().map(|candidate| candidate.facts);
            state.fallback = None;
            self.refresh_open(&state);
        }
    }

    /// The operator has changed something or asks for another attempt: pauses begin anew.
    pub(crate) fn forget_pauses(&self) {
        let mut state = lock(&self.state);
        state.pacer.forget_pauses();
        state.refused.clear();
        self.refresh_open(&state);
    }

    pub(super) fn configure(&self, single_active: bool, logins_per_hour: u32, sharers: u32) {
        let mut state = lock(&self.state);
        state.single_active = single_active;
        state.pacer.resize(logins_per_hour, sharers);
    }

    /// Whether there is a probe that tells good tokens from bad ones.
    pub(crate) fn set_probe(&self, has_probe: bool) {
        lock(&self.state).has_probe = has_probe;
    }
}
