//! The health of one endpoint of an upstream, shared by all workers and the control runtime. Requests report how
//! their exchanges ended. While nothing fails, a report and the check whether a request may be
//! forwarded cost one relaxed load each.

pub(super) mod breaker;

use std::error::Error;
use std::fmt::{self, Write as _};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info};

use crate::clock;
use crate::error_chain::causes;
use crate::metrics::UpstreamMetrics;
use breaker::{CircuitBreaker, ExchangeFailure, FailureSource, HealthLevel, UpstreamPass};

/// An exchange that ends early (client disconnected, or deadline) counts as a failure of an upstream
/// that had not responded for this long.
const TELLING: Duration = Duration::from_secs(3);

/// The health of one address of an upstream; it survives reloads.
#[derive(Debug)]
pub(in crate::upstream) struct EndpointHealth {
    upstream: Arc<str>,
    /// Its address; None: the upstream has one endpoint.
    endpoint: Option<Arc<str>>,
    /// The only field that ordinary requests read.
    is_quiet: AtomicBool,
    is_down: AtomicBool,
    known: Mutex<HealthRecord>,
    level: watch::Sender<HealthLevel>,
    metrics: Arc<UpstreamMetrics>,
}

#[derive(Debug)]
struct HealthRecord {
    breaker: CircuitBreaker,
    /// The cause of the last failure; contains no secret.
    cause: String,
    /// Unix seconds at the first of the failures in a row.
    since: i64,
}

/// Why the next request would be rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamOutage {
    pub upstream: Arc<str>,
    /// Its address; None: the upstream has one endpoint, or none is known.
    pub endpoint: Option<Arc<str>>,
    /// Seconds since 1970.
    pub since: i64,
    pub cause: String,
}

impl UpstreamOutage {
    /// Since when, and why.
    pub fn in_words(&self) -> String {
        let seconds = clock::unix_seconds().saturating_sub(self.since).max(0);
        let mut text = format!("down for {seconds} s");
        if let Ok(since) = jiff::Timestamp::from_second(self.since) {
            let _ = write!(text, ", since {since}");
        }
        let _ = write!(text, ": {}", self.cause);
        text
    }
}

impl fmt::Display for UpstreamOutage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "upstream {}: ", self.upstream)?;
        if let Some(endpoint) = &self.endpoint {
            write!(f, "endpoint {endpoint}: ")?;
        }
        f.write_str(&self.in_words())
    }
}

impl EndpointHealth {
    /// `endpoint`: its address, if the upstream has several endpoints.
    pub(super) fn new(
        upstream: &Arc<str>,
        endpoint: Option<Arc<str>>,
        metrics: &Arc<UpstreamMetrics>,
    ) -> Arc<Self> {
        metrics.upstream_up.set(1);
        Arc::new(Self {
            upstream: Arc::clone(upstream),
            endpoint,
            is_quiet: AtomicBool::new(true),
            is_down: AtomicBool::new(false),
            known: Mutex::new(HealthRecord {
                breaker: CircuitBreaker::new(),
                cause: String::new(),
                since: 0,
            }),
            level: watch::Sender::new(HealthLevel::Quiet),
            metrics: Arc::clone(metrics),
        })
    }

    /// No failure is known.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_quiet.load(Ordering::Relaxed)
    }

    /// The breaker is open.
    pub(super) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Relaxed)
    }

    /// Whether a request may be forwarded now; if not, after how long a retry makes sense.
    pub(crate) fn admit(&self) -> Result<UpstreamPass, Duration> {
        if self.is_quiet() {
            return Ok(UpstreamPass::Ordinary);
        }
        self.lock().breaker.admit(Instant::now())
    }

    /// The same for a request that was queued after it had been admitted.
    pub(crate) fn readmit(&self, pass: UpstreamPass) -> Result<(), Duration> {
        match pass {
            UpstreamPass::Trial => Ok(()),
            UpstreamPass::Ordinary if self.is_quiet() => Ok(()),
            UpstreamPass::Ordinary => self.check(),
        }
    }

    /// The same, but without becoming the half-open trial request.
    pub(crate) fn check(&self) -> Result<(), Duration> {
        let known = self.lock();
        match known.breaker.level() {
            HealthLevel::Quiet | HealthLevel::Suspect => Ok(()),
            HealthLevel::Down => Err(known.breaker.pause(Instant::now())),
        }
    }

    /// Time until the next probe; zero while the breaker is closed.
    pub(crate) fn pause(&self) -> Duration {
        if self.is_quiet() {
            return Duration::ZERO;
        }
        self.lock().breaker.pause(Instant::now())
    }

    /// None while requests are forwarded.
    pub(super) fn outage(&self) -> Option<UpstreamOutage> {
        let known = self.lock();
        (known.breaker.level() == HealthLevel::Down).then(|| UpstreamOutage {
            upstream: Arc::clone(&self.upstream),
            endpoint: self.endpoint.clone(),
            since: known.since,
            cause: known.cause.clone(),
        })
    }

    /// A response head has arrived, whatever its status.
    #[inline]
    pub(super) fn responded(&self) {
        if !self.is_quiet() {
            self.recovered();
        }
    }

    #[cold]
    fn recovered(&self) {
        let mut known = self.lock();
        let ended = known.breaker.responded(Instant::now());
        self.publish(&known);
        drop(known);
        if let Some(down) = ended {
            let (upstream, seconds) = (&self.upstream, down.as_secs());
            match &self.endpoint {
                None => info!(%upstream, seconds, "the upstream answers again; requests go up"),
                Some(endpoint) => {
                    info!(%upstream, %endpoint, seconds, "the endpoint answers again; it gets requests");
                }
            }
        }
    }

    /// A request or a probe got no connection. False: for lack of this process's own resources, which
    /// says nothing about the endpoint.
    pub(super) fn connect_failed(
        &self,
        asker: FailureSource,
        failure: &(dyn Error + 'static),
    ) -> bool {
        let is_counted = !is_local_failure(failure);
        if is_counted {
            self.failed(ExchangeFailure::NoConnection, asker, failure);
        }
        is_counted
    }

    /// A request or a probe got no response over its connection.
    pub(super) fn response_failed(&self, asker: FailureSource, failure: &(dyn Error + 'static)) {
        self.failed(ExchangeFailure::NoAnswer, asker, failure);
    }

    /// An exchange ended early; the upstream had not responded for `owed`. It counts as a failure if
    /// that is long.
    pub(super) fn abandoned(&self, owed: Duration, limit: Duration) {
        if owed >= limit.min(TELLING) {
            self.failed(
                ExchangeFailure::NoAnswer,
                FailureSource::Request,
                &AbandonedExchange(owed),
            );
        }
    }

    #[cold]
    fn failed(
        &self,
        failure: ExchangeFailure,
        asker: FailureSource,
        error: &(dyn Error + 'static),
    ) {
        let cause = crate::error_chain::chain(error);
        let mut known = self.lock();
        if known.breaker.level() == HealthLevel::Quiet {
            known.since = clock::unix_seconds();
        }
        let opened = known.breaker.failed(failure, asker, Instant::now());
        self.publish(&known);
        known.cause.clone_from(&cause);
        drop(known);
        if let Some(failures) = opened {
            self.metrics.upstream_breaker_opened.inc();
            let upstream = &self.upstream;
            match &self.endpoint {
                None => error!(%upstream, failures, error = %cause,
                    "the upstream is down: requests get 503 at once until it answers the gate's probe"),
                Some(endpoint) => error!(%upstream, %endpoint, failures, error = %cause,
                    "the endpoint is down: it gets no request until it answers the gate's probe"),
            }
        }
    }

    /// Waits for the end of the next or current outage.
    pub(super) async fn back(&self) {
        let mut level = self.level.subscribe();
        let is_down = |level: &HealthLevel| *level == HealthLevel::Down;
        // The sender lives as long as `self`.
        let _ = level.wait_for(is_down).await;
        let _ = level.wait_for(|level| !is_down(level)).await;
    }

    pub(super) fn levels(&self) -> watch::Receiver<HealthLevel> {
        self.level.subscribe()
    }

    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.lock().breaker.next_probe()
    }

    pub(super) fn probe_begins(&self) {
        let jitter = rand::random();
        self.lock().breaker.probe_begins(Instant::now(), jitter);
    }

    pub(super) fn hurry(&self) {
        self.lock().breaker.hurry(Instant::now());
    }

    /// Publishes the state under the lock, so that changes are seen in order.
    fn publish(&self, known: &HealthRecord) {
        let level = known.breaker.level();
        let is_quiet = level == HealthLevel::Quiet;
        self.is_quiet.store(is_quiet, Ordering::Relaxed);
        let is_down = level == HealthLevel::Down;
        self.is_down.store(is_down, Ordering::Relaxed);
        self.level.send_if_modified(|now| {
            let is_news = *now != level;
            *now = level;
            is_news
        });
    }

    fn lock(&self) -> MutexGuard<'_, HealthRecord> {
        self.known.lock()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no response within {0:.1?}, then the exchange was given up")]
struct AbandonedExchange(Duration);

/// This host itself cannot open connections: no file descriptors or no memory left.
fn is_local_failure(failure: &(dyn Error + 'static)) -> bool {
    use rustix::io::Errno;
    let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    std::iter::once(failure)
        .chain(causes(failure))
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .filter_map(Errno::from_io_error)
        .any(|errno| lacks.contains(&errno))
}
