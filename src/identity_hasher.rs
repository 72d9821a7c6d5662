//! A hasher for keys that are hashes already: digests, and keyed hashes. It passes the key's
//! own bits through. Only for keys that a client cannot choose.

use std::hash::{BuildHasherDefault, Hasher};

/// Returns the `u64` that it was given.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdentityHasher(u64);

pub type BuildIdentityHasher = BuildHasherDefault<IdentityHasher>;

impl Hasher for IdentityHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Such keys are hashed by `write_u64`; other keys give a correct hash, only slower.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
