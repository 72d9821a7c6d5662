//! Has the file fetched from the disk in the order in which it lies there, before it is
//! read along its tree, which comes to every part of it many times.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, Scope};
use std::time::Duration;

use rustix::fs::{SeekFrom, seek};
use tokio::time::Instant;

const PIECE: u64 = 1024 * 1024;
/// A disk that gives so much within this time answers many at once: 840 MB a second, which
/// no turning disk gives, and none that is rented by the request.
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
    threads: u64,
    each: impl Fn(u64) -> bool + Send + Sync + 'scope,
) {
    let (proves, proved) = mpsc::channel();
    let (begin, so_far) = (Instant::now(), AtomicU64::new(0));
    let each = move |bytes| {
        let rest = SAMPLE.saturating_sub(so_far.fetch_add(bytes, Ordering::Relaxed));
        if (1..=bytes).contains(&rest) && begin.elapsed() <= QUICK {
            let _ = proves.send(()); // heard, unless it is all over
        }
        each(bytes)
    };
    scope.spawn(move || fetch(path, threads, each));
    let _ = proved.recv(); // or `fetch` is over
}

fn fetch(path: &Path, threads: u64, each: impl Fn(u64) -> bool + Sync) {
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
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::RecvTimeoutError::Disconnected;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

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
                        let wait = has_begun.lock().unwrap().recv_timeout(SECOND);
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
