//! The `RateLimit` header fields, and the refusal of a request by a limit.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The admission of a request by all limits.
#[derive(Clone, Debug, Default)]
pub struct RateAdmission {
    /// Of the tightest limit; None if no limit applied.
    pub headers: Option<RateLimitHeaders>,
}

impl RateAdmission {
    /// Adds the fields of the tightest limit.
    pub(in crate::pipeline) fn put(&self, fields: &mut HeaderMap) {
        if let Some(headers) = &self.headers {
            headers.put(fields);
        }
    }
}

/// The refusal of a request: a bucket is empty.
#[derive(Clone, Debug, thiserror::Error)]
#[error("limit {policy} is reached")]
pub struct TooMany {
    /// Whole seconds, at least one.
    pub retry_after: Duration,
    pub policy: Arc<str>,
    pub headers: RateLimitHeaders,
}

/// The state of one bucket, for the `RateLimit` fields of the IETF draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitHeaders {
    pub policy: Arc<str>,
    /// None: no header can carry the policy's name.
    pub(super) policy_headers: Option<Arc<PolicyHeaders>>,
    /// Permits in a full bucket.
    pub quota: u32,
    /// Seconds in which an empty bucket fills.
    pub window: u64,
    pub remaining: u32,
    /// Seconds until the bucket is full; of an empty one, until the next request.
    pub reset: u64,
}

/// The parts of the fields that are the same for every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PolicyHeaders {
    /// Value of `RateLimit-Policy`.
    policy: HeaderValue,
    /// Value of `RateLimit`, up to its numbers.
    prefix: Vec<u8>,
}

impl PolicyHeaders {
    pub(super) fn new(name: &str, quota: u32, window: u64) -> Option<Arc<Self>> {
        let name = name.replace('\\', "\\\\").replace('"', "\\\"");
        let policy = HeaderValue::try_from(format!("\"{name}\";q={quota};w={window}")).ok()?;
        let prefix = format!("\"{name}\";r=").into_bytes();
        Some(Arc::new(Self { policy, prefix }))
    }
}

impl RateLimitHeaders {
    /// Sets `RateLimit-Policy` and `RateLimit`.
    pub fn put(&self, headers: &mut HeaderMap) {
        let Some(policy) = &self.policy_headers else {
            return;
        };
        let mut state = Vec::with_capacity(policy.prefix.len() + 32);
        state.extend_from_slice(&policy.prefix);
        let mut digits = itoa::Buffer::new();
        state.extend_from_slice(digits.format(self.remaining).as_bytes());
        state.extend_from_slice(b";t=");
        state.extend_from_slice(digits.format(self.reset).as_bytes());
        if let Ok(mut state) = HeaderValue::from_bytes(&state) {
            // Changes with each response: kept out of HTTP/2's dynamic table.
            state.set_sensitive(true);
            headers.insert(RATELIMIT_POLICY, policy.policy.clone());
            headers.insert(RATELIMIT, state);
        }
    }
}

pub(super) fn ceil_seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}
