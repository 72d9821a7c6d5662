//! The only place that builds parts and joins them. `bind` touches the world and
//! may fail; what it gives back runs until it is told to stop. The program, the
//! tests and the benches all start here.

mod banner;
mod check;
#[cfg(feature = "emulator")]
mod demo;
mod drain;
mod error;
mod operator;
mod prepare;
mod reload;
mod serve;
mod store_bootstrap;
mod upstream_change;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use check::{CheckResult, check, check_connections};
pub use error::Error;
#[cfg(feature = "emulator")]
pub use serve::emulate;
pub use serve::serve;

use crate::admin;
use crate::config::Config;
use crate::identity::{FirstAdmin, KeySet};
use crate::lifecycle::{Readiness, ReadinessGuard, ShutdownSignal, TaskSet};
use crate::listener::ServerTls;
use crate::metrics::Metrics;
use crate::pipeline::{
    AppState, Limiter, LiveRules, RouteTable, TokenIntrospection, keep_probe_tried,
};
use crate::upstream::{Upstream, UpstreamOpening};
use crate::via::GatewayVia;
use prepare::prepare;
use store_bootstrap::StoreBootstrap;
use upstream_change::PendingUpstream;
use worker::BoundListener;

/// How the outside steers a running program.
#[derive(Clone, Debug, Default)]
pub struct ShutdownHandle {
    /// Drain, then end.
    pub quit: CancellationToken,
    /// Drain without the wait for balancers: whoever quits sits at the terminal.
    pub skip_wait: CancellationToken,
    /// End now.
    pub quit_now: CancellationToken,
    /// Read config, certificates and secrets again now.
    pub hup: Arc<Notify>,
}

/// Everything bound and built, nothing running but the renewer.
#[derive(Debug)]
pub struct BoundApp {
    parts: ControlParts,
    gates: Vec<BoundListener>,
    operator: SocketAddr,
    first_admin: Option<FirstAdmin>,
    starting: ReadinessGuard,
    on_reload: Option<ConfigApplied>,
}

/// Told of each new configuration once it is in use.
#[derive(Clone)]
struct ConfigApplied(Arc<dyn Fn(&Config) + Send + Sync>);

impl std::fmt::Debug for ConfigApplied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Applied")
    }
}

/// What the control side needs while the program runs.
#[derive(Debug)]
struct ControlParts {
    config_file: Option<PathBuf>,
    config: Arc<Config>,
    shared: Arc<AppState>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    /// Of the listeners and workers.
    edge: ShutdownSignal,
    /// Of renewers, sweeps and the operator's listener: ends last.
    control: ShutdownSignal,
    tasks: TaskSet,
    kept: StoreBootstrap,
    pending: PendingUpstream,
}

/// Where a running program listens.
#[derive(Clone, Debug)]
pub struct BoundAddresses {
    pub listeners: Vec<SocketAddr>,
    pub operator: SocketAddr,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitOutcome {
    /// Everything in flight was finished.
    Clean,
    /// The drain deadline, or a second signal, cut something short.
    Cut,
    /// A task ended by itself: a defect.
    Failed,
}

/// Builds everything. `config_file` is watched for changes; None: no reload. With `quit`
/// cancelled it does not wait for a disk.
pub async fn bind(
    config: Arc<Config>,
    config_file: Option<PathBuf>,
    quit: &CancellationToken,
) -> Result<BoundApp, Error> {
    let control = ShutdownSignal::default();
    let bound = build((config, config_file), &control, quit).await;
    if bound.is_err() {
        control.abort();
    }
    bound
}

async fn build(
    (config, config_file): (Arc<Config>, Option<PathBuf>),
    control: &ShutdownSignal,
    quit: &CancellationToken,
) -> Result<BoundApp, Error> {
    let metrics = Metrics::new();
    let tasks = TaskSet::new(Handle::current());
    let readiness = Readiness::default();
    let starting = readiness.not_yet();

    make_certificates(&config)?;
    let prepared = prepare(&config, config_file.as_deref(), &metrics)?;
    let gates = open_gates(&config, prepared.listeners)?;
    let life = (&tasks, control);
    let (operator, desk) = open_desk(&config, life, &metrics)?;
    start_emulator(&config, &tasks, control).await?;

    let kept = store_bootstrap::open(&config, prepared.seal, life, (&metrics, quit)).await?;
    let (users, first_admin) = kept.users(&config.users).await?;
    let tokens = match kept.tokens(&config, users.as_ref(), &metrics).await {
        Ok(tokens) => tokens,
        Err(error) => {
            banner::print_generated_password(first_admin.as_ref()); // the next start will not know it
            kept.close().await;
            return Err(error);
        }
    };
    store_bootstrap::end_old_tokens(first_admin.as_ref(), &tokens).await;
    let via = GatewayVia::random();
    let upstream = UpstreamOpening::new(&config.upstream, &tasks, control, &metrics);
    let upstream = upstream.of(prepared.upstream).announced_as(&via);
    let upstream = upstream.keeping(kept.lease_keeper()).open()?;
    let live = first_rules(&config, &kept, upstream, prepared.routes, &metrics);
    let shared = Arc::new(AppState {
        live: ArcSwap::from_pointee(live),
        users: users.map(Arc::new),
        tokens,
        introspection: Arc::new(TokenIntrospection::default()),
        metrics: Arc::clone(&metrics),
        via,
        unreadable_origin_logged: AtomicBool::new(false),
    });
    let parts = ControlParts {
        config_file,
        config,
        shared,
        metrics,
        readiness,
        edge: ShutdownSignal::default(),
        control: control.clone(),
        tasks,
        kept,
        pending: PendingUpstream::default(),
    };
    desk.open(parts.for_operator());
    Ok(BoundApp {
        parts,
        gates,
        operator,
        first_admin,
        starting,
        on_reload: None,
    })
}

fn first_rules(
    config: &Arc<Config>,
    kept: &StoreBootstrap,
    upstream: Arc<Upstream>,
    routes: RouteTable,
    metrics: &Arc<Metrics>,
) -> LiveRules {
    let limiter = Limiter::with_store(kept.shared(), &config.limits, None, Arc::clone(metrics));
    LiveRules {
        routes,
        keys: KeySet::new(&config.api_keys),
        ring: kept.ring(),
        limiter: Arc::new(limiter),
        upstream,
        config: Arc::clone(config),
    }
}

/// The operator is answered from here on: a start can take long.
fn open_desk(
    config: &Config,
    (tasks, control): (&TaskSet, &ShutdownSignal),
    metrics: &Arc<Metrics>,
) -> Result<(SocketAddr, admin::AdminState), Error> {
    let address = config.operator.address;
    let bound = admin::bind(address).map_err(|source| Error::Operator { address, source })?;
    let (address, desk) = (bound.address(), admin::AdminState::new(Arc::clone(metrics)));
    let serve = admin::serve(bound, desk.clone(), tasks.clone(), control.clone());
    tasks.spawn("operator's listener", serve);
    Ok((address, desk))
}

fn open_gates(
    config: &Config,
    tls: Vec<Option<Arc<ServerTls>>>,
) -> Result<Vec<BoundListener>, Error> {
    config
        .listeners
        .iter()
        .zip(tls)
        .map(|(settings, tls)| {
            BoundListener::open(settings, config.workers, tls).map_err(|source| Error::Listener {
                address: settings.address,
                source,
            })
        })
        .collect()
}

impl BoundApp {
    pub fn addresses(&self) -> BoundAddresses {
        BoundAddresses {
            listeners: self.gates.iter().map(BoundListener::address).collect(),
            operator: self.operator,
        }
    }

    /// The first admin; if its password was made up just now, show it once.
    pub fn take_first_admin(&mut self) -> Option<FirstAdmin> {
        self.first_admin.take()
    }

    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.parts.metrics)
    }

    /// Runs until told to stop, then drains.
    pub async fn run(self, steering: ShutdownHandle) -> Result<ExitOutcome, Error> {
        let Self {
            parts,
            gates,
            starting,
            on_reload,
            ..
        } = self;
        let workers = worker::start(&gates, &parts.shared, (&parts.tasks, &parts.edge))?;
        parts.start_control((gates, on_reload), &steering);
        drop(starting);
        info!("ready to accept");
        steering.quit.cancelled().await;
        let ending = parts.drain(workers, &steering).await;
        parts.end().await;
        Ok(ending)
    }
}

impl ControlParts {
    fn start_control(
        &self,
        (gates, on_reload): (Vec<BoundListener>, Option<ConfigApplied>),
        steering: &ShutdownHandle,
    ) {
        let sweep = crate::token::sweep_loop(Arc::clone(&self.shared.tokens), self.control.clone());
        self.tasks.spawn("token sweep", sweep);
        let shared = Arc::clone(&self.shared);
        self.tasks
            .spawn("limit sweep", sweep_limits(shared, self.control.clone()));
        let tried = keep_probe_tried(Arc::clone(&self.shared), self.control.clone());
        self.tasks.spawn("token probe", tried);
        for gate in &gates {
            if let Some(tls) = gate.tls() {
                let watch = Arc::clone(tls).watch(self.control.clone(), Arc::clone(&steering.hup));
                self.tasks.spawn("certificate watch", watch);
            }
        }
        if let Some(file) = self.config_file.clone() {
            let reload = reload::ReloadTargets {
                shared: Arc::clone(&self.shared),
                lease_keeper: self.kept.lease_keeper(),
                gates,
                tasks: self.tasks.clone(),
                control: self.control.clone(),
                on_reload,
                pending: self.pending.clone(),
            };
            reload.start(file, Arc::clone(&self.config), Arc::clone(&steering.hup));
        }
    }
}

async fn sweep_limits(shared: Arc<AppState>, stop: ShutdownSignal) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.draining() => return,
            _ = tick.tick() => {}
        }
        let limiter = Arc::clone(&shared.live.load().limiter);
        limiter.sweep();
        limiter.shrink().await;
        shared.introspection.sweep();
    }
}

#[cfg(feature = "emulator")]
fn make_certificates(config: &Config) -> Result<(), Error> {
    config
        .emulator
        .as_ref()
        .map_or(Ok(()), demo::make_certificates)
}

#[cfg(feature = "emulator")]
async fn start_emulator(
    config: &Config,
    tasks: &TaskSet,
    stop: &ShutdownSignal,
) -> Result<(), Error> {
    if let Some(settings) = &config.emulator {
        demo::start(settings, tasks, stop).await?;
    }
    Ok(())
}

#[cfg(not(feature = "emulator"))]
fn make_certificates(_: &Config) -> Result<(), Error> {
    Ok(())
}

#[cfg(not(feature = "emulator"))]
async fn start_emulator(_: &Config, _: &TaskSet, _: &ShutdownSignal) -> Result<(), Error> {
    Ok(())
}
