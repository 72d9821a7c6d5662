//! The stages of a request, one file each, in the order of work: `route`, `authenticate`, `admit`,
//! then `bound_body`, `inject` and `forward` for the upstream, and `respond` for every outcome. A
//! stage takes the `RequestContext` and fails with a `Rejection`. Start with `Pipeline::handle` in
//! the folder above.

pub(super) mod admit;
pub(super) mod authenticate;
pub(super) mod bound_body;
pub(super) mod credential;
pub(super) mod forward;
pub(super) mod inject;
pub(super) mod introspect;
pub(super) mod lease_choice;
pub(super) mod options;
pub(super) mod refused_lease;
pub(super) mod repeat;
pub(in crate::pipeline) mod request_target;
pub(super) mod respond;
pub(super) mod response_start;
pub(super) mod route;
pub(super) mod token_introspection;
pub(super) mod upstream_exchange;
