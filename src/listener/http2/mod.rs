//! HTTP/2 besides hyper: a budget for control frames (`flood_guard`), 100 (Continue)
//! (`continues`), write coalescing (`coalescing`) and the executor of a connection's streams
//! (`stream_executor`). `connection/protocols.rs` puts them together.

pub(super) mod coalescing;
pub(super) mod continues;
pub(super) mod flood_guard;
pub(super) mod stream_executor;
