//! Connections to one server: `dialer.rs` opens them, `http1/` drives one, `pool.rs` keeps the idle ones of
//! one worker. `../connections` uses them to send requests.

pub(super) mod address_book;
pub(super) mod address_memory;
pub(super) mod connect_proxy;
pub(super) mod dial_error;
pub(super) mod dialer;
pub(super) mod framing;
pub(super) mod http1;
pub(super) mod http2;
pub(super) mod in_flight_count;
pub(super) mod keep_alive;
pub(super) mod outbound_request;
pub(super) mod pool;
pub(super) mod proxy_credentials;
pub(super) mod response_body;
pub(super) mod response_error;
pub(super) mod retire_flag;
pub(super) mod send_error;
pub(super) mod tcp_dialer;
pub(super) mod tls;
pub(super) mod tracked_stream;
pub(super) mod unix_dialer;
