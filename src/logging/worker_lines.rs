//! Buffers of log lines, which the writer thread empties. Each worker has a buffer for its access
//! lines; all other lines share one. Adding a line never waits for the reader of the log: when a
//! buffer is full, lines are dropped and counted.

use std::io;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};
use tracing_subscriber::fmt::MakeWriter;

use super::writer_state::{WriterSignal, WriterState};
use crate::clock;
use crate::config::LogFormat;

/// Buffered bytes at which the writer is called at once. They fit into a core's own cache, so that
/// neither the worker nor the writer waits for memory.
const WRITE_AT: usize = 64 * 1024;
/// Most bytes buffered for a slow reader, for each buffer.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// The buffer of one worker's access lines, or of all other lines.
#[derive(Debug)]
pub struct WorkerLines {
    buffer: Mutex<LineBuffer>,
    writer: Arc<WriterState>,
}

/// All buffers of the log.
#[derive(Debug)]
pub(super) struct LineBuffers {
    pub(super) writer: Arc<WriterState>,
    /// A buffer stays here after its worker has ended, until its last lines are written.
    all: Mutex<Vec<Arc<WorkerLines>>>,
}

/// The buffers of the running log. There is one log in a process, as there is one standard output.
static RUNNING: OnceLock<Arc<LineBuffers>> = OnceLock::new();

impl LineBuffers {
    pub(super) fn new(format: LogFormat) -> Arc<Self> {
        Arc::new(Self {
            writer: Arc::new(WriterState::new(format)),
            all: Mutex::default(),
        })
    }

    /// Makes these the buffers of the process, if there are none yet.
    pub(super) fn publish(self: &Arc<Self>) {
        let _ = RUNNING.set(Arc::clone(self));
    }

    pub(super) fn open(&self) -> Arc<WorkerLines> {
        let lines = Arc::new(WorkerLines {
            buffer: Mutex::default(),
            writer: Arc::clone(&self.writer),
        });
        self.all.lock().push(Arc::clone(&lines));
        lines
    }

    pub(super) fn all(&self) -> Vec<Arc<WorkerLines>> {
        self.all.lock().clone()
    }

    /// Lines in the buffers.
    pub(super) fn count(&self) -> usize {
        self.all.lock().iter().map(|lines| lines.count()).sum()
    }

    /// Removes empty buffers whose worker has ended.
    pub(super) fn remove_unused(&self) {
        self.all
            .lock()
            .retain(|lines| Arc::strong_count(lines) > 1 || lines.count() > 0);
    }
}

#[derive(Debug, Default)]
struct LineBuffer {
    text: Vec<u8>,
    /// Number of lines in `text`.
    lines: usize,
    /// The second that `stamp` is the text of.
    second: u64,
    stamp: String,
}

impl WorkerLines {
    /// A new buffer for one worker; None if no log has been started.
    pub fn open() -> Option<Arc<Self>> {
        Some(RUNNING.get()?.open())
    }

    pub fn format(&self) -> LogFormat {
        self.writer.format
    }

    /// Adds the line that `write` appends to the buffer; it gets the time as text too.
    pub fn add(&self, write: impl FnOnce(&mut Vec<u8>, TimeText<'_>)) {
        let Some(mut buffer) = self.buffer_with_room() else {
            return;
        };
        let before = buffer.text.len();
        let micros = clock::unix_micros();
        buffer.set_second(micros / 1_000_000);
        let LineBuffer { text, stamp, .. } = &mut *buffer;
        let micros = u32::try_from(micros % 1_000_000).unwrap_or(0);
        write(text, TimeText { stamp, micros });
        buffer.lines += 1;
        let after = buffer.text.len();
        drop(buffer);
        if before < WRITE_AT && after >= WRITE_AT {
            self.writer.raise(WriterSignal::Now);
        } else if before == 0 {
            self.writer.raise(WriterSignal::Lines);
        }
    }

    /// Adds a finished line, and has it written at once.
    fn add_line(&self, line: &[u8]) {
        let Some(mut buffer) = self.buffer_with_room() else {
            return;
        };
        buffer.text.extend_from_slice(line);
        buffer.lines += 1;
        drop(buffer);
        self.writer.raise(WriterSignal::Now);
    }

    fn buffer_with_room(&self) -> Option<MutexGuard<'_, LineBuffer>> {
        let buffer = self.buffer.lock();
        if buffer.text.len() > MAX_BYTES {
            self.writer.add_dropped(1);
            return None;
        }
        Some(buffer)
    }

    /// Swaps the buffered text into `spare`. `count` is called with the number of lines while the
    /// buffer is still locked, so that lines are never missing from both counts.
    pub(super) fn take(&self, spare: &mut Vec<u8>, count: impl FnOnce(usize)) {
        let mut buffer = self.buffer.lock();
        std::mem::swap(&mut buffer.text, spare);
        count(std::mem::take(&mut buffer.lines));
    }

    pub(super) fn count(&self) -> usize {
        self.buffer.lock().lines
    }
}

/// The output of the log's formatter: each write is one whole line.
#[derive(Clone, Debug)]
pub(super) struct LineWriter(pub(super) Arc<WorkerLines>);

impl io::Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.add_line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // the writer thread writes
    }
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// A time as text, to the microsecond.
#[derive(Clone, Copy, Debug, Default)]
pub struct TimeText<'a> {
    stamp: &'a str,
    micros: u32,
}

impl TimeText<'_> {
    /// Appends the time in the form of RFC 3339, in UTC.
    pub fn put(self, text: &mut Vec<u8>) {
        text.extend_from_slice(self.stamp.as_bytes());
        // The first digit, always 1, keeps the zeros before the others.
        let mut digits = itoa::Buffer::new();
        let fraction = &digits.format(1_000_000 + self.micros).as_bytes()[1..];
        text.push(b'.');
        text.extend_from_slice(fraction);
        text.push(b'Z');
    }
}

impl LineBuffer {
    fn set_second(&mut self, second: u64) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_the_form_of_rfc_3339() {
        let mut buffer = LineBuffer::default();
        buffer.set_second(1_795_667_478);
        let mut text = Vec::new();
        let stamp = &buffer.stamp;
        TimeText {
            stamp,
            micros: 1_964,
        }
        .put(&mut text);
        assert_eq!(text, b"2026-11-26T04:31:18.001964Z");
    }

    #[test]
    fn lines_beyond_the_limit_are_dropped_and_counted() {
        let buffers = LineBuffers::new(LogFormat::Json);
        let lines = buffers.open();
        lines.add(|text, _| text.resize(MAX_BYTES + 1, b'x'));
        lines.add(|text, _| text.push(b'y'));
        lines.add_line(b"z\n");
        assert_eq!(buffers.writer.dropped(), 2);
        assert_eq!(lines.buffer.lock().text.len(), MAX_BYTES + 1);
        assert_eq!(buffers.count(), 1);
    }

    #[test]
    fn lines_survive_the_worker_that_added_them() {
        let buffers = LineBuffers::new(LogFormat::Json);
        let lines = buffers.open();
        lines.add(|text, _| text.extend_from_slice(b"the last\n"));
        drop(lines);
        buffers.remove_unused();
        assert_eq!(buffers.count(), 1);
    }
}
