//! Which paths have accepted which token: a small table of atomics that requests write rarely, and
//! without a lock.

use std::sync::OnceLock;

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
    /// Made for the first acceptance: an upstream that gets no requests needs none.
    slots: OnceLock<Box<[AtomicU64]>>,
    count: usize,
}

impl AcceptedPaths {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots: OnceLock::new(),
            count: slots.max(1),
        }
    }

    /// Records that `path` accepted `generation`; true if that was not recorded yet.
    pub(crate) fn note(&self, path: PathKey, generation: u64) -> bool {
        let slots = self.slots.get_or_init(|| self.empty());
        let (slot, value) = (slot(slots, path), packed(path, generation));
        let is_news = slot.load(Ordering::Relaxed) != value;
        if is_news {
            slot.store(value, Ordering::Relaxed);
        }
        is_news
    }

    /// Whether `path` has ever accepted a token of this session.
    pub(crate) fn knows(&self, path: PathKey) -> bool {
        let Some(slots) = self.slots.get() else {
            return false;
        };
        let known = slot(slots, path).load(Ordering::Relaxed);
        known != 0 && is_same_path(known, path)
    }

    /// The path refused a token: its next acceptance counts as new.
    pub(crate) fn reopen(&self, path: PathKey) {
        let Some(slots) = self.slots.get() else {
            return;
        };
        let slot = slot(slots, path);
        let known = slot.load(Ordering::Relaxed);
        if is_same_path(known, path) && known & GENERATION_MASK != 0 {
            // A path whose own bits are all 0 becomes an unknown one, which is harmless.
            slot.store(packed(path, 0), Ordering::Relaxed);
        }
    }

    #[cold]
    fn empty(&self) -> Box<[AtomicU64]> {
        (0..self.count).map(|_| AtomicU64::new(0)).collect()
    }
}

fn slot(slots: &[AtomicU64], path: PathKey) -> &AtomicU64 {
    let index = path.0 % slots.len() as u64;
    &slots[usize::try_from(index).unwrap_or_default()]
}

fn is_same_path(slot: u64, path: PathKey) -> bool {
    slot >> GENERATION_BITS == path.0 >> GENERATION_BITS
}

/// Never 0 for an assigned generation: those begin with 1.
fn packed(path: PathKey, generation: u64) -> u64 {
    (path.0 & !GENERATION_MASK) | (generation & GENERATION_MASK)
}
