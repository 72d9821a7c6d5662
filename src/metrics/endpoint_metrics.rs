//! The metrics of one endpoint of an upstream that has several. Their series end with the endpoint, so
//! that a name whose addresses change does not add series for ever.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::families::{family, gauges};
use super::label::{LabelSet as _, ProbeOutcome};

const LABELS: [&str; 2] = ["upstream", "endpoint"];
/// Of the requests to an endpoint.
const OUTCOMES: [&str; 4] = ["ok", "error_status", "no_response", "no_connection"];

/// The metrics of one endpoint.
#[derive(Debug)]
pub struct EndpointMetrics {
    pub in_flight: IntGauge,
    /// 1 while it gets its share of requests.
    pub available: IntGauge,
    pub ejections: IntCounter,
    /// In the order of `OUTCOMES`.
    requests: [IntCounter; 4],
    /// In the order of `ProbeOutcome`.
    checks: [IntCounter; 2],
    name: EndpointLabels,
    families: Arc<EndpointFamilies>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct EndpointLabels {
    upstream: Box<str>,
    endpoint: Box<str>,
}

/// The families that have the labels `upstream` and `endpoint`.
#[derive(Debug)]
pub(super) struct EndpointFamilies {
    by_name: Mutex<HashMap<EndpointLabels, Weak<EndpointMetrics>>>,
    in_flight: IntGaugeVec,
    available: IntGaugeVec,
    ejections: IntCounterVec,
    requests: IntCounterVec,
    checks: IntCounterVec,
    look_ups: IntCounterVec,
    /// Of endpoints with a login of their own.
    session_up: IntGaugeVec,
    session_seconds: IntGaugeVec,
}

impl EndpointFamilies {
    pub(super) fn new(registry: &Registry) -> Arc<Self> {
        let gauge = |name, help| gauges(registry, name, help, &LABELS);
        let outcomes = ["upstream", "endpoint", "outcome"];
        let counter = |name, help, labels: &[&str]| family(registry, name, help, labels);
        Arc::new(Self {
            by_name: Mutex::default(),
            in_flight: gauge(
                "tollgate_endpoint_requests_in_flight",
                "Requests sent to the endpoint that have not ended, bodies included.",
            ),
            available: gauge(
                "tollgate_endpoint_available",
                "1 while the endpoint gets its share; 0 while it is drained, ejected, down or fails its health checks.",
            ),
            ejections: counter(
                "tollgate_endpoint_ejections_total",
                "Times the endpoint was taken out of use because its requests failed.",
                &LABELS,
            ),
            requests: counter(
                "tollgate_endpoint_requests_total",
                "Requests to the endpoint, by outcome.",
                &outcomes,
            ),
            checks: counter(
                "tollgate_endpoint_checks_total",
                "Health checks of the endpoint, by outcome.",
                &outcomes,
            ),
            look_ups: counter(
                "tollgate_endpoint_look_ups_total",
                "Look-ups of the name whose addresses are the endpoints, by outcome.",
                &["upstream", "outcome"],
            ),
            session_up: gauge(
                "tollgate_endpoint_session_up",
                "1 while the gateway has a token for the endpoint; with login_per_endpoint.",
            ),
            session_seconds: gauge(
                "tollgate_endpoint_session_seconds_to_expiry",
                "Remaining lifetime of the gateway's token for the endpoint; with login_per_endpoint.",
            ),
        })
    }

    /// The metrics of one endpoint; shared while it is known.
    pub(super) fn of(self: &Arc<Self>, upstream: &str, endpoint: &str) -> Arc<EndpointMetrics> {
        let name = EndpointLabels {
            upstream: upstream.into(),
            endpoint: endpoint.into(),
        };
        let mut by_name = self.by_name.lock();
        if let Some(known) = by_name.get(&name).and_then(Weak::upgrade) {
            return known;
        }
        let labels = [upstream, endpoint];
        let outcome = |family: &IntCounterVec, outcome: &str| {
            family.with_label_values(&[upstream, endpoint, outcome])
        };
        let available = self.available.with_label_values(&labels);
        available.set(1);
        let made = Arc::new(EndpointMetrics {
            in_flight: self.in_flight.with_label_values(&labels),
            available,
            ejections: self.ejections.with_label_values(&labels),
            requests: OUTCOMES.map(|text| outcome(&self.requests, text)),
            checks: [ProbeOutcome::Succeeded, ProbeOutcome::Failed]
                .map(|ended| outcome(&self.checks, ended.text())),
            name: name.clone(),
            families: Arc::clone(self),
        });
        by_name.insert(name, Arc::downgrade(&made));
        made
    }

    /// The look-ups of an upstream's name that have ended so.
    pub(super) fn look_ups(&self, upstream: &str, outcome: ProbeOutcome) -> IntCounter {
        self.look_ups.with_label_values(&[upstream, outcome.text()])
    }

    fn forget(&self, name: &EndpointLabels) {
        let mut by_name = self.by_name.lock();
        if by_name.get(name).is_some_and(|one| one.strong_count() > 0) {
            return; // it was added again
        }
        by_name.remove(name);
        let labels: [&str; 2] = [&name.upstream, &name.endpoint];
        // An error means that there is no such series.
        let _ = self.in_flight.remove_label_values(&labels);
        let _ = self.available.remove_label_values(&labels);
        let _ = self.ejections.remove_label_values(&labels);
        let _ = self.session_up.remove_label_values(&labels);
        let _ = self.session_seconds.remove_label_values(&labels);
        let ended = [ProbeOutcome::Succeeded, ProbeOutcome::Failed];
        for ended in ended {
            let _ = self
                .checks
                .remove_label_values(&[labels[0], labels[1], ended.text()]);
        }
        for outcome in OUTCOMES {
            let _ = self
                .requests
                .remove_label_values(&[labels[0], labels[1], outcome]);
        }
    }
}

impl EndpointMetrics {
    pub fn note_response(&self, is_failure: bool) {
        self.requests[usize::from(is_failure)].inc();
    }

    pub fn note_no_response(&self) {
        self.requests[2].inc();
    }

    pub fn note_no_connection(&self) {
        self.requests[3].inc();
    }

    /// The endpoint has a login of its own, in this state.
    pub fn show_session(&self, is_up: bool, seconds_to_expiry: u64) {
        let labels: [&str; 2] = [&self.name.upstream, &self.name.endpoint];
        let up = self.families.session_up.with_label_values(&labels);
        up.set(i64::from(is_up));
        let seconds = self.families.session_seconds.with_label_values(&labels);
        seconds.set(i64::try_from(seconds_to_expiry).unwrap_or(i64::MAX));
    }

    pub fn note_check(&self, outcome: ProbeOutcome) {
        self.checks[outcome.index()].inc();
    }
}

impl Drop for EndpointMetrics {
    fn drop(&mut self) {
        self.families.forget(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_of_an_endpoint_end_with_it_and_not_before() {
        let registry = Registry::new();
        let families = EndpointFamilies::new(&registry);
        let series = || {
            let all = registry.gather();
            all.iter()
                .map(|family| family.get_metric().len())
                .sum::<usize>()
        };
        let first = families.of("main", "a");
        let again = families.of("main", "a");
        assert!(Arc::ptr_eq(&first, &again));
        let other = families.of("main", "b");
        assert_eq!(series(), 2 * 9);
        drop(first);
        assert_eq!(series(), 2 * 9, "still in use");
        drop(again);
        assert_eq!(series(), 9);
        drop(other);
        assert_eq!(series(), 0);
    }
}
