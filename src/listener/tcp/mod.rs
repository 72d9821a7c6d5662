//! TODO

pub(super) mod accept;
pub(super) mod bound;
pub(super) mod connection_limit;
