//! The API keys in memory, and how a stored record becomes one.

use std::sync::Arc;

use http::Method;
use tracing::warn;

use super::KeySet;
use crate::config::{ApiKey, PathPattern, parse_quota};
use crate::store::KeyRecord;

/// The keys that were made at run time, and the set that finds them by digest.
#[derive(Debug, Default)]
pub(super) struct RingState {
    pub(super) all: Vec<ApiKey>,
    pub(super) keys: KeySet,
}

/// The key that a record describes. None: the record has a form that this version does not
/// know. Such a key authenticates no request, rather than more requests than it was made for.
pub(super) fn api_key(record: KeyRecord) -> Option<ApiKey> {
    let paths = record
        .paths
        .iter()
        .map(|text| PathPattern::parse(text).ok());
    let methods = record.methods.iter();
    let methods = methods.map(|text| Method::from_bytes(text.as_bytes()).ok());
    // An unknown form of limit must not become "no limit".
    let limit = match &record.limit {
        Some(text) => parse_quota(text).map(Some),
        None => Some(None),
    };
    let (Some(paths), Some(methods), Some(limit)) = (paths.collect(), methods.collect(), limit)
    else {
        warn!(key = %record.name, "an API key in the store has an unknown form; requests with \
             it are refused");
        return None;
    };
    Some(ApiKey {
        name: record.name,
        digests: vec![record.digest.0],
        expires: record.expires,
        role: record.role,
        paths,
        upstreams: record.upstreams.into_iter().map(Arc::from).collect(),
        methods,
        limit,
    })
}
