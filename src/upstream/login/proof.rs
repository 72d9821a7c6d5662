//! Tests of tokens: a new token is tested before it replaces one that works, and a token that was
//! refused is tested before it costs a login.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use super::call::{LoginError, LoginGrant};
use super::judgement::speculation::RefusalEvidence;
use super::judgement::{LeaseSuspicion, LoginCause, YOUNG_PAUSE};
use super::lease::Lease;
use super::login_budget::back_off;
use super::plan::LoginPlan;
use super::renewer::{NextAttempt, Renewer};
use super::session::SOON;
use super::status::{LoginFailure, RenewerPhase};
use super::token_probe::ProbeVerdict;
use crate::clock::Deadline;
use crate::metrics::LoginOutcome;
use crate::secret::Secret;
use crate::sync::lock;

/// Pauses between probes of a new token that is refused: some nodes of an upstream accept it later than
/// others. Fifteen seconds in all.
const PROOF_PAUSES: [u64; 5] = [500, 1_000, 2_000, 4_000, 8_000];
/// A login that the budget forbids for this short a time is waited for.
const MILLI: Duration = Duration::from_millis(1);

/// Poll interval while another gateway logs in.
const OTHERS_LOGIN: Duration = Duration::from_millis(50);

/// The result of a login, and whether the probe has accepted the token.
#[derive(Debug)]
pub(super) struct ObtainedToken {
    pub(in crate::upstream) granted: LoginGrant,
    pub(super) is_proven: bool,
}

impl Renewer {
    /// Logs in, and probes the token if it would replace a valid one. Fails with `NotAccepted` if the probe
    /// refuses the token until the last try.
    pub(super) async fn obtain(
        &self,
        plan: &LoginPlan,
        password: &Secret,
    ) -> Result<ObtainedToken, LoginError> {
        let granted = plan.calls.log_in(password).await?;
        let single_active = plan.settings.single_active_token;
        self.session
            .minted(Deadline::after(granted.left), single_active);
        self.metrics
            .session_clock_skew_seconds
            .set(granted.skew_seconds);
        // With a single active token the previous one is invalid already.
        let verdict = match self.session.is_ready() && !single_active {
            true => self.proof_of(plan, &granted).await,
            false => ProbeVerdict::Undecided,
        };
        match verdict {
            ProbeVerdict::Refused if self.session.is_ready() => Err(LoginError::NotAccepted),
            verdict => Ok(ObtainedToken {
                granted,
                is_proven: verdict == ProbeVerdict::Accepted,
            }),
        }
    }

    /// Ends early when the lease in use expires or is suspected: then this token is needed.
    async fn proof_of(&self, plan: &LoginPlan, granted: &LoginGrant) -> ProbeVerdict {
        let mut pauses = PROOF_PAUSES.into_iter();
        loop {
            let verdict = plan.calls.probe(&granted.headers).await;
            if verdict != ProbeVerdict::Refused {
                return verdict;
            }
            if !self.session.is_ready() || self.session.judgement.suspicion().is_some() {
                return ProbeVerdict::Undecided;
            }
            let Some(pause) = pauses.next() else {
                return ProbeVerdict::Refused;
            };
            tokio::select! {
                () = sleep(MILLI * u32::try_from(pause).unwrap_or(u32::MAX)) => {}
                () = self.session.wake.notified() => {}
            }
        }
    }

    /// Requests with a token were refused. Probes the token, and logs in if the pauses allow it. The token
    /// is dropped only if the probe refused it too and no request was accepted since; until then it
    /// stays in use beside the new one.
    pub(super) async fn investigate(
        &mut self,
        suspicion: LeaseSuspicion,
        due: NextAttempt,
    ) -> NextAttempt {
        let generation = suspicion.generation;
        let since = self.session.now();
        let Some(lease) = self.session.by_generation(generation) else {
            return self.looked(due);
        };
        let verdict = self.verdict_on(&lease).await;
        if verdict == ProbeVerdict::Accepted {
            let judgement = &self.session.judgement;
            judgement.clear(generation, self.session.now());
            return self.looked(due);
        }
        let evidence = match verdict {
            ProbeVerdict::Refused => suspicion.evidence.max(RefusalEvidence::ChangedMind),
            _ => suspicion.evidence,
        };
        let due = self.replace(generation, evidence, due).await;
        let judgement = &self.session.judgement;
        if verdict == ProbeVerdict::Refused && judgement.is_dead(generation, since) {
            info!(upstream = %self.upstream, generation,
                "the upstream refuses the token in use, and the probe confirms it");
            self.give_up(&lease).await;
        }
        self.looked(due)
    }

    /// Logs in to replace a suspected token if that is allowed; otherwise the schedule stays.
    async fn replace(
        &mut self,
        generation: u64,
        evidence: RefusalEvidence,
        due: NextAttempt,
    ) -> NextAttempt {
        if self.is_blocked() {
            return due;
        }
        let cause = match self.session.judgement.is_at_stake(generation, evidence) {
            true => LoginCause::Refusal,
            // There is no working lease to protect: this is another attempt to get one.
            false => LoginCause::Unproven,
        };
        // Before the pause is counted: no login that the budget forbids makes it longer.
        let is_spent = self.budget_wait(cause).is_some_and(|wait| wait > SOON);
        if self.session.is_ready() && is_spent {
            return due;
        }
        while let Some(wait) = self.wait_before_login(generation, evidence, cause) {
            if wait > SOON || !self.paused_for(wait).await {
                return due;
            }
        }
        self.keep_distance(cause).await;
        if self.session.is_ready() && self.budget_wait(cause).is_some() {
            return due;
        }
        info!(upstream = %self.upstream, ?evidence,
            "requests were refused with the token in use; logging in");
        self.session.judgement.spend_login(self.session.now());
        let mut due = self.log_in(cause).await;
        // Another gateway logs in for all: its token is worth waiting for.
        while self.is_logging_in()
            && let NextAttempt::NotBefore(at) = &due
        {
            if !self.paused_for(at.left().max(OTHERS_LOGIN)).await {
                break;
            }
            due = self.log_in(cause).await;
        }
        due
    }

    fn is_logging_in(&self) -> bool {
        let phase = *self.phase.borrow();
        self.shared_login.is_some() && matches!(phase, RenewerPhase::LoggingIn)
    }

    /// Ends the investigation and notifies the requests that wait for its outcome.
    fn looked(&self, due: NextAttempt) -> NextAttempt {
        self.session.judgement.drop_suspicion();
        self.phase.send_modify(|_| {});
        due
    }

    /// Waits; false at a stop.
    async fn paused_for(&self, wait: Duration) -> bool {
        tokio::select! {
            () = sleep(wait) => true,
            () = self.stop.draining() => false,
        }
    }

    /// How long until a login for a refused token is due; None: now.
    fn wait_before_login(
        &mut self,
        generation: u64,
        evidence: RefusalEvidence,
        cause: LoginCause,
    ) -> Option<Duration> {
        self.share_pace();
        let judgement = &self.session.judgement;
        let paced = judgement.login_wait(generation, evidence, self.session.now());
        if paced > 0 {
            return Some(Duration::from_millis(paced));
        }
        if cause == LoginCause::Refusal {
            self.unaccepted = 0;
            self.not_before = None;
            return None;
        }
        // A token that no request has accepted counts as a failed login.
        if let Some(until) = self.not_before.filter(|until| !until.has_passed()) {
            return Some(until.left());
        }
        self.unaccepted = self.unaccepted.saturating_add(1);
        self.not_before = Some(Deadline::after(back_off(self.unaccepted)));
        None
    }

    /// Waits until `min_login_interval` allows the next login, if that is soon.
    async fn keep_distance(&self, cause: LoginCause) {
        if let Some(left) = self.budget_wait(cause).filter(|left| *left <= SOON) {
            tokio::select! {
                () = sleep(left) => {}
                () = self.stop.draining() => {}
            }
        }
    }

    /// Whether a recent failure forbids a login now.
    fn is_blocked(&self) -> bool {
        // Copied: a borrow that is held would block the sender of a new phase.
        let phase = *self.phase.borrow();
        matches!(phase, RenewerPhase::Blocked { until, .. } if !until.has_passed())
    }

    async fn verdict_on(&self, lease: &Lease) -> ProbeVerdict {
        let plan = self.plan();
        let has_probe = plan.calls.has_probe().await;
        self.session.judgement.set_probe(has_probe);
        let mut verdict = plan.calls.probe(lease.headers()).await;
        if verdict == ProbeVerdict::Refused && self.session.is_young(lease) {
            sleep(Duration::from_millis(YOUNG_PAUSE)).await;
            verdict = plan.calls.probe(lease.headers()).await;
        }
        verdict
    }

    /// Drops a token that the probe has refused: no gateway uses it again.
    async fn give_up(&mut self, lease: &Lease) {
        self.session.condemn(lease.generation);
        match (&mut self.shared_login, lease.shared) {
            (Some(shared_login), Some(number)) => shared_login.refuse(&self.upstream, number).await,
            _ => {
                if let Some(place) = &self.binding {
                    place.forget();
                }
            }
        }
    }

    /// A candidate was refused where the lease in use is accepted.
    pub(super) fn candidate_rejected(&mut self, generation: u64) -> NextAttempt {
        self.metrics.session_logins.add(LoginOutcome::NotAccepted);
        if let Some(shared_login) = &mut self.shared_login {
            shared_login.reject_newest();
        }
        self.failures = self.failures.saturating_add(1);
        if self.is_news(LoginFailure::NotAccepted) {
            warn!(upstream = %self.upstream, generation,
                "the upstream refuses the token of its own login where it takes the one before; \
                 that one stays in use, and the login is tried again");
        }
        self.blocked(LoginFailure::NotAccepted, self.back_off(Duration::ZERO))
    }

    /// Applies a changed login configuration: at the next renewal, or at once if logins are blocked.
    pub(super) fn follow_plan(&mut self, due: NextAttempt) -> NextAttempt {
        let plan = Arc::clone(&self.plan.borrow_and_update());
        let settings = &plan.settings;
        let (least, per_hour) = (settings.min_login_interval, settings.logins_per_hour);
        lock(&self.budget).resize(least, per_hour);
        self.share_pace();
        self.session.judgement.set_probe(plan.has_probe);
        let due = self.try_again(due);
        match (&due, self.renewal) {
            (NextAttempt::Renewal(_), Some(renewal)) => {
                self.renewal_due(renewal.life, renewal.began.elapsed())
            }
            _ => due,
        }
    }

    /// The operator has acted: a blocked login is tried at once, within the budget.
    pub(super) fn try_again(&mut self, due: NextAttempt) -> NextAttempt {
        self.session.judgement.forget_pauses();
        self.failures = 0;
        self.refusals = 0;
        self.unaccepted = 0;
        self.not_before = None;
        self.reported = None;
        match due {
            NextAttempt::Renewal(_) => due,
            NextAttempt::NotBefore(_) | NextAttempt::NewSecret(..) => {
                NextAttempt::NotBefore(Deadline::after(Duration::ZERO))
            }
        }
    }

    /// Gateways that share a login share its budget for refusals.
    fn share_pace(&self) {
        let plan = self.plan();
        let shared = self.binding.as_ref().and_then(|place| place.shared());
        self.session.judgement.configure(
            plan.settings.single_active_token,
            plan.settings.logins_per_hour,
            shared.map_or(1, |shared| shared.gates()),
        );
    }
}
