//! Which paths have accepted which token: a small table of atomics that requests write rarely, and
//! without a lock.

use crate::sync::{AtomicU64, Ordering};

/// Low bits of a slot: the generation. The other bits tell paths of one slot apart.
const GENERATION_BITS: u32 = 24;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;

/// Method and path of a request, hashed; the query is not part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PathKey(pub u64);

/// For each path the last generation that it accepted. Two paths with the same slot overwrite each
/// other; the overwritten one counts as never accepted.
#[derive(Debug)]
pub(crate) struct AcceptedPaths {
    slots: Box<[AtomicU64]>,
}

impl AcceptedPaths {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots: (0..slots.max(1)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Records that `path` accepted `generation`; true if that was not recorded yet.
    pub(crate) fn note(&self, path: PathKey, generation: u64) -> bool {
        let (slot, value) = (self.slot(path), packed(path, generation));
        let is_news = slot.load(Ordering::Relaxed) != value;
        if is_news {
            slot.store(value, Ordering::Relaxed);
        }
        is_news
    }

    /// Whether `path` has ever accepted a token of this session.
    pub(crate) fn knows(&self, path: PathKey) -> bool {
        let known = self.slot(path).load(Ordering::Relaxed);
        known != 0 && is_same_path(known, path)
    }

    /// The path refused a token: its next acceptance counts as new.
    pub(crate) fn reopen(&self, path: PathKey) {
        let slot = self.slot(path);
        let known = slot.load(Ordering::Relaxed);
        if is_same_path(known, path) && known & GENERATION_MASK != 0 {
            // A path whose own bits are all 0 becomes an unknown one, which is harmless.
            slot.store(packed(path, 0), Ordering::Relaxed);
        }
    }

    fn slot(&self, path: PathKey) -> &AtomicU64 {
        let index = path.0 % self.slots.len() as u64;
        &self.slots[usize::try_from(index).unwrap_or_default()]
    }
}

fn is_same_path(slot: u64, path: PathKey) -> bool {
    slot >> GENERATION_BITS == path.0 >> GENERATION_BITS
}

/// Never 0 for an assigned generation: those begin with 1.
fn packed(path: PathKey, generation: u64) -> u64 {
    (path.0 & !GENERATION_MASK) | (generation & GENERATION_MASK)
}
