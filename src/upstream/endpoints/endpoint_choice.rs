//! Which endpoint a request goes to: of those of the best rank, the one with fewer requests in flight of
//! two random ones, or the client's own by rendezvous hashing.

use std::sync::Arc;

use super::endpoint_state::{EndpointRank, EndpointState};
use super::{EndpointList, EndpointSet};

/// What a request asks of its endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndpointChoice<'a> {
    /// Requests with the same value go to one endpoint; None: no matter where.
    pub affinity: Option<u64>,
    /// Names of the endpoints that have been tried already.
    pub tried: &'a [Arc<str>],
    /// Only an endpoint that is not down: the request has failed elsewhere.
    pub must_be_up: bool,
    /// Its outcome is not reported, so it cannot end an ejection.
    pub is_own: bool,
}

impl EndpointSet {
    /// The position in `list` of an endpoint for a request; None: there is none for it.
    pub(in crate::upstream) fn choose(
        &self,
        list: &EndpointList,
        choice: EndpointChoice<'_>,
    ) -> Option<usize> {
        let states = || list.endpoints.iter().map(|endpoint| &endpoint.state);
        let is_untried = |state: &EndpointState| !choice.tried.contains(&state.name);
        if let Some(trial) = self.trial(list, choice) {
            return Some(trial);
        }
        let is_checked = self.policy.health_check.is_some();
        let rank = |state: &EndpointState| state.rank(is_checked).filter(|_| is_untried(state));
        let best = states().filter_map(|state| rank(state)).min()?;
        if choice.must_be_up && best == EndpointRank::Down {
            return None;
        }
        if choice.tried.is_empty() {
            self.tell_rank(best);
        }
        let candidates = Candidates {
            list,
            is_one: |state: &EndpointState| rank(state) == Some(best),
        };
        match choice.affinity {
            Some(client) => candidates.by_affinity(client),
            None => self.least_loaded(&candidates),
        }
    }

    /// The endpoint for which this request is the trial that can end its ejection.
    fn trial(&self, list: &EndpointList, choice: EndpointChoice<'_>) -> Option<usize> {
        let states = || list.endpoints.iter().map(|endpoint| &endpoint.state);
        if choice.is_own || !states().any(|state| state.is_ejected()) {
            return None;
        }
        let is_candidate =
            |state: &EndpointState| !state.is_drained() && !choice.tried.contains(&state.name);
        match choice.affinity {
            None => states().position(|state| is_candidate(state) && state.claim_trial()),
            // Only a client whose endpoint it is.
            Some(client) => {
                let is_one = is_candidate;
                let position = Candidates { list, is_one }.by_affinity(client)?;
                list.endpoints[position]
                    .state
                    .claim_trial()
                    .then_some(position)
            }
        }
    }

    fn least_loaded(
        &self,
        candidates: &Candidates<'_, impl Fn(&EndpointState) -> bool>,
    ) -> Option<usize> {
        let count = candidates.positions().count();
        if count <= 1 {
            return candidates.positions().next();
        }
        let one = candidates.nth(random_below(count))?;
        let other = candidates.nth_but(random_below(count - 1), one)?;
        let (first, second) = (candidates.state(one), candidates.state(other));
        // A slow start: it gets this part of what it would get.
        let passes = |state: &EndpointState| {
            let ramp = state.ramp(self.policy.slow_start);
            ramp >= 1.0 || rand::random::<f64>() < ramp
        };
        match (passes(first), passes(second)) {
            (true, false) => return Some(one),
            (false, true) => return Some(other),
            _ => {}
        }
        let (mut load, mut other_load) = (first.in_flight.get(), second.in_flight.get());
        // Failing fast must not look like being free.
        if first.failures() > 0 {
            load = load.max(other_load);
        }
        if second.failures() > 0 {
            other_load = other_load.max(load);
        }
        Some(if other_load < load { other } else { one })
    }
}

/// The endpoints of one rank.
struct Candidates<'a, F> {
    list: &'a EndpointList,
    is_one: F,
}

impl<F: Fn(&EndpointState) -> bool> Candidates<'_, F> {
    fn positions(&self) -> impl Iterator<Item = usize> {
        let all = self.list.endpoints.iter().enumerate();
        let found = all.filter(|(_, endpoint)| (self.is_one)(&endpoint.state));
        found.map(|(position, _)| position)
    }

    fn nth(&self, nth: usize) -> Option<usize> {
        self.positions()
            .nth(nth)
            .or_else(|| self.positions().next())
    }

    /// The same, without the one at `position`.
    fn nth_but(&self, nth: usize, position: usize) -> Option<usize> {
        let mut others = self.positions().filter(|other| *other != position);
        others.nth(nth).or(Some(position))
    }

    fn state(&self, position: usize) -> &EndpointState {
        &self.list.endpoints[position].state
    }

    /// Rendezvous hashing: when an endpoint leaves, only its clients move.
    fn by_affinity(&self, client: u64) -> Option<usize> {
        let weight = |position: &usize| weight(client, &self.state(*position).name);
        self.positions().max_by_key(weight)
    }
}

/// The same in every process, so that replicas agree.
fn weight(client: u64, endpoint: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    client.hash(&mut hasher);
    endpoint.hash(&mut hasher);
    hasher.finish()
}

fn random_below(end: usize) -> usize {
    rand::random_range(0..end)
}
