//! TODO

pub(super) mod endpoint;
pub(super) mod eviction;
pub(super) mod reconnect;
pub(super) mod redis_keys;
pub(super) mod reply;
pub(super) mod resolver;
pub(super) mod script;
pub(super) mod server_error;
