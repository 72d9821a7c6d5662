//! The shared store as `check` sees it: its settings alone, or one connection that changes
//! nothing.

use std::time::Duration;

use redis::AsyncConnectionConfig;

use super::OpenError;
use super::names::Names;
use super::place;
use super::resolver::Resolver;
use crate::config;

/// Reads passwords and authorities and makes clients of them; connects to nothing.
pub fn check_settings(settings: &config::SharedStore) -> Result<(), OpenError> {
    place::check(settings).map_err(|error| OpenError::new(settings, error.words()))
}

/// Connects to the server that takes changes, as a start would, and asks whether it answers.
pub async fn reach(settings: &config::SharedStore) -> Result<(), OpenError> {
    let limit = settings.timeout;
    let timing = AsyncConnectionConfig::new()
        .set_dns_resolver(Resolver::default())
        .set_connection_timeout(Some(limit.max(Duration::from_secs(1))))
        .set_response_timeout(Some(limit));
    let wrong = |error: place::Error| OpenError::new(settings, error.words());
    let connected = place::connect(settings, &Names::new(&settings.prefix), &timing).await;
    let (_, mut connection) = connected.map_err(wrong)?;
    let answer: Result<String, _> = redis::cmd("PING").query_async(&mut connection).await;
    answer.map_err(|error| wrong(error.into()))?;
    // What else has to be true of the server is found out here, on this connection.
    Ok(())
}
