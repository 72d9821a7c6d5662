//! Single flights about unknown tokens: concurrent requests with one unknown token lead to one
//! question to the upstream, and all of them get its outcome. Refused tokens are remembered.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::watch;

use crate::clock::{Deadline, LogThrottle};
use crate::metrics::{LabelSet as _, UnreadableLogin};
use crate::pipeline::reject::Rejection;
use crate::token::{Grant, TokenDigest};

/// How long a refused token is remembered.
const REFUSAL_LIFETIME: Duration = Duration::from_secs(30);
/// Refused tokens that are remembered at once; the upstream is asked again about any others.
const MAX_REFUSALS: usize = 100_000;

type OutcomeReceiver = watch::Receiver<Option<IntrospectionOutcome>>;

/// The flights in progress, and the tokens refused within the last half minute.
#[derive(Debug, Default)]
pub struct TokenIntrospection {
    flights: DashMap<TokenDigest, OutcomeReceiver>,
    refused: DashMap<TokenDigest, Deadline>,
    /// Limits the log lines about unreadable responses to relayed logins, by reason.
    pub(in crate::pipeline) unread_logins: [LogThrottle; UnreadableLogin::ALL.len()],
}

/// What the upstream said about a token.
#[derive(Clone, Debug)]
pub enum IntrospectionOutcome {
    Accepted(Grant),
    Refused,
    /// The upstream said neither.
    Unavailable,
}

impl IntrospectionOutcome {
    /// None: the upstream refuses the token.
    fn into_grant(self) -> Result<Option<Grant>, Rejection> {
        match self {
            Self::Accepted(grant) => Ok(Some(grant)),
            Self::Refused => Ok(None),
            Self::Unavailable => Err(Rejection::CannotAsk),
        }
    }
}

/// The duty to ask the upstream about a token. If it is dropped without an outcome, its followers get
/// `Unavailable`.
#[derive(Debug)]
pub struct FlightLeader {
    digest: TokenDigest,
    introspection: Arc<TokenIntrospection>,
    outcome: watch::Sender<Option<IntrospectionOutcome>>,
}

/// Waits for the outcome of a flight.
#[derive(Debug)]
pub struct FlightFollower(OutcomeReceiver);

/// The result of joining the flight of a token.
#[derive(Debug)]
pub enum FlightRole {
    /// The token was refused a moment ago.
    Refused,
    Follow(FlightFollower),
    Lead(FlightLeader, FlightFollower),
}

impl TokenIntrospection {
    /// Joins the flight about a token, or starts one.
    pub fn join(self: &Arc<Self>, digest: TokenDigest) -> FlightRole {
        if let Some(until) = self.refused.get(&digest).map(|until| *until) {
            if !until.has_passed() {
                return FlightRole::Refused;
            }
            self.refused.remove(&digest);
        }
        match self.flights.entry(digest) {
            Entry::Occupied(flight) => FlightRole::Follow(FlightFollower(flight.get().clone())),
            Entry::Vacant(flight) => {
                let (outcome, receiver) = watch::channel(None);
                flight.insert(receiver.clone());
                let leader = FlightLeader {
                    digest,
                    introspection: Arc::clone(self),
                    outcome,
                };
                FlightRole::Lead(leader, FlightFollower(receiver))
            }
        }
    }

    /// Forgets refusals that have expired.
    pub fn sweep(&self) {
        self.refused.retain(|_, until| !until.has_passed());
    }
}

impl FlightLeader {
    pub fn digest(&self) -> &TokenDigest {
        &self.digest
    }

    pub fn complete(self, outcome: IntrospectionOutcome) {
        let refused = &self.introspection.refused;
        if matches!(outcome, IntrospectionOutcome::Refused) && refused.len() < MAX_REFUSALS {
            refused.insert(self.digest, Deadline::after(REFUSAL_LIFETIME));
        }
        self.outcome.send_replace(Some(outcome));
    }
}

impl Drop for FlightLeader {
    /// Completed or abandoned: the next request starts a new flight.
    fn drop(&mut self) {
        self.introspection.flights.remove(&self.digest);
    }
}

impl FlightFollower {
    /// The grant of the token; None: the upstream refuses the token.
    pub(super) async fn outcome(mut self) -> Result<Option<Grant>, Rejection> {
        let outcome = self.0.wait_for(Option::is_some).await;
        let outcome = outcome.ok().and_then(|outcome| outcome.clone());
        outcome
            .unwrap_or(IntrospectionOutcome::Unavailable)
            .into_grant()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn concurrent_requests_with_one_token_share_one_flight() {
        let introspection = Arc::new(TokenIntrospection::default());
        let digest = TokenDigest::of("token");
        let FlightRole::Lead(leader, first) = introspection.join(digest) else {
            panic!("the first request leads");
        };
        let FlightRole::Follow(second) = introspection.join(digest) else {
            panic!("the second request follows");
        };
        leader.complete(IntrospectionOutcome::Refused);
        assert!(matches!(first.outcome().await, Ok(None)));
        assert!(matches!(second.outcome().await, Ok(None)));
        assert!(
            matches!(introspection.join(digest), FlightRole::Refused),
            "the refusal is remembered"
        );
    }

    #[tokio::test]
    async fn an_abandoned_flight_frees_its_followers_and_may_be_started_again() {
        let introspection = Arc::new(TokenIntrospection::default());
        let digest = TokenDigest::of("token");
        let FlightRole::Lead(leader, follower) = introspection.join(digest) else {
            panic!("the first request leads");
        };
        drop(leader);
        let outcome = follower.outcome().await;
        assert!(matches!(outcome, Err(Rejection::CannotAsk)));
        let again = introspection.join(digest);
        assert!(matches!(again, FlightRole::Lead(..)));
    }
}
