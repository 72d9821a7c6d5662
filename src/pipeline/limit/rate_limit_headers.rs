//! What a limit tells the client.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::buckets::BucketSet;
use crate::pipeline::access_log::line::digits;

const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// A request may go on.
#[derive(Clone, Debug, Default)]
pub struct RateAdmission {
    /// Of the tightest policy; None where no policy applied.
    pub facts: Option<RateLimitHeaders>,
}

impl RateAdmission {
    /// Tells the client what is left.
    pub(in crate::pipeline) fn put(&self, headers: &mut HeaderMap) {
        if let Some(facts) = &self.facts {
            facts.put(headers);
        }
    }
}

/// A request may not go on: a bucket is empty.
#[derive(Clone, Debug, thiserror::Error)]
#[error("limit {policy} is reached")]
pub struct TooMany {
    /// Whole seconds, at least one.
    pub retry_after: Duration,
    pub policy: Arc<str>,
    pub facts: RateLimitHeaders,
}

/// One bucket, as the `RateLimit` fields of the IETF draft describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitHeaders {
    pub policy: Arc<str>,
    /// None: no header can carry the policy's name.
    pub(super) advert: Option<Arc<PolicyHeader>>,
    /// Requests at once into a full bucket.
    pub quota: u32,
    /// Seconds in which an empty bucket fills.
    pub window: u64,
    pub remaining: u32,
    /// Seconds until the bucket is full; of an empty one, until the next request.
    pub reset: u64,
}

impl TooMany {
    pub(super) fn new(buckets: &BucketSet, wait: Duration) -> Self {
        let seconds = ceil_seconds(wait).max(1);
        Self {
            retry_after: Duration::from_secs(seconds),
            policy: Arc::clone(buckets.name_shared()),
            facts: RateLimitHeaders {
                reset: seconds,
                ..buckets.facts(0)
            },
        }
    }
}

/// What does not change from one request to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PolicyHeader {
    /// `RateLimit-Policy`, whole.
    policy: HeaderValue,
    /// `RateLimit`, up to its numbers.
    begin: Vec<u8>,
}

impl PolicyHeader {
    pub(super) fn new(name: &str, quota: u32, window: u64) -> Option<Arc<Self>> {
        let name = name.replace('\\', "\\\\").replace('"', "\\\"");
        let policy = HeaderValue::try_from(format!("\"{name}\";q={quota};w={window}")).ok()?;
        let begin = format!("\"{name}\";r=").into_bytes();
        Some(Arc::new(Self { policy, begin }))
    }
}

impl RateLimitHeaders {
    /// Sets `RateLimit-Policy` and `RateLimit`.
    pub fn put(&self, headers: &mut HeaderMap) {
        // A policy whose name no header can carry is simply not advertised.
        let Some(advert) = &self.advert else { return };
        let mut state = Vec::with_capacity(advert.begin.len() + 32);
        state.extend_from_slice(&advert.begin);
        digits(&mut state, self.remaining.into());
        state.extend_from_slice(b";t=");
        digits(&mut state, self.reset);
        if let Ok(mut state) = HeaderValue::from_bytes(&state) {
            // As with the request's id: not worth a place in HTTP/2's table of fields.
            state.set_sensitive(true);
            headers.insert(RATELIMIT_POLICY, advert.policy.clone());
            headers.insert(RATELIMIT, state);
        }
    }
}

pub(super) fn ceil_seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}
