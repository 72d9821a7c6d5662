//! HTTP/1.1 towards the upstream, without a task and without a channel: the request, and then its
//! response body, hold the connection and poll it. Start at `connection`.
//!
//! ```text
//!            begin            head of the response         end of the body
//!   Idle ------------> Head ----------------------> Body ------------------> Ended
//!    ^                  |  1xx: stays here            |                        |
//!    |                  | error, timeout, dropped     | error, dropped         | request sent to its end,
//!    |                  v                             v                        | not the last response,
//!    |               closed                        closed                      | nothing after the body
//!    +-------------------------------------------------------------------------+
//! ```
//!
//! The request is sent (`request_sender`) in the states Head and Body, together with the reads, so that
//! a response which comes early is seen although the upstream no longer reads. `response_head` parses,
//! `super::framing` decides where the body ends, `body_decoder` cuts it from the bytes received.

mod body_decoder;
pub(in crate::upstream) mod connection;
#[cfg(any(test, fuzzing))]
pub(in crate::upstream) mod memory_reader;
mod request_sender;
pub(in crate::upstream) mod response_head;
#[cfg(test)]
mod tests;
