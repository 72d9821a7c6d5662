//! Has the file fetched from the disk in the order in which it lies there, before most of it
//! is read along its tree, which comes to every part of it many times.

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
/// A disk that gives so much within this time (840 MB a second) answers many at once: no
/// single turning disk gives it, and none that is rented by the request. So does memory, if the
/// beginning is there already; a wrong guess costs time and nothing else.
const SAMPLE: u64 = 32 * PIECE;
const QUICK: Duration = Duration::from_millis(40);

/// Whether the file takes no more than so many bytes of the disk.
pub(super) fn is_worth_it(path: &Path, most: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|facts| facts.blocks() * 512 <= most)
}

/// Begins to fetch the file. Returns when all of it is in the kernel's memory; sooner if the
/// disk proves quick, which can serve one who reads a little meanwhile. `each` is told how
/// many bytes more, and says whether to go on. A file that cannot be fetched is read all the
/// same, only slower.
pub(super) fn begin<'scope>(
    scope: &'scope Scope<'scope, '_>,
    path: &'scope Path,
    threads: usize,
    each: impl Fn(u64) -> bool + Send + Sync + 'scope,
) {
    let (proves, proved) = mpsc::channel();
    let (since, so_far) = (Instant::now(), AtomicU64::new(0));
    let each = move |bytes| {
        let before = so_far.fetch_add(bytes, Ordering::Relaxed);
        let is_sampled = before < SAMPLE && before + bytes >= SAMPLE;
        if is_sampled && since.elapsed() <= QUICK {
            let _ = proves.send(()); // heard, unless it is all over
        }
        each(bytes)
    };
    scope.spawn(move || fetch(path, threads, each));
    let _ = proved.recv(); // or `fetch` is over
}

fn fetch(path: &Path, threads: usize, each: impl Fn(u64) -> bool + Sync) {
    let Ok(file) = File::open(path) else { return };
    let pieces = written(&file);
    let fetch = |pieces: &[Range<u64>]| {
        let mut room = vec![0; PIECE as usize];
        for piece in pieces {
            let bytes = piece.end - piece.start;
            let read = file.read_exact_at(&mut room[..bytes as usize], piece.start);
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

/// What of the file was written, in pieces. The engine allots room in advance, between what
/// it writes too, and all that would be read as zeros.
fn written(file: &File) -> Vec<Range<u64>> {
    let length = file.metadata().map_or(0, |facts| facts.len());
    let (mut pieces, mut place) = (Vec::new(), 0);
    while place < length {
        let (begin, end) = match seek(file, SeekFrom::Data(place)) {
            Ok(begin) => (begin, seek(file, SeekFrom::Hole(begin)).unwrap_or(length)),
            Err(Errno::NXIO) => break, // no more of it
            Err(_) => (place, length), // nobody knows
        };
        let firsts = (begin..end).step_by(PIECE as usize);
        pieces.extend(firsts.map(|first| first..end.min(first + PIECE)));
        place = end.max(place + 1);
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
    fn a_file_is_fetched_without_the_room_that_is_only_promised() {
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
        assert_eq!(
            pieces.into_inner(),
            2,
            "each thread stops when it is told to"
        );
        fetch(&folder.path().join("none"), 2, |_| {
            panic!("nothing is there")
        });
    }

    fn file_of(folder: &tempfile::TempDir, pieces: u64) -> std::path::PathBuf {
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; (pieces * PIECE) as usize]).unwrap();
        path
    }

    #[test]
    fn a_disk_that_is_not_quick_is_left_alone_until_all_is_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let path = file_of(&folder, SAMPLE / PIECE + 8);
        let fetched = AtomicU64::new(0);
        thread::scope(|scope| {
            begin(scope, &path, 2, |bytes| {
                thread::sleep(QUICK / 8); // twice as long as it may take
                fetched.fetch_add(bytes, Ordering::Relaxed);
                true
            });
            assert_eq!(fetched.load(Ordering::Relaxed), SAMPLE + 8 * PIECE);
        });
    }

    #[test]
    fn a_quick_disk_serves_others_meanwhile() {
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
