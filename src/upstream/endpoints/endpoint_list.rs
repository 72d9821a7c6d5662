//! The endpoints of one moment.

use std::sync::Arc;

use http::HeaderValue;

use super::endpoint_state::EndpointState;
use crate::config::BaseAddress;
use crate::upstream::transport::dialer::Dialer;

/// One server of an upstream, and how it is reached.
#[derive(Debug)]
pub(in crate::upstream) struct Endpoint {
    pub(in crate::upstream) state: Arc<EndpointState>,
    pub(in crate::upstream) base: BaseAddress,
    /// The `Host` field of requests to it.
    pub(in crate::upstream) host: HeaderValue,
    pub(in crate::upstream) dialer: Dialer,
}

/// The endpoints of one moment, in the order of the file or of their addresses.
#[derive(Debug, Default)]
pub(in crate::upstream) struct EndpointList {
    /// Another list has another number.
    pub(in crate::upstream) generation: u64,
    pub(in crate::upstream) endpoints: Vec<Arc<Endpoint>>,
}

impl EndpointList {
    pub(super) fn undrained(&self) -> impl Iterator<Item = &Arc<EndpointState>> {
        let states = self.endpoints.iter().map(|endpoint| &endpoint.state);
        states.filter(|state| !state.is_drained())
    }

    /// Whether at most half of the endpoints are out when this one is too.
    pub(super) fn may_eject(&self, candidate: &Arc<EndpointState>) -> bool {
        let states = self.endpoints.iter().map(|endpoint| &endpoint.state);
        let others = states.filter(|state| !Arc::ptr_eq(state, candidate));
        let out = others.filter(|state| state.is_out()).count();
        out < self.endpoints.len() / 2
    }

    /// Ends ejections until at most half of the endpoints are ejected.
    pub(super) fn pardon_surplus(&self) {
        let states = self.endpoints.iter().map(|endpoint| &endpoint.state);
        let ejected = states.filter(|state| state.is_ejected());
        ejected
            .skip(self.endpoints.len() / 2)
            .for_each(|state| state.pardon());
    }
}
