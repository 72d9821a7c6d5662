//! Reads the file sequentially into the page cache, before a load reads most of it along its tree,
//! which visits every part of it many times. One plain reader: several threads that leave out holes
//! and let the load begin early made no start clearly faster (figures: `docs/PERFORMANCE-NOTES.md`).

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

const PIECE: usize = 1024 * 1024;

/// Whether the file takes at most `max` bytes of the disk.
pub(super) fn is_worth_it(path: &Path, max: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.blocks() * 512 <= max)
}

/// Reads the whole file. `each` gets the number of further bytes read, and returns whether to go on.
/// Without read-ahead the load works too, only slower; so errors are left to the load.
pub(super) fn read_whole(path: &Path, each: impl Fn(u64) -> bool) {
    let Ok(mut file) = File::open(path) else {
        return;
    };
    let mut buffer = vec![0; PIECE];
    while let Ok(bytes @ 1..) = file.read(&mut buffer) {
        if !each(bytes as u64) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_file_is_read_to_its_end_or_until_the_load_is_cancelled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let length = 3 * PIECE as u64 + 1;
        std::fs::write(&path, vec![1; 3 * PIECE + 1]).unwrap();
        let read = Cell::new(0);
        read_whole(&path, |bytes| {
            read.set(read.get() + bytes);
            true
        });
        assert_eq!(read.get(), length);
        let pieces = Cell::new(0);
        read_whole(&path, |_| {
            pieces.set(pieces.get() + 1);
            false
        });
        assert_eq!(pieces.get(), 1);
        read_whole(&folder.path().join("none"), |_| panic!("nothing is there"));
    }
}
