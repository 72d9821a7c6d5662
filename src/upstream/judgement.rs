//! What the gate concludes when the upstream refuses a token: whether the token is at
//! fault, which lease the request tries next, and when a login is worth its cost. A lease
//! that works somewhere is replaced only by one that was accepted.
//!
//! Pure: no clock, no sockets; times are milliseconds since the session began. The rules in
//! words are in docs/LOGIN.md; `tests/login_model` runs them under loom and against a
//! simulated upstream.

use super::accepted_paths::{AcceptedPaths, PathKey};
use super::refused_paths::{RefusedPaths, RefusedRequest};
use super::speculation::{Evidence, SpeculationPacer};
use super::sync::{AtomicBool, Mutex, MutexGuard, Ordering, lock};

pub(super) type Millis = u64;

/// A token this young may be unknown to some node of the upstream still.
pub(super) const YOUNG: Millis = 5_000;
/// After this a request tries a young token once more.
pub(super) const YOUNG_PAUSE: Millis = 500;
/// How long the lease before helps out where a new one is refused.
const FALLBACK_FOR: Millis = 120_000;
/// How long one request may be the only one that tries a candidate.
const TRIAL_LIMIT: Millis = 2_000;
/// Pauses between refusals that count against a candidate: those by paths that accept the
/// lease in use. One more after the last pause, and the candidate is given up.
const TRIAL_PAUSES: [Millis; 5] = [500, 1_000, 2_000, 4_000, 8_000];
/// How long the probe's word is taken for paths that have never accepted a token.
const CLEARED_FOR: Millis = 1_000;

/// Why a login was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoginCause {
    /// There was no lease, or its renewal was due.
    Renewal,
    Refusal,
}

/// One token of the session, as far as judging it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseFacts {
    pub(super) generation: u64,
    /// When the login that brought it began.
    pub(super) began: Millis,
    /// When it was obtained.
    pub(super) obtained: Millis,
    pub(super) cause: LoginCause,
}

impl LeaseFacts {
    pub(super) fn is_young(&self, now: Millis) -> bool {
        now.saturating_sub(self.obtained) < YOUNG
    }
}

/// Where a new lease goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// In use by all from now on.
    Current,
    /// Tried by single requests until one is accepted.
    Candidate,
}

/// Which lease a request is to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseChoice {
    Current,
    Candidate,
}

/// What an accepted request has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Nothing,
    /// The candidate is the lease in use from now on.
    Promoted(u64),
    /// The candidate is given up: it was refused where the lease in use is accepted.
    Rejected(u64),
}

/// What a refused request does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Sent again at once, with the lease of this generation.
    Again(u64),
    /// Sent again after a pause, with the lease of this generation.
    AgainAfter(Millis, u64),
    /// The renewer looks first.
    Await,
    /// There is no lease in use: one has to come first.
    AwaitLease,
    /// The renewer has looked and could not say: no login is possible now.
    Undecided,
    /// The refusal concerns the request: no login would help.
    Upheld,
}

/// A token that may be dead, and what speaks for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suspicion {
    pub(super) generation: u64,
    pub(super) evidence: Evidence,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    facts: LeaseFacts,
    trial_until: Millis,
    refusals: usize,
    /// Not tried again, and not refused again, before.
    rests_until: Millis,
}

/// The probe's last good word.
#[derive(Clone, Copy, Debug)]
struct Cleared {
    generation: u64,
    at: Millis,
}

#[derive(Debug)]
struct State {
    single_active: bool,
    /// Whether the renewer can ask the upstream about a token.
    has_probe: bool,
    current: Option<LeaseFacts>,
    candidate: Option<Candidate>,
    /// The lease before the one in use, until this time.
    fallback: Option<(u64, Millis)>,
    refused: RefusedPaths,
    suspicion: Option<Suspicion>,
    cleared: Option<Cleared>,
    /// The last generation whose refusal was counted as fruitless.
    fruitless: u64,
    pacer: SpeculationPacer,
}

/// What is known of the session's tokens.
#[derive(Debug)]
pub(super) struct Judgement {
    accepted: AcceptedPaths,
    /// Whether an accepted answer may settle something.
    is_open: AtomicBool,
    state: Mutex<State>,
}

// What requests report and ask.
impl Judgement {
    /// `slots`: paths whose acceptance is remembered.
    pub(super) fn new(slots: usize, single_active: bool, pacer: SpeculationPacer) -> Self {
        Self {
            accepted: AcceptedPaths::new(slots),
            is_open: AtomicBool::new(false),
            state: Mutex::new(State {
                single_active,
                has_probe: false,
                current: None,
                candidate: None,
                fallback: None,
                refused: RefusedPaths::default(),
                suspicion: None,
                cleared: None,
                fruitless: 0,
                pacer,
            }),
        }
    }

    /// Whether this acceptance may settle something: `settle` says what. One atomic load
    /// and a compare for most requests.
    pub(super) fn is_worth_settling(&self, path: PathKey, generation: u64) -> bool {
        self.accepted.note(path, generation) || self.is_open.load(Ordering::Relaxed)
    }

    /// A request with this lease was answered with success.
    pub(super) fn settle(&self, path: PathKey, generation: u64, now: Millis) -> Settled {
        let mut state = lock(&self.state);
        let settled = state.accepted(path, generation, now);
        self.refresh_open(&state);
        settled
    }

    /// Whether a request may have to choose; false: it takes the lease in use.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Which lease the next request to `path` carries. A candidate goes to one request at a
    /// time that can be sent again, and to paths that refuse the lease in use.
    pub(super) fn choose(&self, path: PathKey, can_repeat: bool, now: Millis) -> LeaseChoice {
        lock(&self.state).choose(path, can_repeat, now)
    }

    /// The upstream answered 401 to `request`, which carried the lease of `generation`.
    pub(super) fn note_refusal(&self, request: &mut RefusedRequest, generation: u64, now: Millis) {
        request.was_refused_with(generation, now);
        self.accepted.reopen(request.path);
        let mut state = lock(&self.state);
        state.refused.note(request.path, generation, now);
        self.refresh_open(&state);
    }

    /// What `request` does, whose last refusal has been noted.
    pub(super) fn next_step(&self, request: &mut RefusedRequest, now: Millis) -> Step {
        let is_known = self.accepted.knows(request.path);
        lock(&self.state).next_step(request, is_known, now)
    }

    fn refresh_open(&self, state: &MutexGuard<'_, State>) {
        let is_open = state.candidate.is_some() || state.refused.has_streak();
        self.is_open.store(is_open, Ordering::Relaxed);
    }
}

// What the renewer asks and tells.
impl Judgement {
    pub(super) fn suspicion(&self) -> Option<Suspicion> {
        lock(&self.state).suspicion
    }

    /// How long until this evidence may cause a login; 0: now.
    pub(super) fn login_wait(&self, evidence: Evidence, now: Millis) -> Millis {
        lock(&self.state).pacer.wait(evidence, now)
    }

    /// A login begins because of a refusal.
    pub(super) fn spend_login(&self, now: Millis) {
        lock(&self.state).pacer.spend(now);
    }

    /// The suspicion led to no lease. Later refusals raise it again.
    pub(super) fn drop_suspicion(&self) {
        lock(&self.state).suspicion = None;
    }

    /// The probe found this generation good.
    pub(super) fn clear(&self, generation: u64, now: Millis) {
        let mut state = lock(&self.state);
        state.suspicion = None;
        state.cleared = Some(Cleared {
            generation,
            at: now,
        });
    }

    /// This generation is dead: nothing uses it any more. A candidate takes the place of the
    /// lease in use.
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
        self.refresh_open(&state);
    }

    pub(super) fn is_young(&self, generation: u64, now: Millis) -> bool {
        let state = lock(&self.state);
        let candidate = state.candidate.map(|candidate| candidate.facts);
        let mut known = [state.current, candidate].into_iter().flatten();
        known.any(|facts| facts.generation == generation && facts.is_young(now))
    }

    /// A login, or another gate, has brought a lease. `is_proven`: the probe accepted it.
    pub(super) fn offer(&self, facts: LeaseFacts, is_proven: bool) -> Placement {
        let mut state = lock(&self.state);
        state.suspicion = None;
        if state.current.is_some() && !is_proven && !state.single_active {
            state.candidate = Some(Candidate {
                facts,
                trial_until: 0,
                refusals: 0,
                rests_until: 0,
            });
            self.refresh_open(&state);
            return Placement::Candidate;
        }
        state.replace_current(facts, facts.obtained);
        if is_proven {
            state.refused.forget_recent(facts.obtained);
            if facts.cause == LoginCause::Refusal {
                state.pacer.forget_fruitless();
            }
        }
        self.refresh_open(&state);
        Placement::Current
    }

    /// The generations that requests may carry: in use, candidate, fallback.
    pub(super) fn generations(&self) -> [Option<u64>; 3] {
        let state = lock(&self.state);
        [
            state.current.map(|facts| facts.generation),
            state.candidate.map(|candidate| candidate.facts.generation),
            state.fallback.map(|(generation, _)| generation),
        ]
    }

    /// The lease in use has ended: the candidate, if there is one, is all that is left.
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

    /// The operator has changed something or asks for another try: pauses begin anew.
    pub(super) fn forget_pauses(&self) {
        let mut state = lock(&self.state);
        state.pacer.forget_fruitless();
        state.refused.clear();
        self.refresh_open(&state);
    }

    pub(super) fn configure(&self, single_active: bool, logins_per_hour: u32, sharers: u32) {
        let mut state = lock(&self.state);
        state.single_active = single_active;
        state.pacer.resize(logins_per_hour, sharers);
    }

    /// Whether there is a probe that tells good tokens from bad ones.
    pub(super) fn set_probe(&self, has_probe: bool) {
        lock(&self.state).has_probe = has_probe;
    }
}

impl State {
    fn replace_current(&mut self, facts: LeaseFacts, now: Millis) {
        let old = self.current.replace(facts);
        self.candidate = None;
        self.cleared = None;
        self.fallback = match old {
            Some(old) if !self.single_active => Some((old.generation, now + FALLBACK_FOR)),
            _ => None,
        };
    }

    fn accepted(&mut self, path: PathKey, generation: u64, now: Millis) -> Settled {
        if let Some(candidate) = self.candidate
            && candidate.facts.generation == generation
        {
            self.suspicion = None;
            // A path that refused the token before takes this one: the login has helped.
            if self.refused.accepted(path).is_some() {
                self.pacer.forget_fruitless();
            }
            self.replace_current(candidate.facts, now);
            self.refused.forget_recent(now);
            return Settled::Promoted(generation);
        }
        if self
            .current
            .is_none_or(|current| current.generation != generation)
        {
            return Settled::Nothing;
        }
        let refused_last = self.refused.accepted(path);
        let Some(candidate) = &mut self.candidate else {
            return Settled::Nothing;
        };
        if refused_last != Some(candidate.facts.generation) {
            return Settled::Nothing;
        }
        candidate.trial_until = now;
        if now < candidate.rests_until {
            return Settled::Nothing;
        }
        candidate.refusals += 1;
        if let Some(pause) = TRIAL_PAUSES.get(candidate.refusals - 1) {
            candidate.rests_until = now + pause;
            return Settled::Nothing;
        }
        let rejected = candidate.facts.generation;
        self.candidate = None;
        Settled::Rejected(rejected)
    }

    fn choose(&mut self, path: PathKey, can_repeat: bool, now: Millis) -> LeaseChoice {
        let is_refusing = self.refused.is_refusing(path);
        let Some(candidate) = &mut self.candidate else {
            return LeaseChoice::Current;
        };
        if is_refusing {
            return LeaseChoice::Candidate;
        }
        if !can_repeat || now < candidate.rests_until.max(candidate.trial_until) {
            return LeaseChoice::Current;
        }
        candidate.trial_until = now + TRIAL_LIMIT;
        LeaseChoice::Candidate
    }

    fn next_step(&mut self, request: &mut RefusedRequest, is_known: bool, now: Millis) -> Step {
        if request.is_exhausted() {
            return Step::Upheld;
        }
        let Some(current) = self.current else {
            return Step::AwaitLease;
        };
        if !request.has_tried(current.generation) {
            return Step::Again(current.generation);
        }
        if self.refused.is_habitual(request.path, now) {
            return Step::Upheld;
        }
        let candidate = self.candidate.map(|candidate| candidate.facts);
        if let Some(candidate) = candidate
            && !request.has_tried(candidate.generation)
        {
            return Step::Again(candidate.generation);
        }
        if let Some((fallback, until)) = self.fallback
            && now < until
            && !request.has_tried(fallback)
        {
            return Step::Again(fallback);
        }
        // The newest token that was refused here: minted since the trouble began, it is no
        // better, so this path refuses whatever it is shown.
        let newest = candidate.unwrap_or(current);
        let may_be_early = newest.is_young(now) && !request.has_repeated(newest.generation);
        let since = self.refused.since(request.path).unwrap_or(now);
        let since = since.min(request.since);
        if newest.began > since {
            if may_be_early {
                return Step::AgainAfter(YOUNG_PAUSE, newest.generation);
            }
            self.refused.is_a_habit(request.path, is_known, now);
            self.count_fruitless(newest, now);
            return Step::Upheld;
        }
        self.doubt(request, newest, is_known, now)
    }

    /// The token may be dead: the probe is asked, or a login made, if that is not too often.
    fn doubt(
        &mut self,
        request: &mut RefusedRequest,
        newest: LeaseFacts,
        is_known: bool,
        now: Millis,
    ) -> Step {
        let generation = newest.generation;
        let has_repeated = request.has_repeated(generation);
        if self.is_cleared(request, generation, is_known) {
            return match (has_repeated, newest.is_young(now), is_known) {
                (false, true, _) => Step::AgainAfter(YOUNG_PAUSE, generation),
                (false, false, true) => Step::Again(generation),
                (_, _, true) => Step::Upheld,
                (_, _, false) => {
                    self.refused.is_a_habit(request.path, false, now);
                    Step::Upheld
                }
            };
        }
        let evidence = match (is_known, self.refused.is_streak()) {
            (true, _) => Evidence::ChangedMind,
            (false, true) => Evidence::SeveralPaths,
            (false, false) => Evidence::UnseenPath,
        };
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.evidence = suspicion.evidence.max(evidence);
            request.asked = Some(generation);
            return Step::Await;
        }
        if request.asked == Some(generation) {
            return Step::Undecided;
        }
        if !self.has_probe {
            if newest.is_young(now) && !has_repeated {
                return Step::AgainAfter(YOUNG_PAUSE, generation);
            }
            if is_known && !has_repeated {
                return Step::Again(generation);
            }
            if self.pacer.wait(evidence, now) > 0 {
                return Step::Upheld;
            }
        }
        request.asked = Some(generation);
        self.suspicion = Some(Suspicion {
            generation,
            evidence,
        });
        Step::Await
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
        if facts.cause == LoginCause::Refusal && facts.generation > self.fruitless {
            self.fruitless = facts.generation;
            self.pacer.was_fruitless(now);
        }
    }
}
