//! The thread that writes gathered lines to standard output, and the end of it: everything
//! that was added is written, or it is known how many lines were not.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use memchr::{memchr_iter, memrchr};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::lines::WorkerLines;
use crate::config::LogFormat;

/// How long lines may gather before they are written.
const GATHER: Duration = Duration::from_millis(50);
/// Written in one call: what a pipe holds, so that a slow reader is seen to read.
const PIECE: usize = 64 * 1024;
/// A buffer that has grown beyond this is given back when it is empty.
const ORDINARY: usize = 256 * 1024;
/// At the end: the output is given up when it takes nothing for this long, ...
const STALLED: Duration = Duration::from_secs(2);
/// ... and when it takes longer than this for what is left.
const LONGEST_CLOSE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between two tries at an output that somebody has made non-blocking.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// One in a process, as there is one standard output.
static RUNNING: OnceLock<Arc<WriterShared>> = OnceLock::new();

/// The running writer. Dropping it closes it.
#[derive(Debug)]
pub(super) struct LogWriter {
    shared: Arc<WriterShared>,
}

#[derive(Debug)]
pub(super) struct WriterShared {
    pub(super) format: LogFormat,
    /// Held here as well, so that the last lines of a worker that has ended are written.
    buffers: Mutex<Vec<Arc<WorkerLines>>>,
    call: Mutex<WriterSignal>,
    called: Condvar,
    /// Lines that came when there was no room, or that the output refused.
    pub(super) dropped: AtomicUsize,
    /// Lines taken from the buffers that are not written yet.
    in_hand: AtomicUsize,
    /// Pieces written so far: shows that the output takes something.
    pieces: AtomicUsize,
}

/// What the thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WriterSignal {
    Nothing,
    /// Lines have come.
    Lines,
    /// Write at once.
    Now,
    End,
    /// The thread's answer: everything has been written.
    Ended,
}

impl LogWriter {
    pub(super) fn start(format: LogFormat) -> io::Result<Self> {
        let shared = Arc::new(WriterShared::new(format));
        let output = StdoutHandle::open()?;
        let work = Arc::clone(&shared);
        let thread = thread::Builder::new().name("log".to_owned());
        thread.spawn(move || work.run(output))?;
        // A second log in one process is refused by whoever starts this one.
        let _ = RUNNING.set(Arc::clone(&shared));
        Ok(Self { shared })
    }

    pub(super) fn open_lines(&self) -> Arc<WorkerLines> {
        self.shared.open_lines()
    }

    pub(super) fn dropped(&self) -> usize {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Writes what is left, as long as the output takes it. Gives the number of lines that
    /// were lost from the start to the end; 0: the log is whole.
    pub(super) fn close(&self) -> usize {
        self.shared.call(WriterSignal::End);
        let (mut waited, mut since_progress) = (Duration::ZERO, Duration::ZERO);
        let mut pieces = self.shared.pieces.load(Ordering::Relaxed);
        while !self.shared.has_ended(LOOK_EVERY) && since_progress < STALLED {
            waited += LOOK_EVERY;
            since_progress += LOOK_EVERY;
            let now = self.shared.pieces.load(Ordering::Relaxed);
            if std::mem::replace(&mut pieces, now) != now {
                since_progress = Duration::ZERO;
            }
            if waited >= LONGEST_CLOSE {
                break;
            }
        }
        self.dropped() + self.shared.waiting()
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.close();
    }
}

impl WriterShared {
    pub(super) fn new(format: LogFormat) -> Self {
        Self {
            format,
            buffers: Mutex::default(),
            call: Mutex::new(WriterSignal::Nothing),
            called: Condvar::new(),
            dropped: AtomicUsize::new(0),
            in_hand: AtomicUsize::new(0),
            pieces: AtomicUsize::new(0),
        }
    }

    pub(super) fn running() -> Option<&'static Arc<Self>> {
        RUNNING.get()
    }

    pub(super) fn open_lines(self: &Arc<Self>) -> Arc<WorkerLines> {
        let lines = WorkerLines::new(Arc::clone(self));
        lock(&self.buffers).push(Arc::clone(&lines));
        lines
    }

    /// Lines that have been added and not been written.
    pub(super) fn waiting(&self) -> usize {
        let buffered: usize = lock(&self.buffers).iter().map(|lines| lines.count()).sum();
        buffered + self.in_hand.load(Ordering::Relaxed)
    }

    pub(super) fn call(&self, what: WriterSignal) {
        let mut call = lock(&self.call);
        *call = (*call).max(what);
        drop(call);
        self.called.notify_all();
    }

    fn has_ended(&self, wait: Duration) -> bool {
        let mut call = lock(&self.call);
        let is_running = |call: &mut WriterSignal| *call != WriterSignal::Ended;
        self.called.wait_while_for(&mut call, is_running, wait);
        *call == WriterSignal::Ended
    }

    fn run(&self, mut output: StdoutHandle) {
        let mut spare = Vec::new();
        loop {
            let mut call = lock(&self.call);
            self.called
                .wait_while(&mut call, |call| *call == WriterSignal::Nothing);
            let is_gathering = |call: &mut WriterSignal| *call == WriterSignal::Lines;
            self.called.wait_while_for(&mut call, is_gathering, GATHER);
            let is_end = *call == WriterSignal::End;
            if !is_end {
                *call = WriterSignal::Nothing;
            }
            drop(call);
            self.empty(&mut output, &mut spare);
            if is_end && self.waiting() == 0 {
                self.call(WriterSignal::Ended);
                return;
            }
        }
    }

    fn empty(&self, output: &mut StdoutHandle, spare: &mut Vec<u8>) {
        let all = lock(&self.buffers).clone();
        for lines in &all {
            lines.take(spare, |count| self.in_hand.store(count, Ordering::Relaxed));
            self.write(output, spare);
            spare.clear();
            spare.shrink_to(ORDINARY);
        }
        drop(all);
        // Whoever wrote into it is gone, and so are its lines.
        lock(&self.buffers).retain(|lines| Arc::strong_count(lines) > 1 || lines.count() > 0);
    }

    fn write(&self, output: &mut impl Write, mut text: &[u8]) {
        while !text.is_empty() {
            match output.write(&text[..piece(text)]) {
                Ok(written) if written > 0 => {
                    self.pieces.fetch_add(1, Ordering::Relaxed);
                    if written < text.len() {
                        let lines = memchr_iter(b'\n', &text[..written]).count();
                        self.in_hand.fetch_sub(lines, Ordering::Relaxed);
                    }
                    text = &text[written..];
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(TRY_AGAIN),
                Ok(_) | Err(_) => {
                    let left = self.in_hand.load(Ordering::Relaxed);
                    self.dropped.fetch_add(left, Ordering::Relaxed);
                    break;
                }
            }
        }
        self.in_hand.store(0, Ordering::Relaxed);
    }
}

/// How much of `text` to write in one call: whole lines, if there is one within a piece.
fn piece(text: &[u8]) -> usize {
    if text.len() <= PIECE {
        return text.len();
    }
    memrchr(b'\n', &text[..PIECE]).map_or(PIECE, |end| end + 1)
}

/// Standard output without a buffer of its own: what it has taken is written.
struct StdoutHandle(std::fs::File);

impl StdoutHandle {
    fn open() -> io::Result<Self> {
        use std::os::fd::AsFd as _;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self(output.into()))
    }
}

impl Write for StdoutHandle {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        // So that no line gets into what is printed for people.
        let _printing = io::stdout().lock();
        self.0.write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `most` bytes in one call, and refuses after `room` of them.
    struct Narrow {
        taken: Vec<u8>,
        most: usize,
        room: usize,
        calls: usize,
    }

    impl Write for Narrow {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            match self.calls % 3 {
                0 => return Err(ErrorKind::Interrupted.into()),
                1 => return Err(ErrorKind::WouldBlock.into()),
                _ => {}
            }
            let taken = text.len().min(self.most).min(self.room - self.taken.len());
            self.taken.extend_from_slice(&text[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(room: usize) -> (WriterShared, Vec<u8>) {
        let shared = WriterShared::new(LogFormat::Json);
        let mut output = Narrow {
            taken: Vec::new(),
            most: 7,
            room,
            calls: 0,
        };
        shared.in_hand.store(4, Ordering::Relaxed);
        shared.write(&mut output, b"one\ntwo\nthree\nfour\n");
        (shared, output.taken)
    }

    #[test]
    fn an_output_that_takes_little_at_a_time_gets_everything() {
        let (shared, taken) = written(100);
        assert_eq!(taken, b"one\ntwo\nthree\nfour\n");
        assert_eq!(shared.dropped.load(Ordering::Relaxed), 0);
        assert_eq!(shared.waiting(), 0);
    }

    #[test]
    fn only_the_lines_that_an_output_refuses_are_lost() {
        let (shared, taken) = written(10);
        assert_eq!(taken, b"one\ntwo\nth");
        assert_eq!(shared.dropped.load(Ordering::Relaxed), 2);
        assert_eq!(shared.waiting(), 0);
    }

    #[test]
    fn lines_outlive_whoever_wrote_them() {
        let shared = Arc::new(WriterShared::new(LogFormat::Json));
        let lines = shared.open_lines();
        lines.add(|text, _| text.extend_from_slice(b"the last\n"));
        drop(lines);
        assert_eq!(shared.waiting(), 1);
    }

    #[test]
    fn pieces_end_with_a_line() {
        let mut text = vec![b'x'; PIECE - 2];
        text.extend_from_slice(b"\nyyyy\n");
        assert_eq!(piece(&text), PIECE - 1);
        assert_eq!(piece(b"short\n"), 6);
        assert_eq!(piece(&vec![b'x'; PIECE + 9]), PIECE);
    }
}
