//! Logins of a gateway that shares its login with others: which gateway logs in, and how the token
//! is published and adopted.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::judgement::LoginCause;
use super::lease::Lease;
use super::login_budget::max_for_refusals;
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

/// Poll interval while the store is down or another gateway logs in.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(250);

impl Renewer {
    /// Adopts a newer lease from the store, or logs in for all gateways if that is due.
    pub(in crate::upstream) async fn turn(
        &mut self,
        shared_login: &mut SharedLogin,
        cause: LoginCause,
    ) -> NextAttempt {
        shared_login.clear_changes();
        let before = self.session.newest().map(|lease| lease.generation);
        let Ok(known) = self.refresh(shared_login).await else {
            return self.without_store(shared_login, cause).await;
        };
        let is_served = match cause {
            LoginCause::Renewal => self.session.is_ready() && !shared_login.is_due(),
            // Another gate's login has come in the meantime.
            LoginCause::Refusal | LoginCause::Unproven => {
                self.session.newest().map(|lease| lease.generation) != before
            }
        };
        if is_served && let Some(renew) = shared_login.renew {
            return NextAttempt::Renewal(renew);
        }
        let plan = self.plan();
        let per_hour = match cause {
            LoginCause::Renewal | LoginCause::Unproven => plan.settings.logins_per_hour,
            LoginCause::Refusal => max_for_refusals(plan.settings.logins_per_hour),
        };
        let limit = LoginRateLimit {
            min_interval: plan.settings.min_login_interval,
            per_hour,
        };
        match shared_login
            .shared
            .login_turn(&self.upstream, known, limit)
            .await
        {
            Ok(LoginTurn::Ours(login)) => self.log_in_for_all(shared_login, &login, cause).await,
            // Published since `refresh` looked: adopted at the next look, and worth waiting for.
            Ok(LoginTurn::Newer) => {
                self.phase.send_replace(RenewerPhase::LoggingIn);
                at_once()
            }
            Ok(LoginTurn::Busy(left)) => {
                self.phase.send_replace(RenewerPhase::LoggingIn);
                NextAttempt::NotBefore(Deadline::after(left.min(SOON)))
            }
            Ok(LoginTurn::Wait(left)) => self.blocked(LoginFailure::Budget, left),
            Err(_) => self.without_store(shared_login, cause).await,
        }
    }

    /// Reports a lease that was refused here, and adopts a newer one. Returns the newest generation
    /// in the store.
    async fn refresh(&mut self, shared_login: &mut SharedLogin) -> Result<u64, StoreUnavailable> {
        shared_login.tell_refused(&self.upstream).await;
        let Some(at) = shared_login.shared.lease(&self.upstream).await? else {
            return Ok(0);
        };
        shared_login.seen = at.generation;
        shared_login.follower.remember(LatestLease {
            generation: at.generation,
            refused: at.refused,
            ends: Deadline::after(at.left),
            sealed: at.sealed.clone(),
        });
        let newest = self.session.newest();
        let ours = newest.as_ref().and_then(|lease| lease.shared);
        let is_rejected = shared_login.rejected == Some(at.generation);
        let is_good = at.generation > at.refused && !at.left.is_zero() && !is_rejected;
        if is_good && ours != Some(at.generation) {
            self.adopt_shared(shared_login, &at).await;
        } else if let Some(lease) = newest
            && ours.is_some_and(|ours| ours <= at.refused)
        {
            self.session.condemn(lease.generation);
        }
        Ok(at.generation)
    }

    /// Adopts the lease of another gateway's login.
    async fn adopt_shared(&mut self, shared_login: &mut SharedLogin, at: &LeaseAt) {
        let opened = self
            .binding
            .as_ref()
            .and_then(|place| place.open(&at.sealed));
        let Some((kept, _)) = opened else {
            return; // `open` has logged why; this gateway logs in next
        };
        let plan = self.plan();
        let Ok(headers) = plan.description.token_headers(&kept.token) else {
            return;
        };
        info!(upstream = %self.upstream, generation = at.generation, seconds = at.left.as_secs(),
            "using the login of all gates");
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
            shared_login.renew = Some(renew);
        }
    }

    async fn log_in_for_all(
        &mut self,
        shared_login: &mut SharedLogin,
        login: &LoginLock,
        cause: LoginCause,
    ) -> NextAttempt {
        let plan = self.plan();
        let password = match plan.settings.password.read() {
            Ok(password) => password,
            Err(source) => {
                self.release_login(shared_login, login, true).await;
                return self.unreadable_password(&source);
            }
        };
        lock(&self.budget).spend(Instant::now());
        self.phase.send_replace(RenewerPhase::LoggingIn);
        let began = self.session.now();
        let outcome = tokio::select! {
            outcome = self.obtain(&plan, &password) => outcome,
            () = shared_login.shared.hold(&self.upstream, login) => {
                self.metrics.session_logins.add(LoginOutcome::Superseded);
                info!(upstream = %self.upstream, "the turn to log in was lost to another gate");
                return at_once();
            }
            () = self.stop.aborting() => {
                self.release_login(shared_login, login, false).await;
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
                self.publish_to_all(shared_login, login, obtained, origin)
                    .await
            }
            Err(failure) => {
                self.release_login(shared_login, login, failure.is_unsent())
                    .await;
                self.failed(&failure, &password)
            }
        }
    }

    async fn publish_to_all(
        &mut self,
        shared_login: &mut SharedLogin,
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
        let published = shared_login
            .shared
            .publish(&self.upstream, login, single, granted.left, &sealed)
            .await;
        let number = match published {
            Ok(PublishOutcome::Current(generation)) => {
                shared_login.follower.remember(LatestLease {
                    generation,
                    refused: 0,
                    ends,
                    sealed,
                });
                shared_login.seen = generation;
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
            shared_login.renew = Some(renew);
        }
        due
    }

    fn sealed(&self, token: &Secret, ends: Deadline) -> Option<SealedBytes> {
        self.binding.as_ref()?.sealed(token, ends.unix_millis())
    }

    async fn release_login(&self, shared_login: &SharedLogin, login: &LoginLock, unsent: bool) {
        let upstream = &self.upstream;
        // If the store is unreachable, the lock expires.
        let _ = shared_login.shared.release(upstream, login, unsent).await;
    }

    /// The store is down: the lease in use serves until it expires, then this gateway logs in for
    /// itself.
    async fn without_store(
        &mut self,
        shared_login: &mut SharedLogin,
        cause: LoginCause,
    ) -> NextAttempt {
        let is_served = self.session.is_ready() && !shared_login.is_due();
        if is_served && cause == LoginCause::Renewal {
            return NextAttempt::NotBefore(Deadline::after(LOOK_AGAIN));
        }
        match self.attempt(cause).await {
            NextAttempt::Renewal(renew) => {
                shared_login.renew = Some(renew);
                NextAttempt::NotBefore(Deadline::after(LOOK_AGAIN))
            }
            other => other,
        }
    }
}

fn at_once() -> NextAttempt {
    NextAttempt::NotBefore(Deadline::after(Duration::ZERO))
}
