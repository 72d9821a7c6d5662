//! Every metric of the program, in one struct. Label values are enums or names from the config
//! file, so their number is bounded, and a client cannot create new ones. Start at `Metrics::new`;
//! `label.rs` has the label enums, `route_counts.rs` the counters of one route.

use std::sync::Arc;

use prometheus::core::Collector as _;
use prometheus::{
    Encoder as _, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, TextEncoder,
};

mod families;
mod label;
mod route_counts;

pub use label::{
    Blame, ClientLoginOutcome, ConnectResult, ConnectionEnd, CounterFamily, GaugeGuard, LabelSet,
    LimitOutcome, LoginOutcome, ProbeOutcome, Reason, ReloadResult, RetryReason, SentCredential,
    StoreFailure, StoreLookupResult, StoreOutcome, TokenCap, TokenEvent, UnreadableLogin,
};
pub use route_counts::RouteCounts;

use families::{counter, family, gauge, gauges, histogram, plain_histogram, process_metrics};

/// Every metric family of the program.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub requests: IntCounterVec,
    pub request_seconds: HistogramVec,
    pub first_byte_seconds: Histogram,
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
    pub session_logins: CounterFamily<LoginOutcome>,
    pub session_generation: IntGauge,
    pub session_seconds_to_expiry: IntGauge,
    pub session_requests_waiting: IntGauge,
    pub session_waits: IntCounter,
    pub session_clock_skew_seconds: IntGauge,
    pub session_up: IntGauge,
    pub session_live_tokens: IntGauge,
    pub upstream_requests: CounterFamily<SentCredential>,
    pub upstream_api_key_refused: IntGauge,
    pub upstream_connects: CounterFamily<ConnectResult>,
    pub upstream_connections_open: IntGauge,
    pub upstream_requests_queued: IntGauge,
    pub stalled_streams: IntGauge,
    pub permits_released_early: IntCounter,
    pub stalled_streams_aborted: IntCounter,
    pub upstream_retries: CounterFamily<RetryReason>,
    pub upstream_up: IntGauge,
    pub upstream_breaker_opened: IntCounter,
    pub upstream_probes: CounterFamily<ProbeOutcome>,
    pub token_probe_trusted: IntGauge,
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
            request_seconds: histogram(
                r,
                "tollgate_request_duration_seconds",
                "Time from the head of a request to the end of its response.",
            ),
            first_byte_seconds: plain_histogram(
                r,
                "tollgate_upstream_first_byte_seconds",
                "Time from sending a request upstream to the head of its response.",
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
            session_logins: CounterFamily::new(
                r,
                "tollgate_session_logins_total",
                "Logins of the gateway at the upstream, by outcome.",
            ),
            session_generation: gauge(
                r,
                "tollgate_session_generation",
                "Generation of the upstream token in use: how many logins have been published.",
            ),
            session_seconds_to_expiry: gauge(
                r,
                "tollgate_session_seconds_to_expiry",
                "Seconds until the upstream token in use expires; 0 without a token.",
            ),
            session_requests_waiting: gauge(
                r,
                "tollgate_session_requests_waiting",
                "Requests waiting for a login at the upstream now.",
            ),
            session_waits: counter(
                r,
                "tollgate_session_waits_total",
                "Requests that had to wait for a login at the upstream.",
            ),
            session_clock_skew_seconds: gauge(
                r,
                "tollgate_session_clock_skew_seconds",
                "Upstream clock minus the gateway's, from the Date header of responses.",
            ),
            session_up: gauge(
                r,
                "tollgate_session_up",
                "1 while the gateway holds a valid upstream token.",
            ),
            session_live_tokens: gauge(
                r,
                "tollgate_session_live_tokens",
                "Upstream tokens obtained by this process that have not expired yet.",
            ),
            upstream_api_key_refused: gauge(
                r,
                "tollgate_upstream_api_key_refused",
                "1 while the upstream refuses the API key of monitoring requests.",
            ),
            upstream_requests: CounterFamily::new(
                r,
                "tollgate_upstream_requests_total",
                "Requests sent to the upstream, by the kind of credential they carried.",
            ),
            upstream_connects: CounterFamily::new(
                r,
                "tollgate_upstream_connects_total",
                "Connections obtained for upstream requests: new or reused, or the kind of failure.",
            ),
            upstream_connections_open: gauge(
                r,
                "tollgate_upstream_connections_open",
                "Connections to the upstream open now.",
            ),
            upstream_requests_queued: gauge(
                r,
                "tollgate_upstream_requests_queued",
                "Requests waiting for an upstream permit now.",
            ),
            stalled_streams: gauge(
                r,
                "tollgate_upstream_stalled_streams",
                "Streams to or from slow clients that have released their upstream permit and are still open.",
            ),
            permits_released_early: counter(
                r,
                "tollgate_upstream_permits_released_early_total",
                "Upstream permits released before the end of the stream because the client was slow.",
            ),
            stalled_streams_aborted: counter(
                r,
                "tollgate_upstream_stalled_streams_aborted_total",
                "Streams aborted because their slow client had more than its share of stalled streams.",
            ),
            upstream_retries: CounterFamily::new(
                r,
                "tollgate_upstream_retries_total",
                "Requests sent to the upstream a second time, by reason.",
            ),
            upstream_up: gauge(
                r,
                "tollgate_upstream_up",
                "0 while the upstream is considered down and requests are refused at once.",
            ),
            upstream_breaker_opened: counter(
                r,
                "tollgate_upstream_breaker_opened_total",
                "Times the circuit breaker opened because the upstream was considered down.",
            ),
            upstream_probes: CounterFamily::new(
                r,
                "tollgate_upstream_probes_total",
                "Probe requests that the gateway sent to check a failing upstream, by outcome.",
            ),
            token_probe_trusted: gauge(
                r,
                "tollgate_token_probe_trusted",
                "1 while the upstream's token probe is known to reject invalid tokens; 0 before it was tested, or if it accepts them.",
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

    /// All families in the Prometheus text format.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Writing to memory cannot fail; the encoder leaves out a family that it cannot encode.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}
