//! The tasks that run for each endpoint: probes after failures, health checks, a look at a socket's file.

use std::sync::Arc;

use super::health_checker::HealthChecker;
use super::health_prober::EndpointProber;
use super::own_requests::OwnRequests;
use super::{Endpoint, EndpointSet};
use crate::config::EndpointPolicy;
use crate::lifecycle::TaskScope;
use crate::metrics::UpstreamMetrics;
use crate::upstream::transport::dialer::Dialer;

/// What the tasks of the endpoints of one upstream have in common.
#[derive(Debug)]
pub(in crate::upstream) struct EndpointTasks {
    pub(in crate::upstream) set: Arc<EndpointSet>,
    pub(in crate::upstream) own: Arc<OwnRequests>,
    pub(in crate::upstream) metrics: Arc<UpstreamMetrics>,
}

impl EndpointTasks {
    /// Starts the tasks of `endpoint`; they run until `scope` drains.
    pub(in crate::upstream) fn start(&self, endpoint: &Arc<Endpoint>, scope: &TaskScope) {
        let prober = EndpointProber::new(&self.own, endpoint, scope, &self.metrics);
        scope.spawn("upstream health", prober.run());
        if let Some(rules) = &self.policy().health_check {
            let checker = HealthChecker {
                own: Arc::clone(&self.own),
                set: Arc::clone(&self.set),
                endpoint: Arc::clone(endpoint),
                rules: rules.clone(),
                stop: scope.stop.clone(),
            };
            scope.spawn("upstream health check", checker.run());
        }
        if let Dialer::Unix(_) = &endpoint.dialer {
            let (endpoint, stop) = (Arc::clone(endpoint), scope.stop.clone());
            scope.spawn("upstream socket watch", async move {
                if let Dialer::Unix(unix) = &endpoint.dialer {
                    unix.watch(stop).await;
                }
            });
        }
    }

    fn policy(&self) -> &EndpointPolicy {
        &self.set.policy
    }
}
