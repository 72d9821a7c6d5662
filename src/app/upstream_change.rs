//! A reload that changes the upstream: the new upstream takes over when it can serve. Until then
//! the old one stays in use, with everything else of the new configuration.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::config::{self, Config};
use crate::pipeline::{AppState, LiveRules, RouteTable};
use crate::upstream::Upstream;

/// How long the reload itself waits for a changed upstream; after that the upstream takes over
/// in the background.
const FIRST_LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two checks of an upstream that cannot serve yet.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A changed upstream that cannot serve yet.
#[derive(Clone, Debug)]
struct AwaitedUpstream {
    upstream: Arc<Upstream>,
    settings: config::UpstreamConfig,
}

/// The changed upstream that waits to take over, if there is one. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingUpstream {
    waiting: Arc<Mutex<Option<AwaitedUpstream>>>,
    swap: Arc<Mutex<()>>,
}

impl PendingUpstream {
    /// One line for the operator.
    pub(super) fn note(&self) -> Option<String> {
        let waiting = self.get()?;
        let (name, reason) = (&waiting.upstream.name, reason(&waiting.upstream));
        Some(format!(
            "upstream {name}: its changed settings wait to take over: {reason}"
        ))
    }

    /// Makes the waiting upstream try its login again now.
    pub(super) fn nudge(&self) {
        if let Some(waiting) = self.get()
            && let Some(session) = waiting.upstream.session()
        {
            session.nudge();
        }
    }

    fn get(&self) -> Option<AwaitedUpstream> {
        self.waiting.lock().clone()
    }

    fn set(&self, waiting: Option<AwaitedUpstream>) {
        *self.waiting.lock() = waiting;
    }

    /// The waiting upstream of these settings.
    fn find(&self, settings: &config::UpstreamConfig) -> Option<Arc<Upstream>> {
        let waiting = self.get()?;
        (waiting.settings == *settings).then_some(waiting.upstream)
    }

    /// Held while the rules in use are read, changed and stored: serialises reloads and upstreams
    /// that take over later.
    pub(super) fn lock_live(&self) -> MutexGuard<'_, ()> {
        self.swap.lock()
    }

    /// Ends the wait of `upstream`; false if another one waits instead.
    fn take(&self, upstream: &Arc<Upstream>) -> bool {
        let mut waiting = self.waiting.lock();
        let is_same = |waiting: &AwaitedUpstream| Arc::ptr_eq(&waiting.upstream, upstream);
        let is_waiting = waiting.as_ref().is_some_and(is_same);
        if is_waiting {
            *waiting = None;
        }
        is_waiting
    }
}

/// What a reload does about the upstream.
pub(super) enum UpstreamChange {
    /// Nothing about it has changed.
    Same,
    /// The new one can serve.
    Ready(Arc<Upstream>),
    /// It cannot serve yet.
    Later(Arc<Upstream>),
}

impl PendingUpstream {
    /// What `settings` change about the upstream in use. `open` makes a new one.
    pub(super) async fn change<E>(
        &self,
        live: &LiveRules,
        settings: &config::UpstreamConfig,
        open: impl FnOnce() -> Result<Arc<Upstream>, E>,
    ) -> Result<UpstreamChange, E> {
        let in_use = &live.config.upstream;
        if in_use == settings {
            self.set(None);
            return Ok(UpstreamChange::Same);
        }
        if let Some(upstream) = self.find(settings) {
            return Ok(UpstreamChange::Later(upstream));
        }
        let upstream = open()?;
        self.set(None);
        let proof = prove(&upstream, &live.upstream, in_use, settings);
        if timeout(FIRST_LOGIN_TIMEOUT, proof).await.is_ok() {
            return Ok(UpstreamChange::Ready(upstream));
        }
        warn!(upstream = %upstream.name, reason = %reason(&upstream),
            "the changed upstream cannot serve yet; the old one stays in use until it can");
        self.set(Some(AwaitedUpstream {
            upstream: Arc::clone(&upstream),
            settings: settings.clone(),
        }));
        Ok(UpstreamChange::Later(upstream))
    }

    /// Waits until `upstream` can serve, and puts it in use unless a later reload has replaced it.
    pub(super) async fn take_over_later(self, shared: Arc<AppState>, upstream: Arc<Upstream>) {
        let Some(settings) = self.get().map(|waiting| waiting.settings) else {
            return;
        };
        let old = shared.live.load_full();
        let mut proof = Box::pin(prove(
            &upstream,
            &old.upstream,
            &old.config.upstream,
            &settings,
        ));
        while timeout(CHECK_INTERVAL, &mut proof).await.is_err() {
            if self.find(&settings).is_none() {
                return; // another reload has replaced it
            }
        }
        drop(proof);
        let Some(old) = self.put_in_use(&shared, &upstream, settings) else {
            return;
        };
        info!(upstream = %upstream.name, "the changed upstream can serve; it is in use now");
        old.upstream.retire(&upstream).await;
    }

    /// Returns the rules that were in use; None if a later reload has replaced the upstream.
    fn put_in_use(
        &self,
        shared: &AppState,
        upstream: &Arc<Upstream>,
        settings: config::UpstreamConfig,
    ) -> Option<Arc<LiveRules>> {
        let _live = self.lock_live();
        if !self.take(upstream) {
            return None;
        }
        let old = shared.live.load_full();
        let config = Config {
            upstream: settings,
            ..(*old.config).clone()
        };
        let live = LiveRules {
            routes: RouteTable::new(&config.routes),
            keys: old.keys.reload(&config.api_keys),
            ring: Arc::clone(&old.ring),
            limiter: Arc::clone(&old.limiter),
            upstream: Arc::clone(upstream),
            config: Arc::new(config),
        };
        upstream.take_over();
        shared.live.store(Arc::new(live));
        Some(old)
    }
}

/// Returns once requests could go to `upstream`: its login has succeeded, where it has a session
/// of its own, or it can be reached, where its address or trust has changed.
async fn prove(
    upstream: &Upstream,
    before: &Upstream,
    old: &config::UpstreamConfig,
    new: &config::UpstreamConfig,
) {
    if let Some(session) = upstream.session()
        && !upstream.continues(before)
    {
        while let Err(no_lease) = session.lease().await {
            sleep(no_lease.retry_after.min(CHECK_INTERVAL)).await;
        }
        return;
    }
    let has_moved =
        old.base != new.base || old.trust != new.trust || old.server_name != new.server_name;
    while has_moved && upstream.reach().await.is_err() {
        sleep(CHECK_INTERVAL).await;
    }
}

/// Why it cannot serve yet.
fn reason(upstream: &Upstream) -> String {
    match upstream.session().map(|session| session.status()) {
        Some(status) if !status.is_ready => status.to_string(),
        _ => "it cannot be reached as configured".to_owned(),
    }
}
