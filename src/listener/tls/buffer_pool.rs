//! A pool of buffers for the TLS connections of one worker. Many connections are open, but few of
//! them transfer bytes at the same time.

use parking_lot::Mutex;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// The largest plaintext of one TLS record.
pub(super) const RECORD: usize = 16 * 1024;
/// Upper bound of the bytes that a record adds to its plaintext.
pub(super) const OVERHEAD: usize = 256;
/// Size of a buffer: four records to be sent, and the plaintext of the next one. A connection whose
/// client does not read its response holds one buffer.
pub(super) const SIZE: usize = 4 * (RECORD + OVERHEAD) + RECORD;
/// Most unused buffers in the pool. More are in use at once only while clients do not read.
const SPARE: usize = 8;

/// The unused buffers of one worker.
#[derive(Debug, Default)]
pub(in crate::listener) struct BufferPool {
    spare: Mutex<Vec<Box<[u8]>>>,
}

/// A `SIZE`-byte buffer borrowed from the worker's pool; returned to it on drop.
#[derive(Debug)]
pub(super) struct PooledBuffer {
    bytes: Box<[u8]>,
    pool: Arc<BufferPool>,
}

impl BufferPool {
    pub(super) fn acquire(self: &Arc<Self>) -> PooledBuffer {
        let spare = self.spare.lock().pop();
        PooledBuffer {
            bytes: spare.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()),
            pool: Arc::clone(self),
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
        let mut spare = self.pool.spare.lock();
        if spare.len() < SPARE {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_reused_and_the_pool_is_bounded() {
        let buffers = Arc::new(BufferPool::default());
        let first = buffers.acquire();
        let address = first.as_ptr();
        drop(first);
        assert_eq!(buffers.acquire().as_ptr(), address);
        let many: Vec<_> = (0..SPARE + 5).map(|_| buffers.acquire()).collect();
        drop(many);
        assert_eq!(buffers.spare.lock().len(), SPARE);
    }
}
