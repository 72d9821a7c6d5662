//! TODO

pub(super) mod coalescing;
pub(super) mod continues;
pub(super) mod flood_guard;
pub(super) mod stream_executor;
