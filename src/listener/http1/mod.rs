//! TODO

pub(super) mod framing_guard;
pub(super) mod refusal;
