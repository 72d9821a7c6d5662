//! Which paths the upstream has answered with which token: a small table of atomics that
//! the request path writes to without a lock, and seldom.

use crate::sync::{AtomicU64, Ordering};

/// Low bits of a slot: the generation. The other bits tell paths of one slot apart.
const GENERATION_BITS: u32 = 24;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;

/// Method and path of a request, hashed; the query is not part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PathKey(pub u64);

/// For each path the generation it was accepted with last. Two paths that share a slot
/// overwrite each other: the one that was overwritten counts as one that was never asked.
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

    /// Notes that `path` was answered with `generation`; true when that is news.
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

    /// The path refused a token: what it accepts next is news again.
    pub(crate) fn reopen(&self, path: PathKey) {
        let slot = self.slot(path);
        let known = slot.load(Ordering::Relaxed);
        if is_same_path(known, path) && known & GENERATION_MASK != 0 {
            // A path whose own bits are all 0 becomes an unknown one; no harm is in that.
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

/// Never 0 for a generation that was given out: those begin with 1.
fn packed(path: PathKey, generation: u64) -> u64 {
    (path.0 & !GENERATION_MASK) | (generation & GENERATION_MASK)
}
