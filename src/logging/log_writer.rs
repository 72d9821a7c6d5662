//! The thread that writes buffered lines to standard output. When the log is closed, every added
//! line has been written, or the number of those that were not is known.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use memchr::{memchr_iter, memrchr};

use super::worker_lines::{LineBuffers, WorkerLines};
use super::writer_state::WriterSignal;
use crate::config::LogFormat;

/// Most bytes written in one call: the capacity of a pipe, so that progress of a slow reader is
/// noticed.
const MAX_WRITE: usize = 64 * 1024;
/// A buffer that has grown beyond this is shrunk when it is empty.
const BUFFER_CAPACITY: usize = 256 * 1024;
/// At the end the output is given up if it takes nothing for this long, ...
const STALL_TIMEOUT: Duration = Duration::from_secs(2);
/// ... or if it takes longer than this for all remaining lines.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Pause before writing again to an output that another process has made non-blocking.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// The running writer. Dropping it closes it.
#[derive(Debug)]
pub(super) struct LogWriter {
    shared: Arc<WriterShared>,
}

#[derive(Debug)]
struct WriterShared {
    buffers: Arc<LineBuffers>,
    /// Lines taken from the buffers that are not written yet.
    unwritten: AtomicUsize,
    /// Writes so far: shows whether the output takes anything.
    writes: AtomicUsize,
}

impl LogWriter {
    pub(super) fn start(format: LogFormat) -> io::Result<Self> {
        let buffers = LineBuffers::new(format);
        let shared = Arc::new(WriterShared::new(Arc::clone(&buffers)));
        let output = StdoutHandle::open()?;
        let work = Arc::clone(&shared);
        let thread = thread::Builder::new().name("log".to_owned());
        thread.spawn(move || work.run(output))?;
        // A second log in one process is refused when it is registered with `tracing`.
        buffers.publish();
        Ok(Self { shared })
    }

    pub(super) fn open_lines(&self) -> Arc<WorkerLines> {
        self.shared.buffers.open()
    }

    pub(super) fn dropped(&self) -> usize {
        self.shared.buffers.writer.dropped()
    }

    /// Writes the remaining lines, as long as the output takes them. Returns the number of lines
    /// lost since the start; 0: the log is complete.
    pub(super) fn close(&self) -> usize {
        let writer = &self.shared.buffers.writer;
        writer.raise(WriterSignal::End);
        let (mut waited, mut since_progress) = (Duration::ZERO, Duration::ZERO);
        let mut writes = self.shared.writes.load(Ordering::Relaxed);
        while !writer.has_ended(POLL_INTERVAL) && since_progress < STALL_TIMEOUT {
            waited += POLL_INTERVAL;
            since_progress += POLL_INTERVAL;
            let now = self.shared.writes.load(Ordering::Relaxed);
            if std::mem::replace(&mut writes, now) != now {
                since_progress = Duration::ZERO;
            }
            if waited >= CLOSE_TIMEOUT {
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
    fn new(buffers: Arc<LineBuffers>) -> Self {
        Self {
            buffers,
            unwritten: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
        }
    }

    /// Lines that have been added and not been written.
    fn waiting(&self) -> usize {
        self.buffers.count() + self.unwritten.load(Ordering::Relaxed)
    }

    fn run(&self, mut output: StdoutHandle) {
        let mut spare = Vec::new();
        loop {
            let is_end = self.buffers.writer.wait_for_work();
            self.write_buffers(&mut output, &mut spare);
            if is_end && self.waiting() == 0 {
                self.buffers.writer.raise(WriterSignal::Ended);
                return;
            }
        }
    }

    fn write_buffers(&self, output: &mut StdoutHandle, spare: &mut Vec<u8>) {
        for lines in self.buffers.all() {
            lines.take(spare, |count| {
                self.unwritten.store(count, Ordering::Relaxed)
            });
            self.write(output, spare);
            spare.clear();
            spare.shrink_to(BUFFER_CAPACITY);
        }
        self.buffers.remove_unused();
    }

    fn write(&self, output: &mut impl Write, mut text: &[u8]) {
        while !text.is_empty() {
            match output.write(&text[..write_length(text)]) {
                Ok(written) if written > 0 => {
                    self.writes.fetch_add(1, Ordering::Relaxed);
                    if written < text.len() {
                        let lines = memchr_iter(b'\n', &text[..written]).count();
                        self.unwritten.fetch_sub(lines, Ordering::Relaxed);
                    }
                    text = &text[written..];
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_PAUSE),
                Ok(_) | Err(_) => {
                    let left = self.unwritten.load(Ordering::Relaxed);
                    self.buffers.writer.add_dropped(left);
                    break;
                }
            }
        }
        self.unwritten.store(0, Ordering::Relaxed);
    }
}

/// How many bytes of `text` to write in one call: whole lines, if a line ends within the limit.
fn write_length(text: &[u8]) -> usize {
    if text.len() <= MAX_WRITE {
        return text.len();
    }
    memrchr(b'\n', &text[..MAX_WRITE]).map_or(MAX_WRITE, |end| end + 1)
}

/// Standard output without a buffer of its own: what a call took has been written.
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
        // Holding the lock keeps lines out of what is printed for people.
        let _printing = io::stdout().lock();
        self.0.write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `max` bytes in one call, and refuses after `room` of them.
    struct SlowOutput {
        taken: Vec<u8>,
        max: usize,
        room: usize,
        calls: usize,
    }

    impl Write for SlowOutput {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            match self.calls % 3 {
                0 => return Err(ErrorKind::Interrupted.into()),
                1 => return Err(ErrorKind::WouldBlock.into()),
                _ => {}
            }
            let taken = text.len().min(self.max).min(self.room - self.taken.len());
            self.taken.extend_from_slice(&text[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(room: usize) -> (WriterShared, Vec<u8>) {
        let shared = WriterShared::new(LineBuffers::new(LogFormat::Json));
        let mut output = SlowOutput {
            taken: Vec::new(),
            max: 7,
            room,
            calls: 0,
        };
        shared.unwritten.store(4, Ordering::Relaxed);
        shared.write(&mut output, b"one\ntwo\nthree\nfour\n");
        (shared, output.taken)
    }

    #[test]
    fn an_output_with_short_writes_gets_all_bytes() {
        let (shared, taken) = written(100);
        assert_eq!(taken, b"one\ntwo\nthree\nfour\n");
        assert_eq!(shared.buffers.writer.dropped(), 0);
        assert_eq!(shared.waiting(), 0);
    }

    #[test]
    fn only_the_lines_that_an_output_refuses_are_lost() {
        let (shared, taken) = written(10);
        assert_eq!(taken, b"one\ntwo\nth");
        assert_eq!(shared.buffers.writer.dropped(), 2);
        assert_eq!(shared.waiting(), 0);
    }

    #[test]
    fn each_write_ends_with_a_whole_line() {
        let mut text = vec![b'x'; MAX_WRITE - 2];
        text.extend_from_slice(b"\nyyyy\n");
        assert_eq!(write_length(&text), MAX_WRITE - 1);
        assert_eq!(write_length(b"short\n"), 6);
        assert_eq!(write_length(&vec![b'x'; MAX_WRITE + 9]), MAX_WRITE);
    }
}
