//! What an error of the server means for the connection, and how it is told.

use std::sync::Arc;

use redis::{RedisError, ServerErrorKind};

/// Of an error of the server, in characters.
const LONGEST_WORDS: usize = 300;

/// Whether another server may do better, or the same one after a new connection.
pub(in crate::store::shared) fn is_elsewhere(error: &RedisError) -> bool {
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

/// An error in words that may be shown: nothing of ours is in it but the address, and of
/// the server's own words not more than a line.
pub(in crate::store::shared) fn told(error: &RedisError) -> Arc<str> {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let words = error.to_string();
    let words = words.chars().filter(|char| !char.is_control());
    words.take(LONGEST_WORDS).collect::<String>().into()
}
