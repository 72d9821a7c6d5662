//! The renewer's task and its inputs. After a reload the new upstream takes over the task of the one
//! before if both log in as the same user at the same address: token, budget and pauses stay as they
//! are.

use std::sync::Arc;

use tokio::sync::watch;

use super::lease_store::{LeaseBinding, SealedLeaseStore};
use super::login_budget::LoginBudgets;
use super::login_identity::LoginIdentity;
use super::plan::LoginPlan;
use super::renewer::Renewer;
use super::session::Session;
use super::shared_login::SharedLogin;
use crate::lifecycle::{ShutdownSignal, TaskSet};
use crate::metrics::UpstreamMetrics;

/// A running login; ends when the last upstream that uses it is dropped or retired.
#[derive(Debug)]
pub(in crate::upstream) struct LoginTask {
    pub(in crate::upstream) session: Arc<Session>,
    pub(in crate::upstream) identity: LoginIdentity,
    plan: watch::Sender<Arc<LoginPlan>>,
    stop: ShutdownSignal,
}

/// What a new login task needs besides its plan.
pub(in crate::upstream) struct LoginScope<'a> {
    pub(in crate::upstream) tasks: &'a TaskSet,
    pub(in crate::upstream) stop: ShutdownSignal,
    pub(in crate::upstream) metrics: &'a Arc<UpstreamMetrics>,
    pub(in crate::upstream) lease_store: Option<SealedLeaseStore>,
    /// Of all upstreams of the process.
    pub(in crate::upstream) budgets: Arc<LoginBudgets>,
}

/// A login for an upstream.
#[derive(Debug)]
pub(in crate::upstream) struct OpenedLogin {
    pub(in crate::upstream) task: Arc<LoginTask>,
    /// The plan that takes effect once the upstream is in use; None: it is in effect already.
    pub(in crate::upstream) plan: Option<Arc<LoginPlan>>,
}

impl LoginTask {
    /// The task of `before` if it is the same login, with the plan that takes effect once the new upstream
    /// is in use; otherwise a new task.
    pub(in crate::upstream) fn continue_or_start(
        before: Option<&Arc<Self>>,
        identity: LoginIdentity,
        plan: LoginPlan,
        scope: LoginScope<'_>,
    ) -> OpenedLogin {
        let description = &plan.description;
        if let Some(before) = before
            && before.identity == identity
            && before.plan.borrow().description == *description
        {
            return OpenedLogin {
                task: Arc::clone(before),
                plan: Some(Arc::new(plan)),
            };
        }
        OpenedLogin {
            task: Self::start(identity, plan, scope),
            plan: None,
        }
    }

    /// Puts `plan` into effect.
    pub(in crate::upstream) fn follow(&self, plan: &Arc<LoginPlan>) {
        if !Arc::ptr_eq(plan, &self.plan.borrow()) {
            self.plan.send_replace(Arc::clone(plan));
        }
    }

    fn start(identity: LoginIdentity, plan: LoginPlan, scope: LoginScope<'_>) -> Arc<Self> {
        let name = &identity.name;
        let place = scope.lease_store;
        let place =
            place.map(|lease_store| LeaseBinding::new(lease_store, name, identity.to_string()));
        let shared = place.as_ref().and_then(LeaseBinding::shared);
        let sharers = shared.map_or(1, |shared| shared.gates());
        let (metrics, endpoint) = (Arc::clone(scope.metrics), identity.endpoint.clone());
        let (session, phase) = Session::new(endpoint, &plan.settings, sharers, metrics);
        session.judgement.set_probe(plan.has_probe);
        let budget = scope.budgets.of(&identity.account, &plan.settings);
        let shared_login = place
            .as_ref()
            .and_then(|place| SharedLogin::of(place, name, &session));
        let (plan, followed) = watch::channel(Arc::new(plan));
        let renewer = Renewer {
            upstream: Arc::clone(name),
            session: Arc::clone(&session),
            phase,
            plan: followed,
            budget,
            slots: scope.budgets.slots.clone(),
            failures: 0,
            unaccepted: 0,
            not_before: None,
            refusals: 0,
            reported: None,
            renewal: None,
            binding: place,
            shared_login,
            metrics: Arc::clone(scope.metrics),
            stop: scope.stop.clone(),
        };
        scope.tasks.spawn("upstream login", renewer.run());
        Arc::new(Self {
            session,
            identity,
            plan,
            stop: scope.stop,
        })
    }

    /// Ends the renewer; returns when it has ended.
    pub(in crate::upstream) async fn end(&self) {
        self.stop.drain();
        self.session.ended().await;
    }
}

impl Drop for LoginTask {
    /// Stops the renewer of an upstream that was not retired.
    fn drop(&mut self) {
        self.stop.drain();
    }
}
