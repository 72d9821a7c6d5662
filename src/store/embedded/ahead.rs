//! Has the file fetched from the disk in the order in which it lies there, before it is
//! read along its tree, which comes to every part of it many times.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::thread;

use rustix::fs::{SeekFrom, seek};

const PIECE: u64 = 1024 * 1024;

/// Whether the file takes no more than so many bytes of the disk.
pub(super) fn is_worth_it(path: &Path, most: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|facts| facts.blocks() * 512 <= most)
}

/// Returns when the file is in the kernel's memory. `each` is told how many bytes more, and
/// says whether to go on. A file that cannot be fetched is read all the same, only slower.
pub(super) fn fetch(path: &Path, threads: u64, each: impl Fn(u64) -> bool + Sync) {
    let Ok(file) = File::open(path) else { return };
    // Up to where something was written: the engine allots the end in advance.
    let written = seek(&file, SeekFrom::Hole(0)).ok();
    let length = written.unwrap_or_else(|| file.metadata().map_or(0, |facts| facts.len()));
    let share = length.div_ceil(threads).next_multiple_of(PIECE);
    let fetch = |number: u64| {
        let mut piece = vec![0; PIECE as usize];
        let (mut place, end) = (number * share, length.min((number + 1) * share));
        while place < end {
            let count = file.read_at(&mut piece, place).unwrap_or(0) as u64;
            if count == 0 || !each(count) {
                return;
            }
            place += count;
        }
    };
    thread::scope(|scope| {
        for number in 0..threads {
            let fetch = &fetch;
            scope.spawn(move || fetch(number));
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_file_is_fetched_up_to_the_room_that_is_only_promised() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let written = 3 * PIECE;
        std::fs::write(&path, vec![1; written as usize]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(64 * PIECE).unwrap();
        let fetched = AtomicU64::new(0);
        fetch(&path, 2, |bytes| {
            fetched.fetch_add(bytes, Ordering::Relaxed);
            true
        });
        assert_eq!(fetched.into_inner(), written);
        let pieces = AtomicU64::new(0);
        fetch(&path, 2, |_| {
            pieces.fetch_add(1, Ordering::Relaxed);
            false
        });
        assert_eq!(
            pieces.into_inner(),
            2,
            "each thread stops when it is told to"
        );
        fetch(&folder.path().join("none"), 2, |_| {
            panic!("nothing is there")
        });
    }
}
