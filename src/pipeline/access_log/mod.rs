//! TODO

pub(super) mod entry;
pub(super) mod line;
