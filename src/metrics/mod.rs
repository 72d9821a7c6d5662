//! Every metric of the program, in one struct. Label values are enums or names from the config
//! file, so their number is bounded, and a client cannot create new ones. Start at `Metrics::new`;
//! `label.rs` has the label enums, `route_counts.rs` the counters of one route.

use std::sync::Arc;

use prometheus::core::Collector as _;
use prometheus::{
    Encoder as _, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, TextEncoder,
};

mod endpoint_metrics;
mod families;
mod label;
mod route_counts;
mod upstream;

pub use endpoint_metrics::EndpointMetrics;
pub use label::{
    Blame, ClientLoginOutcome, ConnectResult, ConnectionEnd, CounterFamily, GaugeGuard, LabelSet,
    LimitOutcome, LoginOutcome, ProbeOutcome, Reason, ReloadResult, RetryReason, SentCredential,
    StoreFailure, StoreLookupResult, StoreOutcome, TokenCap, TokenEvent, UnreadableLogin,
};
pub use route_counts::RouteCounts;
pub use upstream::UpstreamMetrics;

use endpoint_metrics::EndpointFamilies;
use families::{counter, family, gauge, gauges, histogram_by, plain_histogram, process_metrics};
use upstream::UpstreamFamilies;

/// Every metric family of the program.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    upstreams: UpstreamFamilies,
    endpoints: Arc<EndpointFamilies>,
    pub requests: IntCounterVec,
    pub request_seconds: HistogramVec,
    pub requests_in_flight: IntGauge,
    pub responses: CounterFamily<Blame>,
    pub rejections: CounterFamily<Reason>,
    pub request_body_bytes: IntCounter,
    pub response_body_bytes: IntCounter,
    pub client_disconnects: IntCounter,
    pub invalid_forwarded_addresses: IntCounter,
    pub connections: IntCounter,
    pub connections_open: IntGauge,
    pub connection_ends: CounterFamily<ConnectionEnd>,
    pub certificate_expiry: IntGaugeVec,
    pub certificate_reloads: CounterFamily<ReloadResult>,
    pub tokens: IntGauge,
    pub token_events: CounterFamily<TokenEvent>,
    pub client_logins: CounterFamily<ClientLoginOutcome>,
    pub unreadable_login_responses: CounterFamily<UnreadableLogin>,
    pub token_cap_warnings: CounterFamily<TokenCap>,
    pub limit_exceeded: CounterFamily<LimitOutcome>,
    pub limit_keys: IntGaugeVec,
    pub store_up: IntGauge,
    pub store_eviction_enabled: IntGauge,
    pub store_changes: CounterFamily<StoreOutcome>,
    pub store_commit_seconds: Histogram,
    pub store_bytes: IntGauge,
    pub reloads: CounterFamily<ReloadResult>,
    pub config_is_current: IntGauge,
    pub store_invalidations: IntCounter,
    pub store_failures: CounterFamily<StoreFailure>,
    pub store_lookups: CounterFamily<StoreLookupResult>,
    pub log_lines_dropped: IntCounter,
    pub task_panics: IntGauge,
    pub ready: IntGauge,
}

impl Metrics {
    #[expect(clippy::too_many_lines, reason = "one line per family, nothing else")]
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let r = &registry;
        let build = gauges(
            r,
            "tollgate_build_info",
            "Always 1; the label names the version of the running program.",
            &["version"],
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        process_metrics(r);
        let metrics = Self {
            requests: family(
                r,
                "tollgate_requests_total",
                "Requests by route and class of the response status; none: the client left before a response.",
                &["route", "status"],
            ),
            request_seconds: histogram_by(
                r,
                "tollgate_request_duration_seconds",
                "Time from the head of a request to the end of its response.",
                "route",
            ),
            requests_in_flight: gauge(
                r,
                "tollgate_requests_in_flight",
                "Requests being processed now.",
            ),
            responses: CounterFamily::new(
                r,
                "tollgate_responses_total",
                "Responses by responsible party: client, gateway, upstream, or none for a success.",
            ),
            rejections: CounterFamily::new(
                r,
                "tollgate_rejections_total",
                "Requests that the gateway itself refused, by reason.",
            ),
            request_body_bytes: counter(
                r,
                "tollgate_request_body_bytes_total",
                "Bytes of request bodies read from clients.",
            ),
            response_body_bytes: counter(
                r,
                "tollgate_response_body_bytes_total",
                "Bytes of response bodies sent to clients.",
            ),
            client_disconnects: counter(
                r,
                "tollgate_client_disconnects_total",
                "Requests whose client disconnected before the response was complete.",
            ),
            invalid_forwarded_addresses: counter(
                r,
                "tollgate_invalid_forwarded_addresses_total",
                "Requests from a trusted proxy without a valid client address in X-Forwarded-For or Forwarded.",
            ),
            connections: counter(
                r,
                "tollgate_connections_total",
                "Client connections accepted.",
            ),
            connections_open: gauge(
                r,
                "tollgate_connections_open",
                "Client connections open now.",
            ),
            connection_ends: CounterFamily::new(
                r,
                "tollgate_connection_failures_total",
                "Client connections closed early, by reason.",
            ),
            certificate_expiry: gauges(
                r,
                "tollgate_certificate_expiry_timestamp_seconds",
                "Unix time at which each certificate in use expires.",
                &["certificate"],
            ),
            certificate_reloads: CounterFamily::new(
                r,
                "tollgate_certificate_reloads_total",
                "Attempts to reload a changed certificate, by outcome.",
            ),
            tokens: gauge(r, "tollgate_tokens", "Client tokens that are valid now."),
            token_events: CounterFamily::new(
                r,
                "tollgate_token_events_total",
                "Client tokens issued, learned from a relayed login, revoked, expired, displaced by a newer one at a user's cap, or refused by a cap.",
            ),
            client_logins: CounterFamily::new(
                r,
                "tollgate_client_logins_total",
                "Logins of clients at the gateway, by outcome.",
            ),
            unreadable_login_responses: CounterFamily::new(
                r,
                "tollgate_unreadable_login_responses_total",
                "Relayed logins whose successful response the gateway could not read: it was passed on and its token not learned.",
            ),
            token_cap_warnings: CounterFamily::new(
                r,
                "tollgate_token_cap_warnings_total",
                "Logins after which a user, or all users together, held at least 80 % of the allowed tokens.",
            ),
            limit_exceeded: CounterFamily::new(
                r,
                "tollgate_limit_exceeded_total",
                "Requests that found a rate limit exhausted, by outcome.",
            ),
            limit_keys: gauges(
                r,
                "tollgate_limit_keys",
                "Keys that each rate limit tracks now.",
                &["limit"],
            ),
            store_up: gauge(
                r,
                "tollgate_store_up",
                "1 while changes can be written to the store.",
            ),
            store_eviction_enabled: gauge(
                r,
                "tollgate_store_eviction_enabled",
                "1: the shared store may evict keys, so revoked tokens may become valid again; 0: it does not; -1: unknown.",
            ),
            store_changes: CounterFamily::new(
                r,
                "tollgate_store_changes_total",
                "Changes submitted to the store, by outcome.",
            ),
            store_commit_seconds: plain_histogram(
                r,
                "tollgate_store_commit_duration_seconds",
                "Time of one commit to disk, which may hold many changes.",
            ),
            store_bytes: gauge(
                r,
                "tollgate_store_bytes",
                "Size of the store's file in bytes.",
            ),
            reloads: CounterFamily::new(
                r,
                "tollgate_config_reloads_total",
                "Configuration reloads, by outcome.",
            ),
            config_is_current: gauge(
                r,
                "tollgate_config_last_reload_successful",
                "1 if the configuration file as it stands is in use.",
            ),
            store_invalidations: counter(
                r,
                "tollgate_store_invalidations_total",
                "Times the local copy of the shared store was invalidated because changes may have been missed.",
            ),
            store_failures: CounterFamily::new(
                r,
                "tollgate_store_failures_total",
                "Failed calls to the shared store, by reason.",
            ),
            store_lookups: CounterFamily::new(
                r,
                "tollgate_store_lookups_total",
                "Tokens looked up in the shared store because the local copy did not know them, by result.",
            ),
            log_lines_dropped: counter(
                r,
                "tollgate_log_lines_dropped_total",
                "Log lines dropped because the output was too slow or full.",
            ),
            task_panics: gauge(
                r,
                "tollgate_task_panics",
                "Tasks that have panicked since the start; each is a defect.",
            ),
            ready: gauge(r, "tollgate_ready", "1 while /readyz reports ready."),
            upstreams: UpstreamFamilies::new(r),
            endpoints: EndpointFamilies::new(r),
            registry,
        };
        metrics.config_is_current.set(1);
        Arc::new(metrics)
    }

    /// Number of requests finished since the start; each has written its access log line.
    pub fn requests_ended(&self) -> u64 {
        let families = self.requests.collect();
        let counts = families.iter().flat_map(|family| family.get_metric());
        // Counts are whole numbers far below 2^53, so the conversion is exact.
        counts
            .map(|count| count.get_counter().get_value() as u64)
            .sum()
    }

    /// The metrics of one upstream, the same for every call with its name. Not for the request
    /// path: an upstream keeps them.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        self.upstreams.of(name)
    }

    /// The metrics of one endpoint of an upstream that has several.
    pub fn endpoint(&self, upstream: &str, endpoint: &str) -> Arc<EndpointMetrics> {
        self.endpoints.of(upstream, endpoint)
    }

    /// The look-ups of the name of an upstream's endpoints that have ended so.
    pub fn endpoint_look_ups(&self, upstream: &str, outcome: ProbeOutcome) -> IntCounter {
        self.endpoints.look_ups(upstream, outcome)
    }

    /// All families in the Prometheus text format.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Writing to memory cannot fail; the encoder leaves out a family that it cannot encode.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}
