//! Reload: the new configuration is built beside the old one and swapped in one step, or refused
//! as a whole if any part of it cannot be built.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Notify;

use super::prepare::{PreparedParts, prepare};
use super::upstream_change::{PendingUpstream, UpstreamChange};
use super::worker::BoundListener;
use super::{ConfigApplied, Error};
use crate::config::{self, Config};
use crate::lifecycle::TaskScope;
use crate::metrics::Metrics;
use crate::pipeline::{AppState, Limiter, LiveRules};
use crate::upstream::{SealedLeaseStore, Upstream, UpstreamMaterials, UpstreamOpening};

/// What a reload changes.
#[derive(Debug)]
pub(super) struct ReloadTargets {
    pub(super) shared: Arc<AppState>,
    pub(super) lease_keeper: Option<SealedLeaseStore>,
    pub(super) listeners: Vec<BoundListener>,
    pub(super) scope: TaskScope,
    pub(super) on_reload: Option<ConfigApplied>,
    pub(super) pending: PendingUpstream,
}

impl ReloadTargets {
    /// Watches `file`, whose content is `config` now; `hup` makes it read the file at once.
    pub(super) fn start(self, file: PathBuf, config: Arc<Config>, hup: Arc<Notify>) {
        let (reloader, requests) = config::reloader();
        let watcher = config::ConfigWatcher::new(file, Arc::clone(&self.shared.metrics), requests);
        let (tasks, stop) = (self.scope.tasks.clone(), self.scope.stop.clone());
        let reload = Arc::new(self);
        let nudged = Arc::clone(&reload);
        let watch = watcher.run(config, stop.clone(), move |config: Arc<Config>| {
            let reload = Arc::clone(&reload);
            async move { reload.apply(config).await.map_err(Error::boxed) }
        });
        tasks.spawn("config watch", watch);
        tasks.spawn("config reload", async move {
            loop {
                tokio::select! {
                    () = stop.draining() => return,
                    () = hup.notified() => {
                        reloader.ask();
                        nudged.nudge();
                    }
                }
            }
        });
    }

    /// SIGHUP: logins that have stopped until an operator acts are tried again, whether or not the
    /// file has changed.
    fn nudge(&self) {
        self.pending.nudge();
        if let Some(session) = self.shared.live.load().upstream.session() {
            session.nudge();
        }
    }

    async fn apply(&self, config: Arc<Config>) -> Result<(), Error> {
        let old = self.shared.live.load_full();
        // Everything that can fail comes before the first thing that changes.
        let PreparedParts {
            upstream, routes, ..
        } = prepare(&config, None, &Metrics::new())?;
        let open = || self.open_upstream(&old, &config, upstream);
        let change = self.pending.change(&old, &config.upstream, open).await?;
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
        let (upstream, config) = match &change {
            UpstreamChange::Ready(upstream) => (upstream, config),
            UpstreamChange::Same => (&old.upstream, config),
            UpstreamChange::Later(_) => (&old.upstream, with_upstream_of(&old, &config)),
        };
        let live = LiveRules {
            routes,
            keys: old.keys.reload(&config.api_keys),
            ring: Arc::clone(&old.ring),
            limiter: Arc::new(limiter),
            upstream: Arc::clone(upstream),
            config,
        };
        if let Some(then) = &self.on_reload {
            then.0(&live.config);
        }
        upstream.take_over();
        if let Some(session) = upstream.session() {
            session.nudge();
        }
        self.shared.live.store(Arc::new(live));
        drop(swap);
        match change {
            UpstreamChange::Same => {}
            UpstreamChange::Ready(upstream) => old.upstream.retire(&upstream).await,
            UpstreamChange::Later(upstream) => self.take_over_later(upstream),
        }
        Ok(())
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
        old: &LiveRules,
        config: &Config,
        materials: UpstreamMaterials,
    ) -> Result<Arc<Upstream>, Error> {
        let metrics = &self.shared.metrics;
        let keeper = self
            .lease_keeper
            .clone()
            .map(SealedLeaseStore::ignoring_saved_lease);
        UpstreamOpening::new(&config.upstream, &self.scope, metrics)
            .of(materials)
            .announced_as(&self.shared.via)
            .keeping(keeper)
            .after(&old.upstream)
            .open()
            .map_err(Error::Upstream)
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

/// The new configuration with the upstream that stays in use for now.
fn with_upstream_of(live: &LiveRules, config: &Config) -> Arc<Config> {
    Arc::new(Config {
        upstream: live.config.upstream.clone(),
        ..config.clone()
    })
}
