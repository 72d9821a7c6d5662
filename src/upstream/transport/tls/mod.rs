//! TODO

pub(in crate::upstream) mod certificate;
pub(in crate::upstream) mod handshake;
pub(in crate::upstream) mod trust;
