//! What the judgement and the queue are made of; their model checks put other parts in
//! here.
pub(super) use parking_lot::{Mutex, MutexGuard};
pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Holders of these locks leave nothing half done, also when they panic.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
