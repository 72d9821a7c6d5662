//! Logins of a gate that shares its login with other gates: who logs in, and what becomes of
//! the token.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::backoff::most_for_refusals;
use super::judgement::LoginCause;
use super::lease::Lease;
use super::proof::ObtainedToken;
use super::renewer::{NextAttempt, Renewer};
use super::session_control::LeaseOrigin;
use super::shared_login::{LatestLease, SharedLogin};
use super::status::{LoginFailure, RenewerPhase};
use super::token_probe::ProbeVerdict;
use crate::clock::Deadline;
use crate::metrics::LoginOutcome;
use crate::secret::Secret;
use crate::store::shared::{LeaseAt, LoginLock, LoginRateLimit, LoginTurn, PublishOutcome};
use crate::store::{SealedBytes, StoreUnavailable};
use crate::sync::lock;

/// While the store is away, or another gate logs in: how often we look.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(250);

impl Renewer {
    /// Looks at what there is in the store, and logs in for all if that is due.
    pub(in crate::upstream) async fn turn(
        &mut self,
        common: &mut SharedLogin,
        cause: LoginCause,
    ) -> NextAttempt {
        common.clear_changes();
        let before = self.session.newest().map(|lease| lease.generation);
        let Ok(known) = self.refresh(common).await else {
            return self.without_store(common, cause).await;
        };
        let is_served = match cause {
            LoginCause::Renewal => self.session.is_ready() && !common.is_due(),
            // Another gate's login has come in the meantime.
            LoginCause::Refusal | LoginCause::Unproven => {
                self.session.newest().map(|lease| lease.generation) != before
            }
        };
        if is_served && let Some(renew) = common.renew {
            return NextAttempt::Renewal(renew);
        }
        let plan = self.plan();
        let per_hour = match cause {
            LoginCause::Renewal | LoginCause::Unproven => plan.settings.logins_per_hour,
            LoginCause::Refusal => most_for_refusals(plan.settings.logins_per_hour),
        };
        let limit = LoginRateLimit {
            min_interval: plan.settings.min_login_interval,
            per_hour,
        };
        match common.shared.login_turn(&self.upstream, known, limit).await {
            Ok(LoginTurn::Ours(login)) => self.log_in_for_all(common, &login, cause).await,
            Ok(LoginTurn::Newer) => at_once(),
            Ok(LoginTurn::Busy(left)) => {
                self.phase.send_replace(RenewerPhase::LoggingIn);
                NextAttempt::NotBefore(Deadline::after(left.min(SOON)))
            }
            Ok(LoginTurn::Wait(left)) => self.blocked(LoginFailure::Budget, left),
            Err(_) => self.without_store(common, cause).await,
        }
    }

    /// Says which lease was refused here, and takes up a newer one. Gives the newest
    /// generation there is.
    async fn refresh(&mut self, common: &mut SharedLogin) -> Result<u64, StoreUnavailable> {
        common.tell_refused(&self.upstream).await;
        let Some(at) = common.shared.lease(&self.upstream).await? else {
            return Ok(0);
        };
        common.seen = at.generation;
        common.bell.remember(LatestLease {
            generation: at.generation,
            refused: at.refused,
            ends: Deadline::after(at.left),
            sealed: at.sealed.clone(),
        });
        let newest = self.session.newest();
        let ours = newest.as_ref().and_then(|lease| lease.shared);
        let is_rejected = common.rejected == Some(at.generation);
        let is_good = at.generation > at.refused && !at.left.is_zero() && !is_rejected;
        if is_good && ours != Some(at.generation) {
            self.take_up_common(common, &at).await;
        } else if let Some(lease) = newest
            && ours.is_some_and(|ours| ours <= at.refused)
        {
            self.session.condemn(lease.generation);
        }
        Ok(at.generation)
    }

    /// Uses what another gate's login has brought.
    async fn take_up_common(&mut self, common: &mut SharedLogin, at: &LeaseAt) {
        let opened = self.place.as_ref().and_then(|place| place.open(&at.sealed));
        let Some((kept, _)) = opened else {
            return; // said there; the next login is ours
        };
        let plan = self.plan();
        let Ok(header) = plan.injection().header(&kept.token) else {
            return;
        };
        info!(upstream = %self.upstream, generation = at.generation, seconds = at.left.as_secs(),
            "using the login of all gates");
        let headers = vec![header];
        let word = match self.session.is_ready() {
            true => plan.calls.probe(&headers).await,
            false => ProbeVerdict::Undecided,
        };
        let age = kept.life.saturating_sub(at.left);
        let age_millis = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let ends = Deadline::after(at.left);
        let generation = self.session.next_generation();
        let lease = Lease::new(generation, ends, headers, kept.token).known_as(at.generation);
        let origin = LeaseOrigin {
            began: self.session.now().saturating_sub(age_millis),
            cause: LoginCause::Renewal,
            is_proven: word == ProbeVerdict::Accepted,
        };
        self.offer(lease, origin);
        if let NextAttempt::Renewal(renew) = self.renewal_due(kept.life, age) {
            common.renew = Some(renew);
        }
    }

    async fn log_in_for_all(
        &mut self,
        common: &mut SharedLogin,
        login: &LoginLock,
        cause: LoginCause,
    ) -> NextAttempt {
        let plan = self.plan();
        let password = match plan.settings.password.read() {
            Ok(password) => password,
            Err(source) => {
                self.release_login(common, login, true).await;
                return self.unreadable_password(&source);
            }
        };
        lock(&self.budget).spend(Instant::now());
        self.phase.send_replace(RenewerPhase::LoggingIn);
        let began = self.session.now();
        let outcome = tokio::select! {
            outcome = self.obtain(&plan, &password) => outcome,
            () = common.shared.hold(&self.upstream, login) => {
                self.metrics.session_logins.add(LoginOutcome::Superseded);
                info!(upstream = %self.upstream, "the turn to log in was lost to another gate");
                return at_once();
            }
            () = self.stop.aborting() => {
                self.release_login(common, login, false).await;
                return at_once();
            }
        };
        match outcome {
            Ok(obtained) => {
                let origin = LeaseOrigin {
                    began,
                    cause,
                    is_proven: obtained.is_proven,
                };
                self.publish_to_all(common, login, obtained, origin).await
            }
            Err(failure) => {
                self.release_login(common, login, failure.is_unsent()).await;
                self.failed(&failure, &password)
            }
        }
    }

    async fn publish_to_all(
        &mut self,
        common: &mut SharedLogin,
        login: &LoginLock,
        obtained: ObtainedToken,
        origin: LeaseOrigin,
    ) -> NextAttempt {
        let granted = obtained.granted;
        let ends = Deadline::after(granted.left);
        let Some(sealed) = self.sealed(&granted.token, ends) else {
            return self.blocked(LoginFailure::Unusable, LOOK_AGAIN);
        };
        let single = self.plan().settings.single_active_token;
        let published = common
            .shared
            .publish(&self.upstream, login, single, granted.left, &sealed)
            .await;
        let number = match published {
            Ok(PublishOutcome::Current(generation)) => {
                common.bell.remember(LatestLease {
                    generation,
                    refused: 0,
                    ends,
                    sealed,
                });
                common.seen = generation;
                Some(generation)
            }
            Ok(PublishOutcome::Lost | PublishOutcome::Superseded) => {
                self.metrics.session_logins.add(LoginOutcome::Superseded);
                info!(upstream = %self.upstream,
                    "tokens were revoked, or another gate logged in; this login is not used");
                return at_once();
            }
            Err(error) => {
                warn!(upstream = %self.upstream, %error, "logged in, but cannot tell the other gates");
                None
            }
        };
        let due = self.adopt(granted, origin, number);
        if let NextAttempt::Renewal(renew) = due {
            common.renew = Some(renew);
        }
        due
    }

    fn sealed(&self, token: &Secret, ends: Deadline) -> Option<SealedBytes> {
        self.place.as_ref()?.sealed(token, ends.unix_millis())
    }

    async fn release_login(&self, common: &SharedLogin, login: &LoginLock, unsent: bool) {
        let upstream = &self.upstream;
        // A store that does not hear it lets the lock run out.
        let _ = common.shared.release(upstream, login, unsent).await;
    }

    /// The store is away: the lease in use serves as long as it is good, then this gate
    /// logs in for itself.
    async fn without_store(&mut self, common: &mut SharedLogin, cause: LoginCause) -> NextAttempt {
        let is_served = self.session.is_ready() && !common.is_due();
        if is_served && cause == LoginCause::Renewal {
            return NextAttempt::NotBefore(Deadline::after(LOOK_AGAIN));
        }
        match self.attempt(cause).await {
            NextAttempt::Renewal(renew) => {
                common.renew = Some(renew);
                NextAttempt::NotBefore(Deadline::after(LOOK_AGAIN))
            }
            other => other,
        }
    }
}

fn at_once() -> NextAttempt {
    NextAttempt::NotBefore(Deadline::after(Duration::ZERO))
}
