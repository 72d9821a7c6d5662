//! HTTP/2 towards the upstream, over the `h2` crate: it tells which requests the peer has not processed
//! (GOAWAY, REFUSED_STREAM), the peer's current limit of streams, and each stream's flow control, which
//! hyper's client keeps to itself. `connections::http2_connection_set` finds a stream for a
//! request; `exchange` is the request and its response on that stream, `driver` the task of a connection.
//!
//! A connection is shared by requests, so unlike in `super::http1` a task polls it. What is kept in
//! memory for a stream is bounded: `http2_connection::STREAM_WINDOW` of its response, and
//! `http2_connection::SEND_BUFFER` and one piece of its body.

pub(in crate::upstream) mod connection_load;
mod counted_stream;
pub(in crate::upstream) mod driver;
pub(in crate::upstream) mod exchange;
pub(in crate::upstream) mod http2_connection;
pub(in crate::upstream) mod request_head;
mod stream_failure;
mod stream_upload;
