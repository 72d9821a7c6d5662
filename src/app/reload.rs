//! Reload: the new configuration is built beside the old one and swapped in one step, or refused
//! as a whole if any part of it cannot be built.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Notify;

use super::prepare::{PreparedParts, prepare};
use super::upstream_change::{PendingUpstreams, UpstreamChange, predecessor};
use super::worker::BoundListener;
use super::{ConfigApplied, ControlParts, Error};
use crate::config::{self, Config, DirectoryKind, UpstreamConfig};
use crate::lifecycle::TaskScope;
use crate::metrics::Metrics;
use crate::pipeline::{AppState, Limiter, LiveRules};
use crate::upstream::{
    LoginBudgets, SealedLeaseStore, Upstream, UpstreamMaterials, UpstreamOpening,
};
use crate::watched_files::ReloadSignal;

/// What a reload changes.
#[derive(Debug)]
pub(super) struct ReloadTargets {
    pub(super) shared: Arc<AppState>,
    pub(super) sealed_leases: Option<SealedLeaseStore>,
    pub(super) listeners: Vec<BoundListener>,
    pub(super) scope: TaskScope,
    pub(super) on_reload: Option<ConfigApplied>,
    pub(super) pending: PendingUpstreams,
    pub(super) login_budgets: Arc<LoginBudgets>,
    pub(super) reload_signal: ReloadSignal,
}

impl ControlParts {
    /// Passes on the requests of `hup`: all watched files are read at once, and logins that have
    /// stopped until an operator acts are tried again, whether or not a file has changed.
    pub(super) fn follow_sighup(&self, hup: &Arc<Notify>) {
        let hup = Arc::clone(hup);
        let stop = self.control.stop.clone();
        let (shared, pending) = (Arc::clone(&self.shared), self.pending.clone());
        let reload_signal = self.reload_signal.clone();
        self.control.spawn("reload requests", async move {
            loop {
                tokio::select! {
                    () = stop.draining() => return,
                    () = hup.notified() => {}
                }
                reload_signal.send();
                pending.nudge();
                for upstream in &shared.live.load().upstreams {
                    upstream.nudge();
                }
            }
        });
    }
}

impl ReloadTargets {
    /// Watches `file`, whose content is `config` now.
    pub(super) fn start(self, file: PathBuf, config: Arc<Config>) {
        let requests = self.reload_signal.subscribe();
        let watcher = config::ConfigWatcher::new(file, Arc::clone(&self.shared.metrics), requests);
        let (tasks, stop) = (self.scope.tasks.clone(), self.scope.stop.clone());
        let reload = Arc::new(self);
        let watch = watcher.run(config, stop, move |config: Arc<Config>| {
            let reload = Arc::clone(&reload);
            async move { reload.apply(config).await.map_err(Error::boxed) }
        });
        tasks.spawn("config watch", watch);
    }

    async fn apply(&self, config: Arc<Config>) -> Result<(), Error> {
        let old = self.shared.live.load_full();
        check_users_upstream(&old.config, &config)?;
        // Everything that can fail comes before the first thing that changes.
        let PreparedParts {
            upstreams, routes, ..
        } = prepare(&config, None, &Metrics::new())?;
        let mut materials: Vec<_> = upstreams.into_iter().map(Some).collect();
        let open = |position: usize, before: Option<&Upstream>| {
            let materials = materials[position].take();
            self.open_upstream(before, &config.upstreams[position], materials)
        };
        let changes = self.pending.changes(&old, &config.upstreams, open).await?;
        self.apply_listeners(&config)?;
        self.shared.tokens.reload(&config.users);
        let limiter = Limiter::new(
            &config.limits,
            Some(&old.limiter),
            Arc::clone(&self.shared.metrics),
        );
        let swap = self.pending.lock_live();
        // A changed upstream may have taken over while this one was being built.
        let old = self.shared.live.load_full();
        let config = with_upstreams_in_use(&old, config, &changes);
        let upstreams = upstreams_in_use(&old, &changes);
        let live = LiveRules {
            routes: Arc::new(routes),
            keys: old.keys.reload(&config.api_keys),
            ring: Arc::clone(&old.ring),
            limiter: Arc::new(limiter),
            upstreams,
            config,
        };
        self.put_in_use(live, &changes);
        drop(swap);
        self.retire(&old, changes).await;
        Ok(())
    }

    /// Logins that have stopped until an operator acts are tried again where the reload changes the
    /// upstream: another upstream's change says nothing about a wrong password.
    fn put_in_use(&self, live: LiveRules, changes: &[UpstreamChange]) {
        if let Some(then) = &self.on_reload {
            then.0(&live.config);
        }
        for (upstream, change) in live.upstreams.iter().zip(changes) {
            upstream.take_over();
            let is_changed = matches!(change, UpstreamChange::Ready { .. });
            if is_changed {
                upstream.nudge();
            }
        }
        self.pending.forget_removed(&live.upstreams);
        self.shared.live.store(Arc::new(live));
    }

    /// Ends what is in use no more, and waits in the background for what cannot serve yet.
    async fn retire(&self, old: &LiveRules, changes: Vec<UpstreamChange>) {
        let mut removed: Vec<_> = old.upstreams.iter().map(Some).collect();
        for change in changes {
            match change {
                UpstreamChange::Same(position) => removed[position] = None,
                UpstreamChange::Ready { upstream, replaces } => {
                    if let Some(before) = replaces.and_then(|at| removed[at].take()) {
                        before.retire(Some(&upstream)).await;
                    }
                }
                UpstreamChange::Later { upstream, replaces } => {
                    removed[replaces] = None;
                    self.take_over_later(upstream);
                }
            }
        }
        for upstream in removed.into_iter().flatten() {
            upstream.retire(None).await;
        }
    }

    fn take_over_later(&self, upstream: Arc<Upstream>) {
        let (pending, shared) = (self.pending.clone(), Arc::clone(&self.shared));
        let later = pending.take_over_later(shared, upstream);
        let stop = self.scope.stop.clone();
        self.scope.spawn("upstream change", async move {
            tokio::select! {
                () = stop.draining() => {}
                () = later => {}
            }
        });
    }

    fn open_upstream(
        &self,
        before: Option<&Upstream>,
        settings: &config::UpstreamConfig,
        materials: Option<UpstreamMaterials>,
    ) -> Result<Arc<Upstream>, Error> {
        let sealed_leases = self.sealed_leases.clone();
        let opening = UpstreamOpening::new(settings, &self.scope, &self.shared.metrics)
            .of(materials)
            .announced_as(&self.shared.via)
            .with_login_budgets(&self.login_budgets)
            .reloaded_on(&self.reload_signal);
        let opening = match before {
            Some(before) => opening
                .with_sealed_leases(sealed_leases.map(SealedLeaseStore::ignoring_saved_lease))
                .after(before),
            None => opening.with_sealed_leases(sealed_leases),
        };
        opening.open().map_err(Error::Upstream)
    }

    /// Each listener with its new settings. A changed address is another listener, which
    /// takes a restart.
    fn with_new_settings<'a>(
        &'a self,
        config: &'a Config,
    ) -> impl Iterator<Item = (&'a BoundListener, &'a config::Listener)> {
        self.listeners.iter().filter_map(|listener| {
            let bound = listener.settings.load().address;
            let mut wanted = config.listeners.iter();
            Some((listener, wanted.find(|wanted| wanted.address == bound)?))
        })
    }

    fn apply_listeners(&self, config: &Config) -> Result<(), Error> {
        for (listener, settings) in self.with_new_settings(config) {
            if let (Some(tls), Some(files)) = (listener.tls(), &settings.tls) {
                tls.replace(files).map_err(|source| Error::Listener {
                    address: listener.address(),
                    source,
                })?;
            }
            listener.connection_limit().resize(settings.max_connections);
            listener.settings.store(Arc::new(settings.clone()));
        }
        Ok(())
    }
}

/// Fails when another upstream than before would have the users: their tokens, which are known here
/// by now, would be sent to it. What has the address of another upstream is another one, whatever its name.
fn check_users_upstream(old: &Config, new: &Config) -> Result<(), Error> {
    let is_relaying = old.users.directory == DirectoryKind::Upstream;
    let (was, is) = (old.users_upstream(), new.users_upstream());
    let before = predecessor(&old.upstreams, &new.upstreams, &is.name);
    let is_at = |other: &UpstreamConfig| other.base == is.base && other.host == is.host;
    let is_another = !is_at(was) && old.upstreams.iter().any(is_at);
    match is_relaying && (before != Some(old.users_upstream) || is_another) {
        true => Err(Error::UsersUpstream),
        false => Ok(()),
    }
}

/// The new configuration, with the settings of upstreams that stay in use for now.
fn with_upstreams_in_use(
    old: &LiveRules,
    config: Arc<Config>,
    changes: &[UpstreamChange],
) -> Arc<Config> {
    let mut config = config;
    for (position, change) in changes.iter().enumerate() {
        if let UpstreamChange::Later { replaces, .. } = change {
            let in_use = old.config.upstreams[*replaces].clone();
            Arc::make_mut(&mut config).upstreams[position] = in_use;
        }
    }
    config
}

fn upstreams_in_use(old: &LiveRules, changes: &[UpstreamChange]) -> Vec<Arc<Upstream>> {
    let in_use = changes.iter().map(|change| match change {
        UpstreamChange::Ready { upstream, .. } => upstream,
        UpstreamChange::Same(position) => &old.upstreams[*position],
        UpstreamChange::Later { replaces, .. } => &old.upstreams[*replaces],
    });
    in_use.map(Arc::clone).collect()
}
