//! What the operator sees of the endpoints of one upstream.

use std::sync::Arc;

use super::check_record::CheckState;
use super::{EndpointSet, EndpointState};

/// The state of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointReport {
    pub upstream: Arc<str>,
    /// Its address.
    pub endpoint: Arc<str>,
    pub is_drained: bool,
    /// Requests that have not ended.
    pub in_flight: usize,
    /// Why it gets no requests while others are healthy; None: it gets its share.
    pub trouble: Option<String>,
}

impl EndpointSet {
    /// The endpoints, in their order.
    pub fn report(&self) -> Vec<EndpointReport> {
        let list = self.list();
        let states = list.endpoints.iter().map(|endpoint| &endpoint.state);
        let report = |state: &Arc<EndpointState>| EndpointReport {
            upstream: Arc::clone(&self.upstream),
            endpoint: Arc::clone(&state.name),
            is_drained: state.is_drained(),
            in_flight: state.in_flight.get(),
            trouble: trouble(state),
        };
        states.map(report).collect()
    }

    /// A line for each endpoint that is not in use, while the upstream is.
    pub fn notes(&self) -> Vec<String> {
        if self.sole().is_some() {
            return Vec::new();
        }
        let reports = self.report().into_iter();
        let line = |report: EndpointReport| {
            let (upstream, endpoint) = (&report.upstream, &report.endpoint);
            let reason = match report.trouble {
                _ if report.is_drained => "drained".to_owned(),
                trouble => trouble?,
            };
            Some(format!(
                "upstream {upstream}: endpoint {endpoint}: {reason}"
            ))
        };
        reports.filter_map(line).collect()
    }

    /// Shows the session of the endpoint with this name, which has one of its own.
    pub(in crate::upstream) fn show_session(&self, name: &str, is_up: bool, seconds: u64) {
        let state = self.state_of(name);
        if let Some(metrics) = state.as_ref().and_then(|state| state.metrics.as_ref()) {
            metrics.show_session(is_up, seconds);
        }
    }

    /// Sets the gauges that are computed just before a scrape.
    pub(in crate::upstream) fn refresh_gauges(&self) {
        let list = self.list();
        for endpoint in &list.endpoints {
            let state = &endpoint.state;
            if let Some(metrics) = &state.metrics {
                metrics.available.set(i64::from(!state.is_out()));
            }
        }
    }
}

fn trouble(state: &EndpointState) -> Option<String> {
    if let Some(outage) = state.health.outage() {
        return Some(outage.in_words());
    }
    let check = state.with_check(|check| {
        let is_failing = check.state() == CheckState::Failing;
        is_failing.then(|| check.cause().to_owned())
    });
    if let Some(cause) = check {
        return Some(format!("fails its health checks: {cause}"));
    }
    state.is_ejected().then(|| {
        let seconds = state.ejected_for().as_secs_f64();
        format!("ejected because its requests failed; tried again in {seconds:.0} s")
    })
}
