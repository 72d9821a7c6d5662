//! A gate as an operator runs it, an upstream that costs nothing, and plain clients.

pub(crate) mod flow;
pub(crate) mod gate;
pub(crate) mod streams;
pub(crate) mod webapp;
pub(crate) mod wire;
