//! TODO

pub(super) mod authenticate;
pub(super) mod credential;
pub(super) mod forward;
pub(super) mod inject;
pub(super) mod introspect;
pub(super) mod options;
pub(super) mod refused_lease;
pub(super) mod request_target;
pub(super) mod respond;
pub(super) mod response_begin;
pub(super) mod route;
