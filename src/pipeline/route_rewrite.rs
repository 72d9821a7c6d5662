//! What a route changes of a request's path and `Host` before it is forwarded.

use std::borrow::Cow;

use http::header::HeaderValue;

use super::headers::ForwardedHeaders;
use crate::config::{PathPrefix, Route};
use crate::upstream::OutboundFields;

/// Where the removed prefix is told to the upstream, as other proxies do.
const X_FORWARDED_PREFIX: &str = "x-forwarded-prefix";

/// The changes of one route.
#[derive(Debug)]
pub(super) struct RouteRewrite {
    prefix: Option<RemovedPrefix>,
    preserve_host: bool,
}

#[derive(Debug)]
struct RemovedPrefix {
    prefix: PathPrefix,
    value: HeaderValue,
}

impl RouteRewrite {
    /// None: the route changes neither.
    pub(super) fn of(route: &Route) -> Option<Self> {
        let prefix = route.strip_prefix.clone().and_then(|prefix| {
            // Never fails: the segments of a pattern are legal in a field.
            let value = HeaderValue::from_str(&prefix.to_string()).ok()?;
            Some(RemovedPrefix { prefix, value })
        });
        let changes = prefix.is_some() || route.preserve_host;
        changes.then_some(Self {
            prefix,
            preserve_host: route.preserve_host,
        })
    }

    /// Path and query as they are forwarded. `target` must match the route.
    pub(super) fn target<'a>(&self, target: &'a str) -> Cow<'a, str> {
        match &self.prefix {
            Some(removed) => removed.prefix.strip(target),
            None => Cow::Borrowed(target),
        }
    }

    /// Sets `Host` and `X-Forwarded-Prefix`. `fields` has the latter only if a trusted proxy sent it.
    pub(super) fn put<'a>(
        &'a self,
        fields: &mut OutboundFields<'a>,
        forwarded: &'a ForwardedHeaders<'_>,
    ) {
        if let Some(host) = forwarded.host().filter(|_| self.preserve_host) {
            fields.push_own("host", Cow::Borrowed(host));
        }
        let Some(removed) = &self.prefix else {
            return;
        };
        let outer = fields.get(X_FORWARDED_PREFIX).map(HeaderValue::as_bytes);
        let whole = outer.map(|outer| {
            let outer = outer.strip_suffix(b"/").unwrap_or(outer);
            HeaderValue::from_bytes(&[outer, removed.value.as_bytes()].concat())
        });
        let value = match whole {
            Some(Ok(whole)) => Cow::Owned(whole),
            _ => Cow::Borrowed(&removed.value),
        };
        fields.set(X_FORWARDED_PREFIX, value);
    }
}
