//! A reload that changes upstreams: each new one takes over when it can serve. Until then the old one
//! stays in use, with everything else of the new configuration.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::config::UpstreamConfig;
use crate::pipeline::{AppState, LiveRules};
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
    settings: UpstreamConfig,
    /// The one that stays in use until then.
    replaces: Arc<Upstream>,
}

/// The changed upstreams that wait to take over. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingUpstreams {
    waiting: Arc<Mutex<Vec<AwaitedUpstream>>>,
    swap: Arc<Mutex<()>>,
}

/// What a reload does about one upstream of the new configuration. Positions are those of the rules
/// in use, which an upstream that takes over later does not change.
pub(super) enum UpstreamChange {
    /// Nothing about it has changed: the one at this position stays.
    Same(usize),
    /// The new one can serve, or it was added. `replaces`: None if it was added.
    Ready {
        upstream: Arc<Upstream>,
        replaces: Option<usize>,
    },
    /// The new one cannot serve yet: the one at position `replaces` stays until it can.
    Later {
        upstream: Arc<Upstream>,
        replaces: usize,
    },
}

impl PendingUpstreams {
    /// One line for the operator about each.
    pub(super) fn notes(&self) -> Vec<String> {
        let note = |waiting: &AwaitedUpstream| {
            let (name, reason) = (&waiting.upstream.name, reason(&waiting.upstream));
            format!("upstream {name}: its changed settings wait to take over: {reason}")
        };
        self.all().iter().map(note).collect()
    }

    /// Makes the waiting upstreams try their logins again now.
    pub(super) fn nudge(&self) {
        for waiting in self.all() {
            waiting.upstream.nudge();
        }
    }

    fn all(&self) -> Vec<AwaitedUpstream> {
        self.waiting.lock().clone()
    }

    /// The waiting upstream of these settings.
    fn find(&self, settings: &UpstreamConfig) -> Option<AwaitedUpstream> {
        let waiting = self.waiting.lock();
        let mut waiting = waiting.iter();
        waiting
            .find(|waiting| waiting.settings == *settings)
            .cloned()
    }

    /// Ends the wait for what would replace `upstream`.
    fn cancel(&self, upstream: &Arc<Upstream>) {
        let mut waiting = self.waiting.lock();
        waiting.retain(|waiting| !Arc::ptr_eq(&waiting.replaces, upstream));
    }

    /// Ends the waits for upstreams that would replace one that is not in use any more.
    pub(super) fn forget_removed(&self, in_use: &[Arc<Upstream>]) {
        let is_in_use = |waiting: &AwaitedUpstream| {
            let mut in_use = in_use.iter();
            in_use.any(|upstream| Arc::ptr_eq(upstream, &waiting.replaces))
        };
        self.waiting.lock().retain(is_in_use);
    }

    /// Held while the rules in use are read, changed and stored: serialises reloads and upstreams
    /// that take over later.
    pub(super) fn lock_live(&self) -> MutexGuard<'_, ()> {
        self.swap.lock()
    }

    /// Ends the wait of `upstream`; None if it does not wait any more.
    fn take(&self, upstream: &Arc<Upstream>) -> Option<AwaitedUpstream> {
        let mut waiting = self.waiting.lock();
        let is_same = |waiting: &AwaitedUpstream| Arc::ptr_eq(&waiting.upstream, upstream);
        let position = waiting.iter().position(is_same)?;
        Some(waiting.remove(position))
    }

    /// What `settings` change about the upstreams in use. `open` makes the one at a position of
    /// `settings`, after the one that it replaces; all are opened before any is waited for.
    pub(super) async fn changes<E>(
        &self,
        live: &LiveRules,
        settings: &[UpstreamConfig],
        mut open: impl FnMut(usize, Option<&Upstream>) -> Result<Arc<Upstream>, E>,
    ) -> Result<Vec<UpstreamChange>, E> {
        let mut changes = Vec::new();
        for (position, new) in settings.iter().enumerate() {
            let before = &live.config.upstreams;
            let replaces = predecessor(before, settings, &new.name);
            changes.push(match (replaces, self.find(new)) {
                (Some(position), _) if before[position] == *new => UpstreamChange::Same(position),
                (Some(replaces), Some(AwaitedUpstream { upstream, .. })) => {
                    UpstreamChange::Later { upstream, replaces }
                }
                _ => UpstreamChange::Ready {
                    upstream: open(position, replaces.map(|at| &*live.upstreams[at]))?,
                    replaces,
                },
            });
        }
        let settled = changes.into_iter().zip(settings);
        let settled = settled.map(|(change, settings)| self.settle(live, change, settings));
        Ok(join_all(settled).await)
    }

    /// Waits until a replacement can serve, a while at most.
    async fn settle(
        &self,
        live: &LiveRules,
        change: UpstreamChange,
        settings: &UpstreamConfig,
    ) -> UpstreamChange {
        let (upstream, position) = match change {
            UpstreamChange::Same(position) => {
                self.cancel(&live.upstreams[position]);
                return change;
            }
            UpstreamChange::Ready {
                upstream,
                replaces: Some(position),
            } => (upstream, position),
            added_or_waiting => return added_or_waiting,
        };
        let (before, old) = (&live.upstreams[position], &live.config.upstreams[position]);
        self.cancel(before);
        let proof = prove(&upstream, before, old, settings);
        if timeout(FIRST_LOGIN_TIMEOUT, proof).await.is_ok() {
            return UpstreamChange::Ready {
                upstream,
                replaces: Some(position),
            };
        }
        warn!(upstream = %upstream.name, reason = %reason(&upstream),
            "the changed upstream cannot serve yet; the old one stays in use until it can");
        self.waiting.lock().push(AwaitedUpstream {
            upstream: Arc::clone(&upstream),
            settings: settings.clone(),
            replaces: Arc::clone(before),
        });
        UpstreamChange::Later {
            upstream,
            replaces: position,
        }
    }

    /// Waits until `upstream` can serve, and puts it in use unless a later reload has replaced it.
    pub(super) async fn take_over_later(self, shared: Arc<AppState>, upstream: Arc<Upstream>) {
        let mut all = self.all().into_iter();
        let Some(waiting) = all.find(|waiting| Arc::ptr_eq(&waiting.upstream, &upstream)) else {
            return;
        };
        let old = shared.live.load_full();
        let Some(position) = position(&old, &waiting.replaces) else {
            return;
        };
        let (before, settings) = (&waiting.replaces, &waiting.settings);
        let old = &old.config.upstreams[position];
        let mut proof = Box::pin(prove(&upstream, before, old, settings));
        while timeout(CHECK_INTERVAL, &mut proof).await.is_err() {
            if self.find(settings).is_none() {
                return; // another reload has replaced it
            }
        }
        drop(proof);
        if self.put_in_use(&shared, &upstream) {
            info!(upstream = %upstream.name, "the changed upstream can serve; it is in use now");
            before.retire(Some(&upstream)).await;
        }
    }

    /// False if a later reload has replaced the upstream.
    fn put_in_use(&self, shared: &AppState, upstream: &Arc<Upstream>) -> bool {
        let _live = self.lock_live();
        let Some(waiting) = self.take(upstream) else {
            return false;
        };
        let old = shared.live.load_full();
        let Some(position) = position(&old, &waiting.replaces) else {
            return false;
        };
        let mut config = (*old.config).clone();
        config.upstreams[position] = waiting.settings;
        let mut upstreams = old.upstreams.clone();
        upstreams[position] = Arc::clone(upstream);
        let live = LiveRules {
            routes: Arc::clone(&old.routes),
            keys: old.keys.reload(&config.api_keys),
            ring: Arc::clone(&old.ring),
            limiter: Arc::clone(&old.limiter),
            upstreams,
            config: Arc::new(config),
        };
        upstream.take_over();
        shared.live.store(Arc::new(live));
        true
    }
}

fn position(live: &LiveRules, upstream: &Arc<Upstream>) -> Option<usize> {
    let mut upstreams = live.upstreams.iter();
    upstreams.position(|other| Arc::ptr_eq(other, upstream))
}

/// Position in `old` of the upstream that the one named `name` of `new` replaces: the one of this
/// name, or the one that was renamed. One upstream before and after is the same service, whatever else
/// has changed; among several, only one that has the same settings under another name. None: it was
/// added.
pub(super) fn predecessor(
    old: &[UpstreamConfig],
    new: &[UpstreamConfig],
    name: &str,
) -> Option<usize> {
    if let Some(same) = old.iter().position(|other| *other.name == *name) {
        return Some(same);
    }
    if old.len() == 1 && new.len() == 1 {
        return Some(0);
    }
    let has = |list: &[UpstreamConfig], name: &str| list.iter().any(|other| *other.name == *name);
    let settings = new.iter().find(|other| *other.name == *name)?;
    let is_same = |other: &&UpstreamConfig| {
        let renamed = UpstreamConfig {
            name: Arc::clone(&settings.name),
            ..(*other).clone()
        };
        renamed == *settings
    };
    let mut gone = (0..old.len()).filter(|at| !has(new, &old[*at].name) && is_same(&&old[*at]));
    let added = new.iter().filter(|other| !has(old, &other.name));
    match (gone.next(), gone.next()) {
        (Some(gone), None) if added.filter(is_same).count() == 1 => Some(gone),
        _ => None,
    }
}

/// Returns once requests could go to `upstream`: its login has succeeded, where it has a session
/// of its own, or it can be reached, where its address or trust has changed.
async fn prove(upstream: &Upstream, before: &Upstream, old: &UpstreamConfig, new: &UpstreamConfig) {
    if upstream.has_login() && !upstream.continues(before) {
        while let Err(no_lease) = upstream.logged_in().await {
            sleep(no_lease.retry_after.min(CHECK_INTERVAL)).await;
        }
        return;
    }
    while !old.is_reached_like(new) && upstream.reach().await.is_err() {
        sleep(CHECK_INTERVAL).await;
    }
}

/// Why it cannot serve yet.
fn reason(upstream: &Upstream) -> String {
    let unready = upstream.sessions().find(|session| !session.is_ready());
    match unready.filter(|_| !upstream.is_logged_in()) {
        Some(session) => session.status().to_string(),
        None => "it cannot be reached as configured".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Vec<UpstreamConfig> {
        let settings = crate::config::parse(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.main]\nurl = \"http://127.0.0.1:1\"\n\
             [users]\ndirectory = \"webapp\"\n",
            std::path::Path::new(""),
        );
        let first = settings.unwrap().config.upstreams.remove(0);
        let with_name = |name: &&str| UpstreamConfig {
            name: Arc::from(*name),
            ..first.clone()
        };
        names.iter().map(with_name).collect()
    }

    #[test]
    fn an_upstream_replaces_the_one_of_its_name_or_the_only_one_that_is_gone() {
        let old = named(&["a", "b"]);
        let found = |new: &[&str], name| predecessor(&old, &named(new), name);
        assert_eq!(found(&["b", "a"], "a"), Some(0));
        assert_eq!(found(&["b", "a"], "b"), Some(1));
        assert_eq!(found(&["a", "c"], "c"), Some(1), "b was renamed");
        assert_eq!(found(&["a", "b", "c"], "c"), None, "added");
        assert_eq!(found(&["a", "c", "d"], "c"), None, "which of the two is b?");
        assert_eq!(found(&["c", "d"], "d"), None);
    }
}
