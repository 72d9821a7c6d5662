//! Has the file fetched from the disk in the order in which it lies there, before it is
//! read along its tree, which comes to every part of it many times.

use std::path::Path;

/// Returns when most of the file is in the kernel's memory; tells `each` time how many bytes
/// that is. A file that cannot be fetched is read all the same, only slower.
#[cfg(target_os = "linux")]
pub(super) fn fetch(path: &Path, mut each: impl FnMut(u64)) {
    use std::fs::File;
    use std::num::NonZeroU64;

    use rustix::fs::{Advice, fadvise};

    const PIECE: u64 = 16 * 1024 * 1024;
    let Ok(file) = File::open(path) else { return };
    let length = file.metadata().map_or(0, |facts| facts.len());
    for place in (0..length).step_by(PIECE as usize) {
        if fadvise(&file, place, NonZeroU64::new(PIECE), Advice::WillNeed).is_err() {
            return;
        }
        each(place);
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn fetch(_: &Path, _: impl FnMut(u64)) {}
