//! The shared store as `check` sees it: its settings alone, or one connection that changes
//! nothing.

use super::SharedOpenError;
use super::client::endpoint;
use super::client::eviction::{EvictionFound, ask_all, timing};
use super::client::redis_keys::RedisKeys;
use super::client::resolver::RedisResolver;
use crate::config;

/// Reads passwords and authorities and makes clients of them; connects to nothing.
pub fn check_settings(settings: &config::SharedStoreConfig) -> Result<(), SharedOpenError> {
    endpoint::check(settings).map_err(|error| SharedOpenError::new(settings, error.words()))
}

/// Connects as a start would, and asks every server that has, or may come to have, the gates'
/// data whether it evicts keys: the server in use, or each master of a cluster.
pub async fn reach(settings: &config::SharedStoreConfig) -> Result<EvictionFound, SharedOpenError> {
    let timing = timing(settings, &RedisResolver::default());
    let wrong = |error: endpoint::EndpointError| SharedOpenError::new(settings, error.words());
    let connected = endpoint::connect(settings, &RedisKeys::new(&settings.prefix), &timing).await;
    let (_, mut connection) = connected.map_err(wrong)?;
    let found = ask_all(settings, &mut connection, &timing).await;
    found.map_err(|error| wrong(error.into()))
}
