//! A hasher for maps whose keys are digests or keyed hashes already: it uses the bits of the key.
//! Only for keys that cannot be chosen from outside.

use std::hash::{BuildHasherDefault, Hasher};

/// Returns the hashed number unchanged.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdentityHasher(u64);

pub type BuildIdentityHasher = BuildHasherDefault<IdentityHasher>;

impl Hasher for IdentityHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Digests use `write_u64`; this is correct for other keys, but slower.
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
