//! Has the file fetched from the disk in the order in which it lies there, before it is
//! read along its tree, which comes to every part of it many times.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;

const PIECE: u64 = 1024 * 1024;

/// Returns when the file is in the kernel's memory; tells `each` time how many bytes more.
/// There is room for it: its tokens take more, once they are loaded. A file that cannot be
/// fetched is read all the same, only slower.
pub(super) fn fetch(path: &Path, threads: u64, each: impl Fn(u64) + Sync) {
    let Ok(file) = File::open(path) else { return };
    let length = file.metadata().map_or(0, |facts| facts.len());
    let share = length.div_ceil(threads).next_multiple_of(PIECE);
    let fetch = |number: u64| {
        let mut piece = vec![0; PIECE as usize];
        let (mut place, end) = (number * share, length.min((number + 1) * share));
        while place < end {
            match file.read_at(&mut piece, place) {
                Ok(0) | Err(_) => return,
                Ok(count) => place += count as u64,
            }
            each(PIECE);
        }
    };
    thread::scope(|scope| {
        for number in 0..threads {
            let fetch = &fetch;
            scope.spawn(move || fetch(number));
        }
    });
}
