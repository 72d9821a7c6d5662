//! The shared store for the `check` command: its settings alone, or one connection that changes
//! nothing.

use super::SharedOpenError;
use super::client::endpoint;
use super::client::eviction::{EvictionFound, ask_all, timing};
use super::client::redis_keys::RedisKeys;
use super::client::resolver::RedisResolver;
use crate::config;

/// Reads the passwords and CA certificates and creates clients from them, without connecting.
pub fn check_settings(settings: &config::SharedStoreConfig) -> Result<(), SharedOpenError> {
    endpoint::check(settings).map_err(|error| SharedOpenError::new(settings, error.describe()))
}

/// Connects as a start would, and asks the servers whether they evict keys: the server in use, or
/// each master of a cluster, any of which may get the gateways' data.
pub async fn reach(settings: &config::SharedStoreConfig) -> Result<EvictionFound, SharedOpenError> {
    let timing = timing(settings, &RedisResolver::default());
    let wrong = |error: endpoint::EndpointError| SharedOpenError::new(settings, error.describe());
    let connected = endpoint::connect(settings, &RedisKeys::new(&settings.prefix), &timing).await;
    let (_, mut connection) = connected.map_err(wrong)?;
    let found = ask_all(settings, &mut connection, &timing).await;
    found.map_err(|error| wrong(error.into()))
}
