//! A gate as an operator runs it, a Webapp that costs nothing, and plain clients.

pub(crate) mod flow;
pub(crate) mod gate;
pub(crate) mod streams;
pub(crate) mod webapp;
pub(crate) mod wire;
