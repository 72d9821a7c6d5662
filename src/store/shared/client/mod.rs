//! The client side of the Redis protocol: finding and connecting to the server (`endpoint`,
//! `resolver`), running scripts and reading their replies (`script`, `reply`), classifying errors
//! (`server_error`), and watching the eviction policy (`eviction`). Start reading at
//! `endpoint::connect`.

pub(super) mod endpoint;
pub(super) mod eviction;
pub(super) mod reconnect;
pub(super) mod redis_keys;
pub(super) mod reply;
pub(super) mod resolver;
pub(super) mod script;
pub(super) mod server_error;
