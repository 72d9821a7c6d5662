//! Asks the upstream whether it takes a token: a small GET of a path that only a good token
//! opens. What the probe says counts only after it has refused a token made up at random.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::description::Injection;
use super::own_requests::OwnRequests;
use super::sync::lock;
use crate::causes::chain;
use crate::secret::Secret;

/// How long a proof that the probe refuses bad tokens is good for.
const TRUSTED_FOR: Duration = Duration::from_secs(600);
/// How soon a probe that passes anything is tried again.
const DISTRUSTED_FOR: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(10);

/// What the probe says of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeWord {
    Accepted,
    Refused,
    /// It could not be asked, answered neither yes nor no, or passes anything.
    Unclear,
}

#[derive(Clone, Copy, Debug)]
struct Trust {
    refuses_bad_tokens: bool,
    until: Instant,
}

/// The probe of one upstream.
#[derive(Debug)]
pub(super) struct TokenProbe {
    upstream: Arc<str>,
    own: Arc<OwnRequests>,
    path: PathAndQuery,
    injection: Injection,
    trust: Mutex<Option<Trust>>,
}

impl TokenProbe {
    pub(super) fn new(
        upstream: &Arc<str>,
        own: &Arc<OwnRequests>,
        path: PathAndQuery,
        injection: Injection,
    ) -> Self {
        Self {
            upstream: Arc::clone(upstream),
            own: Arc::clone(own),
            path,
            injection,
            trust: Mutex::new(None),
        }
    }

    /// What the upstream says to a request with these headers.
    pub(super) async fn ask(&self, headers: &[(HeaderName, HeaderValue)]) -> ProbeWord {
        if !self.refuses_bad_tokens().await {
            return ProbeWord::Unclear;
        }
        match self.status(headers).await {
            Some(StatusCode::UNAUTHORIZED) => ProbeWord::Refused,
            Some(status) if status.is_success() => ProbeWord::Accepted,
            _ => ProbeWord::Unclear,
        }
    }

    /// Whether the probe tells good tokens from bad ones: one made up must be refused.
    pub(super) async fn refuses_bad_tokens(&self) -> bool {
        let known = *lock(&self.trust);
        if let Some(known) = known.filter(|known| Instant::now() < known.until) {
            return known.refuses_bad_tokens;
        }
        let made_up = Secret::new(format!("{:032x}", rand::random::<u128>()));
        let Ok(header) = self.injection.header(&made_up) else {
            return false;
        };
        let refuses_bad_tokens = match self.status(&[header]).await {
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => true,
            Some(status) if status.is_success() => {
                if known.is_none_or(|known| known.refuses_bad_tokens) {
                    warn!(upstream = %self.upstream, probe = %self.path,
                        "the probe accepts a token that was made up: it proves nothing and is \
                         not used; set upstream.probe to a path that only a good token opens");
                }
                false
            }
            _ => return false,
        };
        let lasts = match refuses_bad_tokens {
            true => TRUSTED_FOR,
            false => DISTRUSTED_FOR,
        };
        *lock(&self.trust) = Some(Trust {
            refuses_bad_tokens,
            until: Instant::now() + lasts,
        });
        refuses_bad_tokens
    }

    async fn status(&self, headers: &[(HeaderName, HeaderValue)]) -> Option<StatusCode> {
        let mut request = self.own.get(self.path.clone().into());
        request.headers_mut().extend(headers.iter().cloned());
        let dial_by = Instant::now() + LONGEST;
        let read = async |answer: http::Response<_>| answer.status();
        let call = self.own.call(request, Some(dial_by), LONGEST, read);
        match call.await {
            Ok(status) => Some(status),
            Err(error) => {
                debug!(upstream = %self.upstream, error = %chain(&error), "the probe failed");
                None
            }
        }
    }
}
