//! A new configuration takes the place of the old one: built beside it, swapped in
//! one step, refused whole if any part of it cannot be built.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::warn;

use super::worker::Gate;
use super::{Applied, Error};
use crate::config::{self, Config};
use crate::lifecycle::{Stop, Tasks};
use crate::pipeline::{Limiter, Live, RouteTable, Shared};
use crate::upstream::{LeaseKeeper, Upstream, UpstreamHandover};

/// A new upstream may take this long to log in before requests are sent its way anyway.
const FIRST_LOGIN: Duration = Duration::from_secs(10);

/// What a reload may touch.
#[derive(Debug)]
pub(super) struct Reload {
    pub(super) shared: Arc<Shared>,
    pub(super) lease_keeper: Option<LeaseKeeper>,
    pub(super) gates: Vec<Gate>,
    pub(super) tasks: Tasks,
    pub(super) control: Stop,
    pub(super) on_reload: Option<Applied>,
}

impl Reload {
    /// Watches `file`, which holds `config` now; `hup` asks for a look at once.
    pub(super) fn start(self, file: PathBuf, config: Arc<Config>, hup: Arc<Notify>) {
        let (reloader, requests) = config::reloader();
        let watcher = config::Watcher::new(file, Arc::clone(&self.shared.metrics), requests);
        let (tasks, stop) = (self.tasks.clone(), self.control.clone());
        let reload = Arc::new(self);
        let watch = watcher.run(config, stop.clone(), move |config: Arc<Config>| {
            let reload = Arc::clone(&reload);
            async move { reload.apply(config).await }
        });
        tasks.spawn("config watch", watch);
        tasks.spawn("config reload", async move {
            loop {
                tokio::select! {
                    () = stop.draining() => return,
                    () = hup.notified() => reloader.ask(),
                }
            }
        });
    }

    async fn apply(&self, config: Arc<Config>) -> Result<(), Error> {
        let old = self.shared.live.load_full();
        // Everything that can fail comes before the first thing that changes.
        self.check_listeners(&config)?;
        let upstream = self.upstream(&old, &config).await?;
        self.apply_listeners(&config)?;
        self.shared.tokens.reload(&config.users);
        let limiter = Limiter::new(
            &config.limits,
            Some(&old.limiter),
            Arc::clone(&self.shared.metrics),
        );
        let live = Live {
            routes: RouteTable::new(&config.routes),
            keys: old.keys.reload(&config.api_keys),
            ring: Arc::clone(&old.ring),
            limiter: Arc::new(limiter),
            upstream: Arc::clone(&upstream),
            config,
        };
        if let Some(then) = &self.on_reload {
            then.0(&live.config);
        }
        self.shared.live.store(Arc::new(live));
        if !Arc::ptr_eq(&old.upstream, &upstream) {
            old.upstream.retire().await;
        }
        Ok(())
    }

    /// The old upstream if nothing about it changed; otherwise a new one that has
    /// already logged in, so that no request has to wait for it.
    async fn upstream(&self, old: &Live, config: &Config) -> Result<Arc<Upstream>, Error> {
        if old.config.upstream == config.upstream {
            return Ok(Arc::clone(&old.upstream));
        }
        let metrics = &self.shared.metrics;
        let life = (&self.tasks, &self.control);
        let keeper = self.lease_keeper.clone().map(LeaseKeeper::without_the_kept);
        let handover = UpstreamHandover {
            via: self.shared.via.clone(),
            keeper,
            health: old.upstream.health_for(&config.upstream),
        };
        let upstream = Upstream::open_keeping(&config.upstream, life, metrics, handover);
        let upstream = upstream.map_err(Error::Upstream)?;
        if let Some(session) = upstream.session() {
            let first = tokio::time::timeout(FIRST_LOGIN, session.lease()).await;
            if !matches!(first, Ok(Ok(_))) {
                warn!(
                    "the changed upstream has not let us log in yet: {}",
                    session.status()
                );
            }
        }
        Ok(upstream)
    }

    /// Each gate with its new settings. A changed address is a new listener, which
    /// takes a restart.
    fn listeners<'a>(
        &'a self,
        config: &'a Config,
    ) -> impl Iterator<Item = (&'a Gate, &'a config::Listener)> {
        self.gates.iter().filter_map(|gate| {
            let bound = gate.settings.load().address;
            let mut wanted = config.listeners.iter();
            Some((gate, wanted.find(|wanted| wanted.address == bound)?))
        })
    }

    fn check_listeners(&self, config: &Config) -> Result<(), Error> {
        for (gate, settings) in self.listeners(config) {
            if let (Some(tls), Some(files)) = (gate.tls(), &settings.tls) {
                tls.check(files).map_err(|source| Error::Listener {
                    address: gate.address(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    fn apply_listeners(&self, config: &Config) -> Result<(), Error> {
        for (gate, settings) in self.listeners(config) {
            if let (Some(tls), Some(files)) = (gate.tls(), &settings.tls) {
                tls.replace(files).map_err(|source| Error::Listener {
                    address: gate.address(),
                    source,
                })?;
            }
            gate.slots().resize(settings.max_connections);
            gate.settings.store(Arc::new(settings.clone()));
        }
        Ok(())
    }
}
