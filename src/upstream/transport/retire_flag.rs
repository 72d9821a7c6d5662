//! Ends the use of connections that were made with something that has been replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Shared by all connections that were made with the same certificates, or to the same socket file. Once
/// set, each is closed when it is idle, and none is used for another request.
#[derive(Clone, Debug, Default)]
pub(in crate::upstream) struct RetireFlag(Arc<AtomicBool>);

impl RetireFlag {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(in crate::upstream) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
