//! Buffers that the connections of one worker lend each other: many connections are
//! held, few move bytes at one time.

use parking_lot::Mutex;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// The largest piece of plain text in one TLS record.
pub(super) const RECORD: usize = 16 * 1024;
/// What a record adds to it, and then some.
pub(super) const OVERHEAD: usize = 256;
/// Four records to be sent, and one that is being put together. A client that takes
/// nothing of its answer holds one of these.
pub(super) const SIZE: usize = 4 * (RECORD + OVERHEAD) + RECORD;
/// Spare ones that are kept. More are lent at one time only while clients take nothing.
const SPARE: usize = 8;

/// The spare buffers of one worker.
#[derive(Debug, Default)]
pub(in crate::listener) struct BufferPool {
    spare: Mutex<Vec<Box<[u8]>>>,
}

/// `SIZE` bytes of anybody's; back with the others when dropped.
#[derive(Debug)]
pub(super) struct PooledBuffer {
    bytes: Box<[u8]>,
    home: Arc<BufferPool>,
}

impl BufferPool {
    pub(super) fn lend(self: &Arc<Self>) -> PooledBuffer {
        let spare = self.spare.lock().pop();
        PooledBuffer {
            bytes: spare.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()),
            home: Arc::clone(self),
        }
    }
}

impl Deref for PooledBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for PooledBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let mut spare = self.home.spare.lock();
        if spare.len() < SPARE {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_few_are_kept() {
        let buffers = Arc::new(BufferPool::default());
        let first = buffers.lend();
        let place = first.as_ptr();
        drop(first);
        assert_eq!(buffers.lend().as_ptr(), place);
        let many: Vec<_> = (0..SPARE + 5).map(|_| buffers.lend()).collect();
        drop(many);
        assert_eq!(buffers.spare.lock().len(), SPARE);
    }
}
