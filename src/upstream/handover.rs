//! What an upstream gets from the gate, and from the one that it takes the place of.

use std::sync::Arc;

use http::{HeaderValue, Version};

use super::connect::Dialer;
use super::health::UpstreamHealth;
use super::keeper::LeaseKeeper;
use super::probe::OwnRequests;
use crate::config;
use crate::metrics::Metrics;
use crate::via::GatewayVia;

#[derive(Debug)]
pub struct UpstreamHandover {
    /// The gate's name in `Via`.
    pub via: GatewayVia,
    /// The token of an earlier start, if one was kept.
    pub keeper: Option<LeaseKeeper>,
    /// What is known of the upstream at this address: `Upstream::health_for`.
    pub health: Option<Arc<UpstreamHealth>>,
}

impl UpstreamHandover {
    /// Nothing came before.
    #[must_use]
    pub fn first(keeper: Option<LeaseKeeper>) -> Self {
        Self {
            via: GatewayVia::random(),
            keeper,
            health: None,
        }
    }

    /// What requests of the gate itself need. Health that was handed over goes on.
    pub(super) fn own_requests(
        &self,
        settings: &config::Upstream,
        host: &HeaderValue,
        dialer: &Arc<Dialer>,
        metrics: &Arc<Metrics>,
    ) -> Arc<OwnRequests> {
        let known = self.health.clone();
        Arc::new(OwnRequests {
            dialer: Arc::clone(dialer),
            host: host.clone(),
            via: self.via.value(Version::HTTP_11).clone(),
            health: known.unwrap_or_else(|| UpstreamHealth::new(&settings.name, metrics)),
            probe: settings.probe.clone(),
            patience: settings.first_byte_timeout,
        })
    }
}
