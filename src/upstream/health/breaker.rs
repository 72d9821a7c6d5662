//! The circuit breaker: when an upstream counts as down, and when it counts as up again. Pure: time
//! and jitter are passed in. `health` owns it, `health_prober` sends its probes.
//!
//! One response, whatever its status, proves that the upstream is alive. A failed connection is
//! evidence about the upstream. A request without a response may be evidence about its path only, so
//! the breaker opens on such requests only if the gateway's own probe failed too.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row before the breaker opens.
const ENOUGH: u32 = 5;
/// The failures must span this long: a restart of the upstream breaks all connections at once.
const SPAN: Duration = Duration::from_secs(1);
/// If connections work and only responses are missing: no response for this long. One client may
/// ask for a path that never answers, while others get responses now and then.
const SILENT_SPAN: Duration = Duration::from_secs(5);
/// The prober alternates between two paths; both must have failed.
const SILENT_PROBES: u32 = 2;
/// Between two probes while failures are suspected, and after the breaker has opened.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Between two probes in a long outage; a recovered upstream is found within this time.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What went wrong with one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum ExchangeFailure {
    /// There was no connection.
    NoConnection,
    /// There was one, but no usable response head came over it.
    NoAnswer,
}

/// Whose exchange it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum FailureSource {
    Request,
    Probe,
}

/// The state of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum HealthLevel {
    /// No failure since the last response.
    Quiet,
    /// Failures since the last response; requests are still forwarded.
    Suspect,
    /// The breaker is open.
    Down,
}

/// Leave to forward a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamPass {
    Ordinary,
    /// The breaker is half-open: this request tests the upstream.
    Trial,
}

#[derive(Debug)]
pub(in crate::upstream) struct CircuitBreaker {
    state: BreakerState,
    /// When the gateway last sent a probe.
    last_probe: Option<Instant>,
}

#[derive(Debug)]
enum BreakerState {
    Quiet,
    Suspect(FailureRun),
    Down(OutageState),
}

/// The failures since the last response.
#[derive(Clone, Copy, Debug)]
struct FailureRun {
    failures: u32,
    unconnected: u32,
    unanswered_probes: u32,
    since: Instant,
    next_probe: Instant,
}

#[derive(Clone, Copy, Debug)]
struct OutageState {
    since: Instant,
    pause: Duration,
    next_probe: Instant,
    /// The last probe was connected but got no response; perhaps only probes do not.
    is_reachable: bool,
    next_trial: Instant,
}

impl CircuitBreaker {
    pub(in crate::upstream) const fn new() -> Self {
        Self {
            state: BreakerState::Quiet,
            last_probe: None,
        }
    }

    pub(in crate::upstream) fn level(&self) -> HealthLevel {
        match &self.state {
            BreakerState::Quiet => HealthLevel::Quiet,
            BreakerState::Suspect(_) => HealthLevel::Suspect,
            BreakerState::Down(_) => HealthLevel::Down,
        }
    }

    /// A response head has arrived. Returns how long the upstream was down, if it was.
    pub(in crate::upstream) fn responded(&mut self, now: Instant) -> Option<Duration> {
        match std::mem::replace(&mut self.state, BreakerState::Quiet) {
            BreakerState::Quiet | BreakerState::Suspect(_) => None,
            BreakerState::Down(outage) => Some(now.saturating_duration_since(outage.since)),
        }
    }

    /// Returns the number of failures in a row if the breaker opens with this one.
    pub(in crate::upstream) fn failed(
        &mut self,
        failure: ExchangeFailure,
        asker: FailureSource,
        now: Instant,
    ) -> Option<u32> {
        if let BreakerState::Down(outage) = &mut self.state {
            if asker == FailureSource::Probe {
                outage.is_reachable = failure == ExchangeFailure::NoAnswer;
            }
            return None;
        }
        let mut run = match self.state {
            BreakerState::Suspect(run) => run,
            BreakerState::Quiet | BreakerState::Down(_) => self.first_of_a_run(now),
        };
        run.failures = run.failures.saturating_add(1);
        match (failure, asker) {
            (ExchangeFailure::NoConnection, _) => {
                run.unconnected = run.unconnected.saturating_add(1)
            }
            (ExchangeFailure::NoAnswer, FailureSource::Probe) => {
                run.unanswered_probes = run.unanswered_probes.saturating_add(1);
            }
            (ExchangeFailure::NoAnswer, FailureSource::Request) => {}
        }
        if !run.is_enough(now) {
            self.state = BreakerState::Suspect(run);
            return None;
        }
        self.state = BreakerState::Down(OutageState {
            since: run.since,
            pause: FIRST_PAUSE,
            next_probe: now + FIRST_PAUSE,
            is_reachable: run.unconnected < ENOUGH,
            next_trial: now + MAX_PAUSE,
        });
        Some(run.failures)
    }

    fn first_of_a_run(&self, now: Instant) -> FailureRun {
        // At once, but no more often than while failures are suspected and each probe is answered.
        let spaced = self.last_probe.map(|last| last + FIRST_PAUSE);
        FailureRun {
            failures: 0,
            unconnected: 0,
            unanswered_probes: 0,
            since: now,
            next_probe: spaced.map_or(now, |spaced| spaced.max(now)),
        }
    }

    /// Whether a request may be forwarded now; if not, when to try again.
    pub(in crate::upstream) fn admit(&mut self, now: Instant) -> Result<UpstreamPass, Duration> {
        let BreakerState::Down(outage) = &mut self.state else {
            return Ok(UpstreamPass::Ordinary);
        };
        if outage.is_reachable && outage.next_trial <= now {
            outage.next_trial = now + MAX_PAUSE;
            return Ok(UpstreamPass::Trial);
        }
        Err(outage.next_probe.saturating_duration_since(now))
    }

    /// Time until the next probe; zero while the breaker is closed.
    pub(in crate::upstream) fn pause(&self, now: Instant) -> Duration {
        match &self.state {
            BreakerState::Quiet | BreakerState::Suspect(_) => Duration::ZERO,
            BreakerState::Down(outage) => outage.next_probe.saturating_duration_since(now),
        }
    }

    /// When the next probe is due.
    pub(in crate::upstream) fn next_probe(&self) -> Option<Instant> {
        match &self.state {
            BreakerState::Quiet => None,
            BreakerState::Suspect(run) => Some(run.next_probe),
            BreakerState::Down(outage) => Some(outage.next_probe),
        }
    }

    /// A probe is sent now. `jitter` in 0..1 spreads the probes of several gateways.
    pub(in crate::upstream) fn probe_begins(&mut self, now: Instant, jitter: f64) {
        self.last_probe = Some(now);
        match &mut self.state {
            BreakerState::Quiet => {}
            BreakerState::Suspect(run) => run.next_probe = now + FIRST_PAUSE,
            BreakerState::Down(outage) => {
                outage.pause = (outage.pause * 2).min(MAX_PAUSE);
                let share = 1.0 - 0.2 * jitter.clamp(0.0, 1.0);
                outage.next_probe = now + outage.pause.mul_f64(share);
            }
        }
    }

    /// The upstream's connection settings have changed: the next probe is due at once.
    pub(in crate::upstream) fn hurry(&mut self, now: Instant) {
        match &mut self.state {
            BreakerState::Quiet => {}
            BreakerState::Suspect(run) => run.next_probe = now,
            BreakerState::Down(outage) => {
                outage.pause = FIRST_PAUSE / 2;
                outage.next_probe = now;
            }
        }
    }
}

impl FailureRun {
    fn is_enough(&self, now: Instant) -> bool {
        let span = now.saturating_duration_since(self.since);
        let is_unreachable = self.unconnected >= ENOUGH && span >= SPAN;
        let is_silent = self.unanswered_probes >= SILENT_PROBES && span >= SILENT_SPAN;
        self.failures >= ENOUGH && (is_unreachable || is_silent)
    }
}
