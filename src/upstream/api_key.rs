//! The upstream's API key: what monitoring nodes carry in place of the session's lease.

use std::time::Duration;

use http::header::AUTHORIZATION;

use super::description::Injection;
use super::lease::Lease;
use crate::clock::Deadline;
use crate::secret::{self, SecretSource};
use crate::webapp;

/// An API key ends when the operator changes it, not by time.
const NO_END: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Why a text is no API key.
#[derive(Debug, thiserror::Error)]
pub enum BadApiKey {
    #[error("the key cannot be read")]
    Unreadable(#[source] secret::Error),
    #[error("a key has 12 to 128 characters, this one {length}")]
    Length { length: usize },
    #[error("the key cannot be sent in a header")]
    NotText,
}

pub(super) fn read_api_key(source: &SecretSource) -> Result<Lease, BadApiKey> {
    let key = source.read().map_err(BadApiKey::Unreadable)?;
    let length = key.expose().chars().count();
    if !webapp::API_KEY_LENGTH.contains(&length) {
        return Err(BadApiKey::Length { length });
    }
    let injection = Injection {
        header: AUTHORIZATION,
        template: "Apikey {token}".to_owned(),
    };
    let header = injection.header(&key).map_err(|_| BadApiKey::NotText)?;
    Ok(Lease::new(0, Deadline::after(NO_END), vec![header], key))
}
