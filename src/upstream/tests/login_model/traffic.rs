//! Requests through the session, as the pipeline sends them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::simulated_upstream::{SimulatedCalls, SimulatedUpstream, token_of};
use crate::config;
use crate::lifecycle::{ShutdownSignal, TaskSet};
use crate::metrics::Metrics;
use crate::secret::SecretSource;
use crate::upstream::login::login_budget::LoginBudget;
use crate::upstream::login::login_slots::UpstreamLoginSlots;
use crate::upstream::login::plan::LoginPlan;
use crate::upstream::login::renewer::Renewer;
use crate::upstream::{PathKey, RefusalVerdict, RefusedRequest, Session};

/// How one request ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestOutcome {
    pub(super) at: u64,
    pub(super) path: usize,
    pub(super) is_ok: bool,
    /// How often it was sent to the upstream.
    pub(super) sent: usize,
    pub(super) millis: u64,
}

/// The gateway under test: the real session and renewer.
pub(super) struct Gate {
    pub(super) session: Arc<Session>,
    upstream: Arc<SimulatedUpstream>,
    tasks: TaskSet,
    stop: ShutdownSignal,
    ended: Arc<Mutex<Vec<RequestOutcome>>>,
    _plan: watch::Sender<Arc<LoginPlan>>,
}

impl Gate {
    pub(super) fn start(upstream: &Arc<SimulatedUpstream>, logins_per_hour: u32) -> Self {
        let settings = config::Login {
            username: "gateway".to_owned(),
            password: SecretSource::Env("PATH".to_owned()),
            renew_at: 0.8,
            renew_floor: Duration::from_secs(60),
            min_login_interval: Duration::from_secs(1),
            logins_per_hour,
            timeout: Duration::from_secs(30),
            per_endpoint: false,
            single_active_token: upstream.traits.single_active,
        };
        let plan = LoginPlan {
            settings: settings.clone(),
            description: Arc::new(crate::profiles::whatsapp::login_description()),
            has_probe: upstream.traits.has_probe,
            calls: Box::new(SimulatedCalls(Arc::clone(upstream))),
        };
        let (tasks, stop) = (TaskSet::new(Handle::current()), ShutdownSignal::default());
        let metrics = Metrics::new().upstream("model");
        let (session, phase) = Session::new(None, &settings, 1, Arc::clone(&metrics));
        session.judgement.set_probe(plan.has_probe);
        let (plan, followed) = watch::channel(Arc::new(plan));
        let budget = LoginBudget::new(settings.min_login_interval, settings.logins_per_hour);
        let renewer = Renewer {
            upstream: "model".into(),
            session: Arc::clone(&session),
            phase,
            plan: followed,
            budget: Arc::new(parking_lot::Mutex::new(budget)),
            slots: UpstreamLoginSlots::default(),
            failures: 0,
            unaccepted: 0,
            not_before: None,
            refusals: 0,
            reported: None,
            renewal: None,
            binding: None,
            shared_login: None,
            metrics,
            stop: stop.clone(),
        };
        tasks.spawn("upstream login", renewer.run());
        Self {
            session,
            upstream: Arc::clone(upstream),
            tasks,
            stop,
            ended: Arc::default(),
            _plan: plan,
        }
    }

    /// Sends a request to `path` every `every` seconds until `until`, without waiting for the
    /// one before.
    pub(super) fn traffic(&self, path: usize, every: f64, until: u64) {
        let (session, upstream) = (Arc::clone(&self.session), Arc::clone(&self.upstream));
        let (ended, tasks) = (Arc::clone(&self.ended), self.tasks.clone());
        self.tasks.spawn("traffic", async move {
            while upstream.seconds() < until {
                sleep(Duration::from_secs_f64(every)).await;
                let (session, upstream) = (Arc::clone(&session), Arc::clone(&upstream));
                let ended = Arc::clone(&ended);
                tasks.spawn("request", async move {
                    let one = request(&session, &upstream, path).await;
                    ended.lock().unwrap().push(one);
                });
            }
        });
    }

    /// Runs until `until`; returns the outcome of each request.
    pub(super) async fn run(self, until: u64) -> Vec<RequestOutcome> {
        while self.upstream.seconds() < until + 90 {
            sleep(Duration::from_secs(1)).await;
        }
        self.stop.abort();
        self.ended.lock().unwrap().clone()
    }
}

/// One request as the pipeline sends it: lease, response, and retries after a refusal.
async fn request(session: &Session, upstream: &SimulatedUpstream, path: usize) -> RequestOutcome {
    let (began, at) = (upstream.millis(), upstream.seconds());
    let mut sent = 0;
    let is_ok = timeout(
        Duration::from_secs(60),
        exchange(session, upstream, path, &mut sent),
    )
    .await;
    RequestOutcome {
        at,
        path,
        is_ok: is_ok.unwrap_or(false),
        sent,
        millis: upstream.millis() - began,
    }
}

async fn exchange(
    session: &Session,
    upstream: &SimulatedUpstream,
    path: usize,
    sent: &mut usize,
) -> bool {
    let key = PathKey(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(path as u64 + 1));
    let lease = match session.lease_for(|| key, || path != 2) {
        Some(lease) => lease,
        None => match session.lease().await {
            Ok(lease) => lease,
            Err(_) => return false,
        },
    };
    let mut lease = lease;
    // Path 2 is for uploads that are too large to be replayed.
    let can_repeat = path != 2;
    let mut refused = RefusedRequest::new(key, can_repeat);
    loop {
        *sent += 1;
        sleep(Duration::from_millis(10)).await;
        if upstream.response(path, token_of(lease.headers())) == StatusCode::OK {
            session.note_accepted(&lease, key, *sent > 1);
            return true;
        }
        match session.reconsider(&mut refused, &lease).await {
            Ok(RefusalVerdict::Again(_)) if !can_repeat => return false,
            Ok(RefusalVerdict::Again(again)) => lease = again,
            Ok(RefusalVerdict::Upheld) | Err(_) => return false,
        }
    }
}
