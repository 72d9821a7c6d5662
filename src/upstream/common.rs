//! One login for all gates that share a store. Whoever gets the turn logs in, extends
//! its lock meanwhile, and publishes what came of it; the others take it up. A gate that
//! dies in between loses the turn, and nothing else.
//!
//! The surprise: without the store a gate logs in for itself when it must. That login has
//! a number of this gate's own, and goes as soon as the store has one to offer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tracing::{info, warn};

use super::keeper::Place;
use super::login::Granted;
use super::pace::renew_after;
use super::renewer::{Due, Renewer};
use super::session::{Lease, Phase, Session, Why};
use crate::clock::Deadline;
use crate::metrics::LoginOutcome;
use crate::secret::Secret;
use crate::store::SealedBytes;
use crate::store::shared::{
    Fact, Follow, LeaseAt, Login, LoginTurn, Published, SharedChange, SharedStore,
};

/// While the store is away, or another gate logs in: how often we look.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(250);

/// This gate's part in the login of all.
#[derive(Debug)]
pub(super) struct Common {
    shared: Arc<SharedStore>,
    bell: Arc<Bell>,
    /// When the lease in use is to be renewed.
    renew: Option<Deadline>,
    /// The lease in use was had without the store.
    is_alone: bool,
}

/// Hears of a new lease, and knows the last one.
#[derive(Debug)]
struct Bell {
    upstream: Arc<str>,
    session: Arc<Session>,
    has_rung: AtomicBool,
    latest: Mutex<Option<Latest>>,
}

#[derive(Clone, Debug)]
struct Latest {
    generation: u64,
    refused: u64,
    ends: Deadline,
    sealed: SealedBytes,
}

impl Bell {
    fn ring(&self) {
        self.has_rung.store(true, Ordering::Release);
        self.session.wake.notify_one();
    }

    fn remember(&self, latest: Latest) {
        // One assignment: a panic elsewhere leaves no half of it.
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(latest);
    }
}

impl Follow for Bell {
    fn apply(&self, change: &SharedChange, _: u64) {
        if matches!(change, SharedChange::Lease(upstream) if *upstream == self.upstream) {
            self.ring();
        }
    }

    fn doubt(&self, _: u64) {
        self.ring();
    }

    fn knowledge(&self, give: &mut dyn FnMut(Fact)) {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(latest) = latest.clone().filter(|latest| !latest.ends.has_passed()) else {
            return;
        };
        give(Fact::Lease {
            upstream: Arc::clone(&self.upstream),
            generation: latest.generation,
            refused: latest.refused,
            left: latest.ends.left(),
            sealed: latest.sealed,
        });
    }
}

impl Common {
    /// None: the store is not shared.
    pub(super) fn of(place: &Place, upstream: &Arc<str>, session: &Arc<Session>) -> Option<Self> {
        let shared = place.shared()?;
        let bell = Arc::new(Bell {
            upstream: Arc::clone(upstream),
            session: Arc::clone(session),
            has_rung: AtomicBool::new(false),
            latest: Mutex::default(),
        });
        let follower: Weak<Bell> = Arc::downgrade(&bell);
        shared.follow(follower);
        Some(Self {
            shared: Arc::clone(shared),
            bell,
            renew: None,
            is_alone: false,
        })
    }

    pub(super) fn has_news(&self) -> bool {
        self.bell.has_rung.load(Ordering::Acquire)
    }

    fn is_due(&self) -> bool {
        self.renew.is_none_or(|renew| renew.has_passed())
    }
}

impl Renewer {
    pub(super) async fn run_in_common(mut self) {
        let Some(mut common) = self.common.take() else {
            return;
        };
        loop {
            common.bell.has_rung.store(false, Ordering::Release);
            let due = self.turn(&mut common).await;
            // `has_come` listens to the bell.
            self.common = Some(common);
            let is_time = self.has_come(&due).await;
            let Some(back) = self.common.take() else {
                return;
            };
            common = back;
            if !is_time {
                return;
            }
        }
    }

    /// Looks at what there is in the store, and logs in for all if that is due.
    async fn turn(&mut self, common: &mut Common) -> Due {
        let Ok(known) = self.look(common).await else {
            return self.without_store(common).await;
        };
        if self.session.is_ready()
            && !common.is_due()
            && let Some(renew) = common.renew
        {
            return Due::Renewal(renew);
        }
        let pace = (
            self.settings.min_login_interval,
            self.settings.logins_per_hour,
        );
        match common.shared.login_turn(&self.upstream, known, pace).await {
            Ok(LoginTurn::Ours(login)) => self.log_in_for_all(common, &login).await,
            Ok(LoginTurn::Newer) => at_once(),
            Ok(LoginTurn::Busy(left)) => {
                self.phase.send_replace(Phase::LoggingIn);
                Due::NotBefore(Deadline::after(left.min(SOON)))
            }
            Ok(LoginTurn::Wait(left)) => self.blocked(Why::Budget, left),
            Err(_) => self.without_store(common).await,
        }
    }

    /// Says which lease was refused here, and takes up a newer one. Gives the newest
    /// generation there is.
    async fn look(&self, common: &mut Common) -> Result<u64, crate::store::Unavailable> {
        let current = self.session.lease.load_full();
        if let Some(lease) = current.as_ref().filter(|_| !common.is_alone)
            && self.session.fence.is_refused(lease.generation)
        {
            let shared = &common.shared;
            shared
                .refuse_lease(&self.upstream, lease.generation)
                .await?;
        }
        let Some(at) = common.shared.lease(&self.upstream).await? else {
            return Ok(0);
        };
        common.bell.remember(Latest {
            generation: at.generation,
            refused: at.refused,
            ends: Deadline::after(at.left),
            sealed: at.sealed.clone(),
        });
        let ours = current.map_or(0, |lease| lease.generation);
        let is_good = at.generation > at.refused && !at.left.is_zero();
        if is_good && (at.generation != ours || common.is_alone) {
            self.take_up_common(common, &at);
        } else if at.refused >= ours && ours > 0 && !common.is_alone {
            self.session.fence.refuse(ours);
        }
        Ok(at.generation)
    }

    /// Uses what another gate's login has brought.
    fn take_up_common(&self, common: &mut Common, at: &LeaseAt) {
        let opened = self.place.as_ref().and_then(|place| place.open(&at.sealed));
        let Some((kept, _)) = opened else {
            return; // said there; the next login is ours
        };
        let Ok(header) = self.call.description.inject.header(&kept.token) else {
            return;
        };
        info!(upstream = %self.upstream, generation = at.generation, seconds = at.left.as_secs(),
            "using the login of all gates");
        self.session.fence.adopt(at.generation);
        let ends = Deadline::after(at.left);
        self.publish(Lease::new(at.generation, ends, vec![header], kept.token));
        let settings = &self.settings;
        let renew = renew_after(kept.life, settings.renew_at, settings.renew_floor);
        let age = kept.life.saturating_sub(at.left);
        common.renew = Some(Deadline::after(renew.saturating_sub(age)));
        common.is_alone = false;
    }

    async fn log_in_for_all(&mut self, common: &mut Common, login: &Login) -> Due {
        let password = match self.settings.password.read() {
            Ok(password) => password,
            Err(source) => {
                self.metrics.session_logins.add(LoginOutcome::Secret);
                warn!(upstream = %self.upstream, error = %crate::causes::chain(&source),
                    "cannot read the upstream password; trying again every second");
                self.let_go(common, login, true).await;
                return self.blocked_until_new_secret(Why::Secret, None);
            }
        };
        self.budget.spend(tokio::time::Instant::now());
        self.phase.send_replace(Phase::LoggingIn);
        let outcome = tokio::select! {
            outcome = self.call.make(&password) => outcome,
            () = common.shared.hold(&self.upstream, login) => {
                self.metrics.session_logins.add(LoginOutcome::Superseded);
                info!(upstream = %self.upstream, "the turn to log in was lost to another gate");
                return at_once();
            }
            () = self.stop.aborting() => {
                self.let_go(common, login, false).await;
                return at_once();
            }
        };
        match outcome {
            Ok(granted) => self.publish_to_all(common, login, granted).await,
            Err(failure) => {
                self.let_go(common, login, failure.is_unsent()).await;
                self.failed(&failure, &password)
            }
        }
    }

    async fn publish_to_all(
        &mut self,
        common: &mut Common,
        login: &Login,
        granted: Granted,
    ) -> Due {
        let ends = Deadline::after(granted.left);
        self.session.minted(ends);
        self.metrics
            .session_clock_skew_seconds
            .set(granted.skew_seconds);
        let Some(sealed) = self.sealed(&granted.token, ends) else {
            return self.blocked(Why::Unusable, LOOK_AGAIN);
        };
        let single = self.settings.single_active_token;
        let lease = (granted.left, &sealed);
        let published = common
            .shared
            .publish(&self.upstream, login, single, lease)
            .await;
        let generation = match published {
            Ok(Published::Current(generation)) => {
                self.session.fence.adopt(generation);
                common.bell.remember(Latest {
                    generation,
                    refused: 0,
                    ends,
                    sealed,
                });
                common.is_alone = false;
                generation
            }
            Ok(Published::Lost | Published::Superseded) => {
                self.metrics.session_logins.add(LoginOutcome::Superseded);
                info!(upstream = %self.upstream,
                    "tokens were revoked, or another gate logged in; this login is not used");
                return at_once();
            }
            Err(error) => {
                warn!(upstream = %self.upstream, %error, "logged in, but cannot tell the other gates");
                match self.session.fence.publish(self.session.fence.begin()) {
                    Some(generation) => {
                        common.is_alone = true;
                        generation
                    }
                    None => return at_once(),
                }
            }
        };
        let due = self.take_up(granted, (generation, ends));
        if let Due::Renewal(renew) = due {
            common.renew = Some(renew);
        }
        due
    }

    fn sealed(&self, token: &Secret, ends: Deadline) -> Option<SealedBytes> {
        self.place.as_ref()?.sealed(token, ends.unix_millis())
    }

    async fn let_go(&self, common: &Common, login: &Login, unsent: bool) {
        let upstream = &self.upstream;
        // A store that does not hear it lets the lock run out.
        let _ = common.shared.let_go(upstream, login, unsent).await;
    }

    /// The store is away: the lease in use serves as long as it is good, then this gate
    /// logs in for itself.
    async fn without_store(&mut self, common: &mut Common) -> Due {
        if self.session.is_ready() && !common.is_due() {
            return Due::NotBefore(Deadline::after(LOOK_AGAIN));
        }
        let before = self.session.lease.load_full().map(|lease| lease.generation);
        let due = self.attempt().await;
        let now = self.session.lease.load_full().map(|lease| lease.generation);
        common.is_alone |= now != before;
        match due {
            Due::Renewal(renew) => {
                common.renew = Some(renew);
                Due::NotBefore(Deadline::after(LOOK_AGAIN))
            }
            other => other,
        }
    }
}

fn at_once() -> Due {
    Due::NotBefore(Deadline::after(Duration::ZERO))
}
