//! Tollgate: an authenticating reverse proxy for services where one logs in with
//! a password and gets a token that expires.

pub mod clock;
pub mod config;
pub mod lifecycle;
pub mod metrics;
pub mod pipeline;
pub mod secret;
pub mod webapp;
