//! The short way for access lines, of which there are as many as requests: each worker
//! writes into a buffer of its own, and one thread empties the buffers from time to
//! time. A worker never waits for the reader; lines too many are dropped and counted.

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use memchr::memchr_iter;

use crate::clock;
use crate::config::LogFormat;

/// How long lines may gather before they are written.
const GATHER: Duration = Duration::from_millis(50);
/// How much may gather: less than a processor's own cache holds, so that neither the
/// worker nor the writer waits for memory.
const FULL: usize = 64 * 1024;
/// Bytes kept for a slow reader, for each worker.
const KEPT: usize = 8 * 1024 * 1024;
/// A buffer that has grown beyond this is given back when it is empty.
const ORDINARY: usize = 256 * 1024;

/// One in a process, as there is one standard output.
static RUNNING: OnceLock<Arc<Shared>> = OnceLock::new();

/// The running writer. Dropping it writes what is still kept.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    format: LogFormat,
    buffers: Mutex<Vec<Weak<Lines>>>,
    call: Mutex<Call>,
    called: Condvar,
    dropped: AtomicUsize,
}

/// What the thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    Nothing,
    Lines,
    /// A buffer is full: at once.
    Full,
    End,
}

/// One worker's access lines.
#[derive(Debug)]
pub struct Lines {
    kept: Mutex<Kept>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Kept {
    text: Vec<u8>,
    /// The second whose date and time `stamp` is.
    second: u64,
    stamp: String,
}

impl Writer {
    pub(super) fn start(format: LogFormat) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            format,
            buffers: Mutex::default(),
            call: Mutex::new(Call::Nothing),
            called: Condvar::new(),
            dropped: AtomicUsize::new(0),
        });
        let work = Arc::clone(&shared);
        let thread = thread::Builder::new().name("access log".to_owned());
        let thread = thread.spawn(move || work.run())?;
        // A second log in one process is refused by whoever starts this one.
        let _ = RUNNING.set(Arc::clone(&shared));
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(super) fn dropped(&self) -> usize {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.call(Call::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has been told by the panic hook
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut spare = Vec::new();
        loop {
            let call = lock(&self.call);
            let call = self.called.wait_while(call, |call| *call == Call::Nothing);
            let call = call.unwrap_or_else(PoisonError::into_inner);
            let gathered = self
                .called
                .wait_timeout_while(call, GATHER, |call| *call == Call::Lines);
            let (mut call, _) = gathered.unwrap_or_else(PoisonError::into_inner);
            let is_end = std::mem::replace(&mut *call, Call::Nothing) == Call::End;
            drop(call);
            self.empty(&mut spare);
            if is_end {
                return;
            }
        }
    }

    fn empty(&self, spare: &mut Vec<u8>) {
        let mut buffers = lock(&self.buffers);
        buffers.retain(|lines| lines.strong_count() > 0);
        let all: Vec<Arc<Lines>> = buffers.iter().filter_map(Weak::upgrade).collect();
        drop(buffers);
        for lines in all {
            std::mem::swap(&mut lock(&lines.kept).text, spare);
            if io::stdout().lock().write_all(spare).is_err() {
                let lines = memchr_iter(b'\n', spare).count();
                self.dropped.fetch_add(lines, Ordering::Relaxed);
            }
            spare.clear();
            spare.shrink_to(ORDINARY);
        }
    }

    fn call(&self, what: Call) {
        let mut call = lock(&self.call);
        *call = (*call).max(what);
        drop(call);
        self.called.notify_one();
    }
}

impl Lines {
    /// What one worker writes its lines into; None when no log has been started.
    pub fn open() -> Option<Arc<Self>> {
        let shared = Arc::clone(RUNNING.get()?);
        let lines = Arc::new(Self {
            kept: Mutex::default(),
            shared: Arc::clone(&shared),
        });
        lock(&shared.buffers).push(Arc::downgrade(&lines));
        Some(lines)
    }

    pub fn format(&self) -> LogFormat {
        self.shared.format
    }

    /// Keeps the line that `write` makes; it is given the buffer and the time as text.
    pub fn add(&self, write: impl FnOnce(&mut Vec<u8>, Stamp<'_>)) {
        let mut kept = lock(&self.kept);
        if kept.text.len() > KEPT {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = kept.text.len();
        let micros = clock::unix_micros();
        kept.turn_to(micros / 1_000_000);
        let Kept { text, stamp, .. } = &mut *kept;
        let micros = u32::try_from(micros % 1_000_000).unwrap_or(0);
        write(text, Stamp { stamp, micros });
        let after = text.len();
        drop(kept);
        if before < FULL && after >= FULL {
            self.shared.call(Call::Full);
        } else if before == 0 {
            self.shared.call(Call::Lines);
        }
    }
}

/// A moment as text, to the microsecond.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamp<'a> {
    stamp: &'a str,
    micros: u32,
}

impl Stamp<'_> {
    /// As RFC 3339 has it, in UTC.
    pub fn put(self, text: &mut Vec<u8>) {
        text.extend_from_slice(self.stamp.as_bytes());
        let mut digits = *b".000000Z";
        let mut left = self.micros;
        for digit in digits[1..7].iter_mut().rev() {
            *digit = b'0' + u8::try_from(left % 10).unwrap_or(0);
            left /= 10;
        }
        text.extend_from_slice(&digits);
    }
}

impl Kept {
    fn turn_to(&mut self, second: u64) {
        if second == self.second {
            return;
        }
        self.second = second;
        let stamp = i64::try_from(second)
            .ok()
            .and_then(|second| jiff::Timestamp::from_second(second).ok());
        self.stamp.clear();
        if let Some(stamp) = stamp {
            self.stamp.push_str(stamp.to_string().trim_end_matches('Z'));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_as_rfc_3339() {
        let mut kept = Kept::default();
        kept.turn_to(1_795_667_478);
        let mut text = Vec::new();
        let stamp = &kept.stamp;
        Stamp {
            stamp,
            micros: 1_964,
        }
        .put(&mut text);
        assert_eq!(text, b"2026-11-26T04:31:18.001964Z");
    }

    #[test]
    fn lines_too_many_for_the_reader_are_dropped_and_counted() {
        let shared = Arc::new(Shared {
            format: LogFormat::Json,
            buffers: Mutex::default(),
            call: Mutex::new(Call::Nothing),
            called: Condvar::new(),
            dropped: AtomicUsize::new(0),
        });
        let lines = Lines {
            kept: Mutex::default(),
            shared: Arc::clone(&shared),
        };
        lines.add(|text, _| text.resize(KEPT + 1, b'x'));
        lines.add(|text, _| text.push(b'y'));
        assert_eq!(shared.dropped.load(Ordering::Relaxed), 1);
        assert_eq!(lock(&lines.kept).text.len(), KEPT + 1);
        assert_eq!(*lock(&shared.call), Call::Full);
    }
}
