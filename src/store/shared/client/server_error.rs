//! Classifies errors of the server, and describes them.

use std::sync::Arc;

use redis::{RedisError, ServerErrorKind};

/// Maximum length of the server's message, in characters.
const MAX_MESSAGE: usize = 300;

/// Whether another server, or a new connection to the same one, may succeed.
pub(in crate::store::shared) fn needs_reconnect(error: &RedisError) -> bool {
    let moved = matches!(
        error.kind(),
        redis::ErrorKind::Server(
            ServerErrorKind::ReadOnly
                | ServerErrorKind::Moved
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::BusyLoading
        ) | redis::ErrorKind::UnexpectedReturnType
            | redis::ErrorKind::Parse
    );
    moved || (error.is_io_error() && !error.is_timeout()) || error.is_connection_dropped()
}

/// The error as one short line. Of the gateway's own data it contains the address only.
pub(in crate::store::shared) fn describe(error: &RedisError) -> Arc<str> {
    if error.is_timeout() {
        return "no reply in time".into();
    }
    let message = error.to_string();
    let printable = message.chars().filter(|char| !char.is_control());
    printable.take(MAX_MESSAGE).collect::<String>().into()
}
