//! One request from start to end; one file per stage.

mod peer;

pub use peer::{Peer, TlsFacts};
