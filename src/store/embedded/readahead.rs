//! Reads the file sequentially into the page cache, before a load reads most of it along its tree,
//! which visits every part of it many times. A plain read of the whole file would do; this one
//! uses several threads, leaves out holes, and lets the load begin early on a fast disk (figures:
//! `docs/PERFORMANCE.md`).

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, Scope};
use std::time::Duration;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use tokio::time::Instant;

const PIECE: u64 = 1024 * 1024;
/// A disk that delivers this much within `FAST` (840 MB/s) serves many requests at once: no
/// single spinning disk and no rate-limited cloud disk does. The page cache does too, if it has the
/// beginning of the file already; a wrong guess only costs time.
const SAMPLE: u64 = 32 * PIECE;
const FAST: Duration = Duration::from_millis(40);

/// Whether the file takes at most `max` bytes of the disk.
pub(super) fn is_worth_it(path: &Path, max: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.blocks() * 512 <= max)
}

/// Starts to read the file. Returns when all of it is in the page cache; on a fast disk, which
/// can serve the load meanwhile, already after the sample. `each` gets the number of further
/// bytes read, and returns whether to go on. Without read-ahead the load works too, only slower.
pub(super) fn begin<'scope>(
    scope: &'scope Scope<'scope, '_>,
    path: &'scope Path,
    threads: usize,
    each: impl Fn(u64) -> bool + Send + Sync + 'scope,
) {
    let (sender, receiver) = mpsc::channel();
    let (since, total) = (Instant::now(), AtomicU64::new(0));
    let each = move |bytes| {
        let before = total.fetch_add(bytes, Ordering::Relaxed);
        let is_sampled = before < SAMPLE && before + bytes >= SAMPLE;
        if is_sampled && since.elapsed() <= FAST {
            let _ = sender.send(()); // the receiver may be gone
        }
        each(bytes)
    };
    scope.spawn(move || fetch(path, threads, each));
    let _ = receiver.recv(); // also returns when `fetch` ends
}

fn fetch(path: &Path, threads: usize, each: impl Fn(u64) -> bool + Sync) {
    let Ok(file) = File::open(path) else { return };
    let pieces = data_pieces(&file);
    let fetch = |pieces: &[Range<u64>]| {
        let mut buffer = vec![0; PIECE as usize];
        for piece in pieces {
            let bytes = piece.end - piece.start;
            let read = file.read_exact_at(&mut buffer[..bytes as usize], piece.start);
            if read.is_err() || !each(bytes) {
                return;
            }
        }
    };
    thread::scope(|scope| {
        for share in pieces.chunks(pieces.len().div_ceil(threads).max(1)) {
            let fetch = &fetch;
            scope.spawn(move || fetch(share));
        }
    });
}

/// The parts of the file that are not holes, in pieces. The engine allocates space in advance,
/// also between what it writes; holes would be read as zeros.
fn data_pieces(file: &File) -> Vec<Range<u64>> {
    let length = file.metadata().map_or(0, |facts| facts.len());
    let (mut pieces, mut position) = (Vec::new(), 0);
    while position < length {
        let (begin, end) = match seek(file, SeekFrom::Data(position)) {
            Ok(begin) => (begin, seek(file, SeekFrom::Hole(begin)).unwrap_or(length)),
            Err(Errno::NXIO) => break,    // only a hole is left
            Err(_) => (position, length), // holes are not supported
        };
        let firsts = (begin..end).step_by(PIECE as usize);
        pieces.extend(firsts.map(|first| first..end.min(first + PIECE)));
        position = end.max(position + 1);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::RecvTimeoutError::Disconnected;

    use super::*;

    const AT_MOST: Duration = Duration::from_millis(100);

    #[test]
    fn a_file_is_read_without_its_holes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let some = vec![1; 3 * PIECE as usize];
        std::fs::write(&path, &some).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&some, 9 * PIECE + PIECE / 2).unwrap();
        file.set_len(64 * PIECE).unwrap();
        let fetched = AtomicU64::new(0);
        fetch(&path, 2, |bytes| {
            fetched.fetch_add(bytes, Ordering::Relaxed);
            true
        });
        assert_eq!(fetched.into_inner(), 6 * PIECE);
        let pieces = AtomicU64::new(0);
        fetch(&path, 2, |_| {
            pieces.fetch_add(1, Ordering::Relaxed);
            false
        });
        assert_eq!(pieces.into_inner(), 2, "each thread stops at its signal");
        fetch(&folder.path().join("none"), 2, |_| {
            panic!("there is nothing to read")
        });
    }

    fn file_of(folder: &tempfile::TempDir, pieces: u64) -> std::path::PathBuf {
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; (pieces * PIECE) as usize]).unwrap();
        path
    }

    #[test]
    fn on_a_slow_disk_the_load_waits_for_the_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = file_of(&folder, SAMPLE / PIECE + 8);
        let fetched = AtomicU64::new(0);
        thread::scope(|scope| {
            begin(scope, &path, 2, |bytes| {
                thread::sleep(FAST / 8); // twice as long as it may take
                fetched.fetch_add(bytes, Ordering::Relaxed);
                true
            });
            assert_eq!(fetched.load(Ordering::Relaxed), SAMPLE + 8 * PIECE);
        });
    }

    #[test]
    fn on_a_fast_disk_the_load_begins_early() {
        let folder = tempfile::tempdir().unwrap();
        let path = file_of(&folder, SAMPLE / PIECE + 8);
        let begins_early = || {
            let (begun, has_begun) = mpsc::channel::<()>();
            let has_begun = Mutex::new(has_begun);
            let (fetched, is_early) = (AtomicU64::new(0), AtomicBool::new(false));
            thread::scope(|scope| {
                begin(scope, &path, 2, |bytes| {
                    let before = fetched.fetch_add(bytes, Ordering::Relaxed);
                    if before + bytes == SAMPLE + 8 * PIECE {
                        let wait = has_begun.lock().unwrap().recv_timeout(AT_MOST);
                        is_early.store(wait == Err(Disconnected), Ordering::Relaxed);
                    }
                    true
                });
                drop(begun);
            });
            is_early.into_inner()
        };
        // This host may be slow for a while.
        assert!((0..20).any(|_| begins_early()));
    }
}
