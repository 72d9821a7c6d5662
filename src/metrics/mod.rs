//! Every metric of the program. Label values are enums, or names
//! from the config file: their number is bounded, and nothing a client sends is one.

use std::sync::Arc;

use prometheus::core::Collector as _;
use prometheus::{
    Encoder as _, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, TextEncoder,
};

mod families;
mod label;
mod route;

pub use label::{
    Blame, ClientLogin, Connect, ConnectionEnd, CounterFamily, GaugeGuard, Injected, LabelSet,
    LimitOutcome, LoginOutcome, ProbeOutcome, Reason, Reload, Repeat, StoreAnswer, StoreFailure,
    StoreOutcome, TokenCap, TokenEvent, UnreadLogin,
};
pub use route::RouteCounts;

use families::{counter, family, gauge, gauges, histogram, plain_histogram};

/// Every family of the program.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub requests: IntCounterVec,
    pub request_seconds: HistogramVec,
    pub first_byte_seconds: Histogram,
    pub in_flight: IntGauge,
    pub answers: CounterFamily<Blame>,
    pub rejections: CounterFamily<Reason>,
    pub bytes_in: IntCounter,
    pub bytes_out: IntCounter,
    pub clients_gone: IntCounter,
    pub unreadable_origins: IntCounter,
    pub connections: IntCounter,
    pub connections_open: IntGauge,
    pub connection_ends: CounterFamily<ConnectionEnd>,
    pub certificate_expiry: IntGaugeVec,
    pub certificate_reloads: CounterFamily<Reload>,
    pub tokens: IntGauge,
    pub token_events: CounterFamily<TokenEvent>,
    pub client_logins: CounterFamily<ClientLogin>,
    pub session_logins: CounterFamily<LoginOutcome>,
    pub session_generation: IntGauge,
    pub session_seconds_to_expiry: IntGauge,
    pub session_requests_waiting: IntGauge,
    pub session_waits: IntCounter,
    pub session_clock_skew_seconds: IntGauge,
    pub session_up: IntGauge,
    pub session_live_tokens: IntGauge,
    pub injected: CounterFamily<Injected>,
    pub upstream_api_key_refused: IntGauge,
    pub upstream_connects: CounterFamily<Connect>,
    pub upstream_connections_open: IntGauge,
    pub upstream_queue: IntGauge,
    pub stalled_streams: IntGauge,
    pub stalled_streams_total: IntCounter,
    pub stalled_streams_cut: IntCounter,
    pub upstream_repeats: CounterFamily<Repeat>,
    pub upstream_up: IntGauge,
    pub upstream_breaker_openings: IntCounter,
    pub upstream_probes: CounterFamily<ProbeOutcome>,
    pub probe_trusted: IntGauge,
    pub unread_logins: CounterFamily<UnreadLogin>,
    pub token_caps_near: CounterFamily<TokenCap>,
    pub limited: CounterFamily<LimitOutcome>,
    pub limit_keys: IntGaugeVec,
    pub store_up: IntGauge,
    pub store_evicts: IntGauge,
    pub store_changes: CounterFamily<StoreOutcome>,
    pub store_commit_seconds: Histogram,
    pub store_bytes: IntGauge,
    pub reloads: CounterFamily<Reload>,
    pub config_good: IntGauge,
    pub store_doubts: IntCounter,
    pub store_failures: CounterFamily<StoreFailure>,
    pub store_lookups: CounterFamily<StoreAnswer>,
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
            "Version of this program.",
            &["version"],
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        process_metrics(r);
        let metrics = Self {
            requests: family(
                r,
                "tollgate_requests_total",
                "Requests by route and status class.",
                &["route", "status"],
            ),
            request_seconds: histogram(
                r,
                "tollgate_request_duration_seconds",
                "From the head of a request to the end of its answer.",
            ),
            first_byte_seconds: plain_histogram(
                r,
                "tollgate_upstream_first_byte_seconds",
                "From sending a request upstream to the head of the answer.",
            ),
            in_flight: gauge(
                r,
                "tollgate_requests_in_flight",
                "Requests inside the gate now.",
            ),
            answers: CounterFamily::new(
                r,
                "tollgate_answers_total",
                "Answers by whose doing they are.",
            ),
            rejections: CounterFamily::new(
                r,
                "tollgate_rejections_total",
                "Requests that the gate itself refused.",
            ),
            bytes_in: counter(
                r,
                "tollgate_request_body_bytes_total",
                "Bytes of request bodies read from clients.",
            ),
            bytes_out: counter(
                r,
                "tollgate_response_body_bytes_total",
                "Bytes of answer bodies given to clients.",
            ),
            clients_gone: counter(
                r,
                "tollgate_clients_gone_total",
                "Exchanges that the client left before their end.",
            ),
            unreadable_origins: counter(
                r,
                "tollgate_unreadable_origins_total",
                "Requests whose trusted proxy named no client address in X-Forwarded-For or Forwarded.",
            ),
            connections: counter(r, "tollgate_connections_total", "Connections accepted."),
            connections_open: gauge(
                r,
                "tollgate_connections_open",
                "Connections from clients now.",
            ),
            connection_ends: CounterFamily::new(
                r,
                "tollgate_connection_failures_total",
                "Connections ended early, by reason.",
            ),
            certificate_expiry: gauges(
                r,
                "tollgate_certificate_expiry_timestamp_seconds",
                "End of validity of each certificate in use.",
                &["certificate"],
            ),
            certificate_reloads: CounterFamily::new(
                r,
                "tollgate_certificate_reloads_total",
                "Certificate files that changed.",
            ),
            tokens: gauge(r, "tollgate_tokens", "Client tokens in the store now."),
            token_events: CounterFamily::new(
                r,
                "tollgate_token_events_total",
                "Client tokens minted, learned, revoked, expired, displaced by a newer one at a user's cap, or refused by a cap.",
            ),
            client_logins: CounterFamily::new(
                r,
                "tollgate_client_logins_total",
                "Logins of clients at the gate.",
            ),
            session_logins: CounterFamily::new(
                r,
                "tollgate_session_logins_total",
                "Logins of the gate at the upstream.",
            ),
            session_generation: gauge(
                r,
                "tollgate_session_generation",
                "Number of the login whose token is in use.",
            ),
            session_seconds_to_expiry: gauge(
                r,
                "tollgate_session_seconds_to_expiry",
                "Seconds until the upstream token in use ends; 0 without one.",
            ),
            session_requests_waiting: gauge(
                r,
                "tollgate_session_requests_waiting",
                "Requests that wait for a login now.",
            ),
            session_waits: counter(
                r,
                "tollgate_session_waits_total",
                "Requests that had to wait for a login.",
            ),
            session_clock_skew_seconds: gauge(
                r,
                "tollgate_session_clock_skew_seconds",
                "Upstream clock minus ours, from its Date header.",
            ),
            session_up: gauge(
                r,
                "tollgate_session_up",
                "1 while there is a valid upstream token.",
            ),
            session_live_tokens: gauge(
                r,
                "tollgate_session_live_tokens",
                "Upstream tokens this process obtained that have not ended yet.",
            ),
            upstream_api_key_refused: gauge(
                r,
                "tollgate_upstream_api_key_refused",
                "1 while the upstream refuses the API key of monitoring requests.",
            ),
            injected: CounterFamily::new(
                r,
                "tollgate_injected_total",
                "Requests sent up, by the credential they carried.",
            ),
            upstream_connects: CounterFamily::new(
                r,
                "tollgate_upstream_connects_total",
                "How connections to the upstream were had.",
            ),
            upstream_connections_open: gauge(
                r,
                "tollgate_upstream_connections_open",
                "Connections to the upstream now.",
            ),
            upstream_queue: gauge(
                r,
                "tollgate_upstream_queue",
                "Requests that wait for their turn at the upstream now.",
            ),
            stalled_streams: gauge(
                r,
                "tollgate_upstream_stalled_streams",
                "Bodies that gave their turn at the upstream back, as their client is slow, now.",
            ),
            stalled_streams_total: counter(
                r,
                "tollgate_upstream_turns_given_back_total",
                "Turns at the upstream that were given back early, as the client was slow.",
            ),
            stalled_streams_cut: counter(
                r,
                "tollgate_upstream_stalled_streams_cut_total",
                "Bodies of slow clients that were cut, as their client had its share of them.",
            ),
            upstream_repeats: CounterFamily::new(
                r,
                "tollgate_upstream_repeats_total",
                "Requests sent to the upstream a second time.",
            ),
            upstream_up: gauge(
                r,
                "tollgate_upstream_up",
                "0 while the upstream is down and requests are refused at once.",
            ),
            upstream_breaker_openings: counter(
                r,
                "tollgate_upstream_breaker_openings_total",
                "Times that the upstream was found to be down.",
            ),
            upstream_probes: CounterFamily::new(
                r,
                "tollgate_upstream_probes_total",
                "Small requests of the gate itself that check a failing upstream.",
            ),
            probe_trusted: gauge(
                r,
                "tollgate_token_probe_trusted",
                "1 while the upstream's probe is known to refuse made-up tokens; 0 before it was tried, or when it accepts them.",
            ),
            unread_logins: CounterFamily::new(
                r,
                "tollgate_unread_logins_total",
                "Relayed logins whose answer the gate could not read; the answer was passed on and its token not learned.",
            ),
            token_caps_near: CounterFamily::new(
                r,
                "tollgate_token_caps_near_total",
                "Logins after which a user, or all users together, held 80 % or more of the tokens allowed.",
            ),
            limited: CounterFamily::new(
                r,
                "tollgate_limited_total",
                "Requests that found a bucket empty.",
            ),
            limit_keys: gauges(
                r,
                "tollgate_limit_keys",
                "Keys that a limit remembers now.",
                &["limit"],
            ),
            store_up: gauge(
                r,
                "tollgate_store_up",
                "1 while changes can be made to last.",
            ),
            store_evicts: gauge(
                r,
                "tollgate_store_evicts",
                "1: the shared store may evict keys, so ended tokens may come back; 0: it does not; -1: it does not tell.",
            ),
            store_changes: CounterFamily::new(
                r,
                "tollgate_store_changes_total",
                "Changes that were to outlive a restart.",
            ),
            store_commit_seconds: plain_histogram(
                r,
                "tollgate_store_commit_duration_seconds",
                "One commit to disk, of one change or of many.",
            ),
            store_bytes: gauge(r, "tollgate_store_bytes", "Size of the store's file."),
            reloads: CounterFamily::new(
                r,
                "tollgate_config_reloads_total",
                "Configuration reloads.",
            ),
            config_good: gauge(
                r,
                "tollgate_config_last_reload_successful",
                "1 if the config file as it stands is the one in use.",
            ),
            store_doubts: counter(
                r,
                "tollgate_store_doubts_total",
                "Times that changes in the shared store may have been missed.",
            ),
            store_failures: CounterFamily::new(
                r,
                "tollgate_store_failures_total",
                "Calls that the shared store did not do.",
            ),
            store_lookups: CounterFamily::new(
                r,
                "tollgate_store_lookups_total",
                "Tokens that the shared store was asked about.",
            ),
            log_lines_dropped: counter(
                r,
                "tollgate_log_lines_dropped_total",
                "Log lines lost because the output was too slow, or full.",
            ),
            task_panics: gauge(
                r,
                "tollgate_task_panics",
                "Tasks that ended by a panic since the start: defects.",
            ),
            ready: gauge(r, "tollgate_ready", "1 while /readyz says ready."),
            registry,
        };
        metrics.config_good.set(1);
        Arc::new(metrics)
    }

    /// Requests that have ended since the start, each with its access line.
    pub fn requests_ended(&self) -> u64 {
        let families = self.requests.collect();
        let counts = families.iter().flat_map(|family| family.get_metric());
        // Whole numbers, and none that a float could not hold.
        counts
            .map(|count| count.get_counter().get_value() as u64)
            .sum()
    }

    /// All families in the Prometheus text format.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Writing to memory cannot fail, and a family that cannot be encoded is left out.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}

#[cfg(target_os = "linux")]
fn process_metrics(registry: &Registry) {
    let process = prometheus::process_collector::ProcessCollector::for_self();
    registry
        .register(Box::new(process))
        .expect("registered once, here");
}

#[cfg(not(target_os = "linux"))]
fn process_metrics(_: &Registry) {}
