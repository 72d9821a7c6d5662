//! The active health checks of one endpoint: they ask as a request would, over a connection of their own.

use std::sync::Arc;

use http::{StatusCode, Uri};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::check_record::CheckState;
use super::own_requests::OwnRequests;
use super::{Endpoint, EndpointSet};
use crate::config::HealthCheckRules;
use crate::error_chain::chain;
use crate::lifecycle::ShutdownSignal;
use crate::metrics::ProbeOutcome;

/// Checks one endpoint at intervals.
#[derive(Debug)]
pub(super) struct HealthChecker {
    pub(super) own: Arc<OwnRequests>,
    pub(super) set: Arc<EndpointSet>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) rules: HealthCheckRules,
    pub(super) stop: ShutdownSignal,
}

impl HealthChecker {
    /// Runs until drain.
    pub(super) async fn run(self) {
        let state = &self.endpoint.state;
        loop {
            let due = state.with_check(|check| check.next());
            tokio::select! {
                () = self.stop.draining() => return,
                () = sleep_until(due.unwrap_or_else(Instant::now)) => {}
            }
            let jitter = rand::random();
            let is_ours =
                state.with_check(|check| check.claim(&self.rules, Instant::now(), jitter));
            if !is_ours {
                continue;
            }
            let outcome = tokio::select! {
                () = self.stop.draining() => return,
                outcome = timeout(self.rules.timeout, Box::pin(self.ask())) => outcome,
            };
            let late = || Err(format!("no response within {:?}", self.rules.timeout));
            self.note(outcome.unwrap_or_else(|_| late()));
        }
    }

    async fn ask(&self) -> Result<(), String> {
        let Some(path) = &self.rules.path else {
            let reached = self.endpoint.dialer.reach().await;
            return reached.map_err(|error| chain(&error));
        };
        let limit = self.rules.timeout;
        let request = self.own.get(Uri::from(path.clone()));
        let read = async |response: http::Response<_>| response.status();
        let asked = self.own.call_at(&self.endpoint, request, None, limit, read);
        let status: StatusCode = asked.await.map_err(|error| chain(&error))?;
        match self.rules.accepted.contains(status) {
            true => Ok(()),
            false => Err(format!("status {} for {path}", status.as_u16())),
        }
    }

    fn note(&self, outcome: Result<(), String>) {
        let state = &self.endpoint.state;
        if let Some(metrics) = &state.metrics {
            metrics.note_check(match &outcome {
                Ok(()) => ProbeOutcome::Succeeded,
                Err(_) => ProbeOutcome::Failed,
            });
        }
        let (changed, was_known, cause) = state.with_check(|check| {
            let was_known = check.state() != CheckState::Unknown;
            let changed = check.note(outcome, &self.rules);
            (changed, was_known, check.cause().to_owned())
        });
        let (upstream, endpoint) = (&self.set.upstream, &state.name);
        match changed {
            Some(CheckState::Failing) => warn!(%upstream, %endpoint, error = %cause,
                "the endpoint fails its health checks: it gets requests only if no other is healthy"),
            Some(_) if was_known => {
                info!(%upstream, %endpoint, "the endpoint passes its health checks again");
                state.begin_ramp();
            }
            _ => {}
        }
    }
}
