//! What a limit tells the client.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::buckets::Buckets;

/// A request may go on.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Of the tightest policy; None where no policy applied.
    pub facts: Option<RateFacts>,
}

/// A request may not go on: a bucket is empty.
#[derive(Clone, Debug, thiserror::Error)]
#[error("limit {policy} is reached")]
pub struct TooMany {
    /// Whole seconds, at least one.
    pub retry_after: Duration,
    pub policy: Arc<str>,
    pub facts: RateFacts,
}

/// One bucket, as the `RateLimit` fields of the IETF draft describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateFacts {
    pub policy: Arc<str>,
    /// Requests at once into a full bucket.
    pub quota: u32,
    /// Seconds in which an empty bucket fills.
    pub window: u64,
    pub remaining: u32,
    /// Seconds until the bucket is full; of an empty one, until the next request.
    pub reset: u64,
}

impl TooMany {
    pub(super) fn new(buckets: &Buckets, wait: Duration) -> Self {
        let seconds = ceil_seconds(wait).max(1);
        Self {
            retry_after: Duration::from_secs(seconds),
            policy: Arc::clone(buckets.name_shared()),
            facts: RateFacts {
                reset: seconds,
                ..buckets.facts(0)
            },
        }
    }
}

impl RateFacts {
    /// Sets `RateLimit-Policy` and `RateLimit`.
    pub fn put(&self, headers: &mut HeaderMap) {
        let name = self.policy.replace('\\', "\\\\").replace('"', "\\\"");
        let policy = format!("\"{name}\";q={};w={}", self.quota, self.window);
        let state = format!("\"{name}\";r={};t={}", self.remaining, self.reset);
        // A policy whose name no header can carry is simply not advertised.
        if let (Ok(policy), Ok(state)) =
            (HeaderValue::try_from(policy), HeaderValue::try_from(state))
        {
            headers.insert(HeaderName::from_static("ratelimit-policy"), policy);
            headers.insert(HeaderName::from_static("ratelimit"), state);
        }
    }
}

pub(super) fn ceil_seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}
