//! The metrics of one upstream: its session, its connections, its health. Each family has the
//! label `upstream`, the name from the config file.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use super::families::{family, gauges, histogram_by};
use super::label::{
    ConnectResult, CounterFamily, LabelSet, LoginOutcome, ProbeOutcome, RetryReason, SentCredential,
};

const UPSTREAM: &str = "upstream";

/// A kind of metric that exists once per upstream.
trait PerUpstream {
    /// The registered family with its label `upstream`.
    type Family: std::fmt::Debug;

    fn register(registry: &Registry, name: &str, help: &str) -> Self::Family;
    fn child(family: &Self::Family, upstream: &str) -> Self;
}

impl PerUpstream for IntCounter {
    type Family = IntCounterVec;

    fn register(registry: &Registry, name: &str, help: &str) -> IntCounterVec {
        family(registry, name, help, &[UPSTREAM])
    }

    fn child(family: &IntCounterVec, upstream: &str) -> Self {
        family.with_label_values(&[upstream])
    }
}

impl PerUpstream for IntGauge {
    type Family = IntGaugeVec;

    fn register(registry: &Registry, name: &str, help: &str) -> IntGaugeVec {
        gauges(registry, name, help, &[UPSTREAM])
    }

    fn child(family: &IntGaugeVec, upstream: &str) -> Self {
        family.with_label_values(&[upstream])
    }
}

impl PerUpstream for Histogram {
    type Family = HistogramVec;

    fn register(registry: &Registry, name: &str, help: &str) -> HistogramVec {
        histogram_by(registry, name, help, UPSTREAM)
    }

    fn child(family: &HistogramVec, upstream: &str) -> Self {
        family.with_label_values(&[upstream])
    }
}

impl<L: LabelSet> PerUpstream for CounterFamily<L> {
    type Family = IntCounterVec;

    fn register(registry: &Registry, name: &str, help: &str) -> IntCounterVec {
        family(registry, name, help, &[UPSTREAM, L::NAME])
    }

    fn child(family: &IntCounterVec, upstream: &str) -> Self {
        Self::of_upstream(family, upstream)
    }
}

macro_rules! upstream_metrics {
    ($($field:ident: $kind:ty = $name:literal, $help:literal;)+) => {
        /// The metrics of one upstream.
        #[derive(Debug)]
        pub struct UpstreamMetrics {
            $(pub $field: $kind,)+
        }

        /// The families that have the label `upstream`.
        #[derive(Debug)]
        pub(super) struct UpstreamFamilies {
            by_name: Mutex<HashMap<Box<str>, Arc<UpstreamMetrics>>>,
            $($field: <$kind as PerUpstream>::Family,)+
        }

        impl UpstreamFamilies {
            pub(super) fn new(registry: &Registry) -> Self {
                Self {
                    by_name: Mutex::default(),
                    $($field: <$kind>::register(registry, $name, $help),)+
                }
            }

            pub(super) fn of(&self, name: &str) -> Arc<UpstreamMetrics> {
                let mut by_name = self.by_name.lock();
                let metrics = by_name.entry(name.into()).or_insert_with(|| {
                    Arc::new(UpstreamMetrics {
                        $($field: <$kind>::child(&self.$field, name),)+
                    })
                });
                Arc::clone(metrics)
            }
        }
    };
}

upstream_metrics! {
    first_byte_seconds: Histogram = "tollgate_upstream_first_byte_seconds",
        "Time from sending a request upstream to the head of its response.";
    session_logins: CounterFamily<LoginOutcome> = "tollgate_session_logins_total",
        "Logins of the gateway at the upstream, by outcome.";
    session_generation: IntGauge = "tollgate_session_generation",
        "Generation of the upstream token in use: how many logins have been published.";
    session_seconds_to_expiry: IntGauge = "tollgate_session_seconds_to_expiry",
        "Seconds until the upstream token in use expires; 0 without a token.";
    session_requests_waiting: IntGauge = "tollgate_session_requests_waiting",
        "Requests waiting for a login at the upstream now.";
    session_waits: IntCounter = "tollgate_session_waits_total",
        "Requests that had to wait for a login at the upstream.";
    session_clock_skew_seconds: IntGauge = "tollgate_session_clock_skew_seconds",
        "Upstream clock minus the gateway's, from the Date header of responses.";
    session_up: IntGauge = "tollgate_session_up",
        "1 while the gateway holds a valid upstream token.";
    session_live_tokens: IntGauge = "tollgate_session_live_tokens",
        "Upstream tokens obtained by this process that have not expired yet.";
    upstream_requests: CounterFamily<SentCredential> = "tollgate_upstream_requests_total",
        "Requests sent to the upstream, by the kind of credential they carried.";
    upstream_api_key_refused: IntGauge = "tollgate_upstream_api_key_refused",
        "1 while the upstream refuses the API key of monitoring requests.";
    upstream_connects: CounterFamily<ConnectResult> = "tollgate_upstream_connects_total",
        "Connections obtained for upstream requests: new or reused, or the kind of failure.";
    upstream_connections_open: IntGauge = "tollgate_upstream_connections_open",
        "Connections to the upstream open now.";
    upstream_requests_queued: IntGauge = "tollgate_upstream_requests_queued",
        "Requests waiting for an upstream permit now.";
    stalled_streams: IntGauge = "tollgate_upstream_stalled_streams",
        "Streams to or from slow clients that have released their upstream permit and are still open.";
    permits_released_early: IntCounter = "tollgate_upstream_permits_released_early_total",
        "Upstream permits released before the end of the stream because the client was slow.";
    stalled_streams_aborted: IntCounter = "tollgate_upstream_stalled_streams_aborted_total",
        "Streams aborted because their slow client had more than its share of stalled streams.";
    upstream_retries: CounterFamily<RetryReason> = "tollgate_upstream_retries_total",
        "Requests sent to the upstream a second time, by reason.";
    upstream_up: IntGauge = "tollgate_upstream_up",
        "0 while the upstream is considered down and requests are refused at once.";
    upstream_breaker_opened: IntCounter = "tollgate_upstream_breaker_opened_total",
        "Times the circuit breaker opened because the upstream was considered down.";
    upstream_probes: CounterFamily<ProbeOutcome> = "tollgate_upstream_probes_total",
        "Probe requests that the gateway sent to check a failing upstream, by outcome.";
    token_probe_trusted: IntGauge = "tollgate_token_probe_trusted",
        "1 while the upstream's token probe is known to reject invalid tokens; 0 before it was tested, or if it accepts them.";
}
