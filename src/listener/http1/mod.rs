//! HTTP/1 besides hyper: the strict framing check of incoming bytes (`framing_guard`), and
//! responses to requests whose head hyper never sees (`refusal`).

pub(super) mod framing_guard;
pub(super) mod refusal;
