//! The only place that builds parts and joins them. Start at `bind`, which opens files and
//! sockets and may fail; `BoundApp::run` runs until it is told to stop. The program, the tests
//! and the benches all start here.

mod banner;
#[cfg(feature = "emulator")]
mod demo;
mod drain;
mod operator;
mod prepare;
mod reload;
mod serve;
mod start_error;
mod startup_check;
mod store_bootstrap;
mod upstream_change;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::info;

#[cfg(feature = "emulator")]
pub use serve::emulate;
pub use serve::serve;
pub use start_error::Error;
pub use startup_check::{CheckResult, check, check_connections};

use crate::admin;
use crate::config::Config;
use crate::identity::{FirstAdminStatus, KeySet};
use crate::lifecycle::{Readiness, ReadinessGuard, ShutdownSignal, TaskScope};
use crate::listener::ServerTls;
use crate::metrics::Metrics;
use crate::pipeline::{AppState, Limiter, LiveRules, RouteTable, keep_probe_tried};
use crate::upstream::{LoginBudgets, Upstream, UpstreamOpening};
use crate::via::GatewayVia;
use crate::watched_files::ReloadSignal;
use prepare::prepare;
use store_bootstrap::StoreBootstrap;
use upstream_change::PendingUpstreams;
use worker::BoundListener;

/// How signals, tests and benches stop a running program.
#[derive(Clone, Debug, Default)]
pub struct ShutdownHandle {
    /// Drain, then end.
    pub quit: CancellationToken,
    /// Drain without the wait for load balancers: the operator sits at the terminal.
    pub skip_wait: CancellationToken,
    /// End now.
    pub quit_now: CancellationToken,
    /// Read config, certificates and secrets again now.
    pub hup: Arc<Notify>,
}

/// Everything is bound and built; only the operator's listener and the renewer run.
#[derive(Debug)]
pub struct BoundApp {
    parts: ControlParts,
    listeners: Vec<BoundListener>,
    operator: SocketAddr,
    first_admin: Option<FirstAdminStatus>,
    starting: ReadinessGuard,
    on_reload: Option<ConfigApplied>,
}

/// Called with each new configuration once it is in use.
#[derive(Clone)]
struct ConfigApplied(Arc<dyn Fn(&Config) + Send + Sync>);

impl std::fmt::Debug for ConfigApplied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConfigApplied")
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
    /// Stops listeners and workers.
    edge: ShutdownSignal,
    /// Stops renewers, sweeps and the operator's listener, last of all.
    control: TaskScope,
    bootstrap: StoreBootstrap,
    pending: PendingUpstreams,
    login_budgets: Arc<LoginBudgets>,
    /// Reads all watched files at once.
    reload_signal: ReloadSignal,
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
    /// A task panicked or ended early: a defect.
    Failed,
}

/// Builds everything. `config_file` is watched for changes; None: no reload. Cancelling `quit`
/// ends a wait for a disk or for a shared store.
pub async fn bind(
    config: Arc<Config>,
    config_file: Option<PathBuf>,
    quit: &CancellationToken,
) -> Result<BoundApp, Error> {
    let control = TaskScope::new(Handle::current());
    let bound = build(config, config_file, &control, quit).await;
    if bound.is_err() {
        control.stop.abort();
    }
    bound
}

async fn build(
    config: Arc<Config>,
    config_file: Option<PathBuf>,
    control: &TaskScope,
    quit: &CancellationToken,
) -> Result<BoundApp, Error> {
    let metrics = Metrics::new();
    let readiness = Readiness::default();
    let starting = readiness.not_yet();

    make_certificates(&config)?;
    let prepared = prepare(&config, config_file.as_deref(), &metrics)?;
    let listeners = open_listeners(&config, prepared.listeners)?;
    let (operator, admin) = open_operator_listener(&config, control, &metrics)?;
    start_emulator(&config, control).await?;

    let bootstrap = store_bootstrap::open(&config, prepared.seal, control, &metrics, quit).await?;
    let (users, first_admin) = bootstrap.users(&config.users).await?;
    let tokens = match bootstrap.tokens(&config, users.as_ref(), &metrics).await {
        Ok(tokens) => tokens,
        Err(error) => {
            banner::print_generated_password(first_admin.as_ref()); // it cannot be read from the store later
            bootstrap.close().await;
            return Err(error);
        }
    };
    store_bootstrap::end_old_tokens(first_admin.as_ref(), &tokens).await;
    let via = GatewayVia::random();
    let reload_signal = ReloadSignal::default();
    let login_budgets = Arc::new(LoginBudgets::default());
    let mut upstreams = Vec::new();
    for (settings, materials) in config.upstreams.iter().zip(prepared.upstreams) {
        let upstream = UpstreamOpening::new(settings, control, &metrics)
            .of(Some(materials))
            .announced_as(&via)
            .reloaded_on(&reload_signal)
            .with_login_budgets(&login_budgets)
            .with_sealed_leases(bootstrap.sealed_leases());
        upstreams.push(upstream.open()?);
    }
    let live = first_rules(&config, &bootstrap, upstreams, prepared.routes, &metrics);
    let shared = AppState::new(live, users.map(Arc::new), tokens, via, &metrics);
    let parts = ControlParts {
        config_file,
        config,
        shared,
        metrics,
        readiness,
        edge: ShutdownSignal::default(),
        control: control.clone(),
        bootstrap,
        pending: PendingUpstreams::default(),
        login_budgets,
        reload_signal,
    };
    admin.open(parts.for_operator());
    Ok(BoundApp {
        parts,
        listeners,
        operator,
        first_admin,
        starting,
        on_reload: None,
    })
}

fn first_rules(
    config: &Arc<Config>,
    bootstrap: &StoreBootstrap,
    upstreams: Vec<Arc<Upstream>>,
    routes: RouteTable,
    metrics: &Arc<Metrics>,
) -> LiveRules {
    let limiter = Limiter::with_store(
        bootstrap.shared(),
        &config.limits,
        None,
        Arc::clone(metrics),
    );
    LiveRules {
        routes: Arc::new(routes),
        keys: KeySet::new(&config.api_keys),
        ring: bootstrap.ring(),
        limiter: Arc::new(limiter),
        upstreams,
        config: Arc::clone(config),
    }
}

/// The operator's listener answers from here on: a start can take long.
fn open_operator_listener(
    config: &Config,
    scope: &TaskScope,
    metrics: &Arc<Metrics>,
) -> Result<(SocketAddr, admin::AdminState), Error> {
    let address = config.operator.address;
    let bound = admin::bind(address).map_err(|source| Error::Operator { address, source })?;
    let address = bound.address();
    let state = admin::AdminState::new(Arc::clone(metrics));
    let serve = admin::serve(bound, state.clone(), scope.clone());
    scope.spawn("operator's listener", serve);
    Ok((address, state))
}

fn open_listeners(
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
            listeners: self.listeners.iter().map(BoundListener::address).collect(),
            operator: self.operator,
        }
    }

    /// The first admin; a generated password in it must be shown once.
    pub fn take_first_admin(&mut self) -> Option<FirstAdminStatus> {
        self.first_admin.take()
    }

    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.parts.metrics)
    }

    /// Runs until told to stop, then drains.
    pub async fn run(self, steering: ShutdownHandle) -> Result<ExitOutcome, Error> {
        let Self {
            parts,
            listeners,
            starting,
            on_reload,
            ..
        } = self;
        let edge = TaskScope {
            tasks: parts.control.tasks.clone(),
            stop: parts.edge.clone(),
        };
        let workers = worker::start(&listeners, &parts.shared, &edge)?;
        parts.start_control(listeners, on_reload, &steering);
        drop(starting);
        info!("ready to accept");
        steering.quit.cancelled().await;
        let outcome = parts.drain(workers, &steering).await;
        parts.end().await;
        Ok(outcome)
    }
}

impl ControlParts {
    fn start_control(
        &self,
        listeners: Vec<BoundListener>,
        on_reload: Option<ConfigApplied>,
        steering: &ShutdownHandle,
    ) {
        let sweep =
            crate::token::sweep_loop(Arc::clone(&self.shared.tokens), self.control.stop.clone());
        self.control.spawn("token sweep", sweep);
        let shared = Arc::clone(&self.shared);
        self.control.spawn(
            "limit sweep",
            sweep_limits(shared, self.control.stop.clone()),
        );
        let tried = keep_probe_tried(Arc::clone(&self.shared), self.control.stop.clone());
        self.control.spawn("token probe", tried);
        for listener in &listeners {
            if let Some(tls) = listener.tls() {
                let requests = self.reload_signal.subscribe();
                let watch = Arc::clone(tls).watch(self.control.stop.clone(), requests);
                self.control.spawn("certificate watch", watch);
            }
        }
        if let Some(file) = self.config_file.clone() {
            let reload = reload::ReloadTargets {
                shared: Arc::clone(&self.shared),
                sealed_leases: self.bootstrap.sealed_leases(),
                listeners,
                scope: self.control.clone(),
                on_reload,
                pending: self.pending.clone(),
                login_budgets: Arc::clone(&self.login_budgets),
                reload_signal: self.reload_signal.clone(),
            };
            reload.start(file, Arc::clone(&self.config));
        }
        self.follow_sighup(&steering.hup);
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
async fn start_emulator(config: &Config, scope: &TaskScope) -> Result<(), Error> {
    if let Some(settings) = &config.emulator {
        demo::start(settings, scope).await?;
    }
    Ok(())
}

#[cfg(not(feature = "emulator"))]
fn make_certificates(_: &Config) -> Result<(), Error> {
    Ok(())
}

#[cfg(not(feature = "emulator"))]
async fn start_emulator(_: &Config, _: &TaskScope) -> Result<(), Error> {
    Ok(())
}
