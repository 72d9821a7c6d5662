//! The program as the command line starts it: runtime, signals, process limits and the banner.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use super::{BoundApp, Error, ExitOutcome, ShutdownHandle, banner, bind};
use crate::config::LoadedConfig;
use crate::lifecycle::TaskSet;
use crate::logging::LogHandle;
use crate::metrics::Metrics;

/// For threads that still run when the program ends.
const THREAD_END: Duration = Duration::from_secs(1);

/// Serves until told to stop. Called once, from `main`'s thread, which closes the log.
pub fn serve(
    path: &Path,
    loaded: LoadedConfig,
    logging: &Arc<LogHandle>,
) -> Result<ExitOutcome, Error> {
    protect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let outcome = runtime.block_on(run(path.to_owned(), loaded, Arc::clone(logging)));
    // The drain is over; a thread that hangs in a disk read or write is not waited for.
    runtime.shutdown_timeout(THREAD_END);
    outcome
}

async fn run(
    path: PathBuf,
    loaded: LoadedConfig,
    logging: Arc<LogHandle>,
) -> Result<ExitOutcome, Error> {
    let steering = ShutdownHandle::default();
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let signals = ProcessSignals::open().map_err(Error::Signals)?;
    tasks.spawn("signals", signals.follow(steering.clone()));
    let config = Arc::new(loaded.config);
    let bound = bind(Arc::clone(&config), Some(path), &steering.quit).await;
    let mut bound = match bound {
        Err(Error::Stopped) => {
            info!("told to stop before it was ready");
            return Ok(ExitOutcome::Clean);
        }
        Err(Error::Unusable(problems)) => return Err(problems.located(&loaded.lines).into()),
        bound => bound?,
    };
    let admin = bound.take_first_admin();
    banner::print(&config, &bound.addresses(), admin.as_ref());
    tasks.spawn("log", follow_log(bound.metrics(), Arc::clone(&logging)));
    bound.on_reload({
        let logging = Arc::clone(&logging);
        move |config| logging.set_filter(&config.log.filter)
    });
    bound.run(steering).await
}

/// Counts dropped log lines, and logs their number once no more are dropped.
async fn follow_log(metrics: Arc<Metrics>, logging: Arc<LogHandle>) {
    let mut logged = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let dropped = u64::try_from(logging.dropped()).unwrap_or(u64::MAX);
        let known = metrics.log_lines_dropped.get();
        let more = dropped.saturating_sub(known);
        metrics.log_lines_dropped.inc_by(more);
        if more == 0 && dropped > logged {
            let lines = dropped - logged;
            warn!(
                lines,
                "log lines were lost: standard output did not take them"
            );
            logged = dropped;
        }
    }
}

#[derive(Debug)]
struct ProcessSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl ProcessSignals {
    fn open() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The first signal to stop drains, the second ends the program. Ctrl-C skips the wait for load
    /// balancers.
    async fn follow(mut self, steering: ShutdownHandle) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    info!("SIGHUP: reading configuration, certificates and secrets again");
                    steering.hup.notify_one();
                    continue;
                }
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => steering.skip_wait.cancel(),
            }
            if steering.quit.is_cancelled() {
                steering.quit_now.cancel();
            }
            steering.quit.cancel();
        }
    }
}

/// No core file may hold a secret, and many connections need many descriptors.
fn protect() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        warn!(%error, "core files could not be switched off");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%error, "memory could not be made private");
    }
    let files = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: files.maximum,
        ..files
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "the limit of open files could not be raised");
    }
}

/// Runs the emulator alone.
#[cfg(feature = "emulator")]
pub fn emulate(settings: &crate::config::Emulator) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    runtime.block_on(async {
        let scope = crate::lifecycle::TaskScope::new(tokio::runtime::Handle::current());
        let steering = ShutdownHandle::default();
        let signals = ProcessSignals::open().map_err(Error::Signals)?;
        scope.spawn("signals", signals.follow(steering.clone()));
        super::demo::make_certificates(settings)?;
        for emulator in super::demo::start(settings, &scope).await? {
            banner::emulator(settings, &emulator);
        }
        steering.quit.cancelled().await;
        scope.stop.abort();
        Ok(())
    })
}

impl BoundApp {
    /// Called with each new configuration once it is in use.
    pub fn on_reload(&mut self, then: impl Fn(&crate::config::Config) + Send + Sync + 'static) {
        self.on_reload = Some(super::ConfigApplied(Arc::new(then)));
    }
}
