//! The login at the upstream. Start at `session.rs`, the lease that requests carry, and `renewer.rs`,
//! the one task that logs in. `judgement/` decides what a refused token means; docs/LOGIN.md has the
//! rules.

pub(super) mod call;
pub(super) mod description;
pub(super) mod judgement;
pub(super) mod lease;
pub(super) mod lease_store;
mod login_attempt;
pub(super) mod login_budget;
pub(super) mod login_identity;
pub(super) mod login_slots;
pub(super) mod plan;
pub(super) mod proof;
pub(super) mod renewer;
pub(super) mod session;
pub(super) mod session_control;
pub(super) mod session_reading;
pub(super) mod shared_login;
mod shared_renewal;
pub(super) mod status;
pub(super) mod task;
pub(super) mod token_probe;
