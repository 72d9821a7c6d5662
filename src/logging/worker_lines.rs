//! Where log lines gather until the writer takes them. Access lines, of which there are as
//! many as requests, have one buffer for each worker; all others share one. Nobody who adds
//! a line waits for the reader of the log; lines too many are dropped and counted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, MutexGuard};
use tracing_subscriber::fmt::MakeWriter;

use super::writer::{WriterShared, WriterSignal};
use crate::clock;
use crate::config::LogFormat;

/// How much may gather: less than a processor's own cache holds, so that neither the
/// worker nor the writer waits for memory.
const FULL: usize = 64 * 1024;
/// Bytes kept for a slow reader, for each buffer.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// One worker's access lines, or all lines that are no access lines.
#[derive(Debug)]
pub struct WorkerLines {
    buffer: Mutex<LineBuffer>,
    shared: Arc<WriterShared>,
}

#[derive(Debug, Default)]
struct LineBuffer {
    text: Vec<u8>,
    /// How many lines `text` has.
    lines: usize,
    /// The second whose date and time `stamp` is.
    second: u64,
    stamp: String,
}

impl WorkerLines {
    pub(super) fn new(shared: Arc<WriterShared>) -> Arc<Self> {
        Arc::new(Self {
            buffer: Mutex::default(),
            shared,
        })
    }

    /// What one worker writes its lines into; None when no log has been started.
    pub fn open() -> Option<Arc<Self>> {
        Some(WriterShared::running()?.open_lines())
    }

    pub fn format(&self) -> LogFormat {
        self.shared.format
    }

    /// Adds the line that `write` makes; it is given the buffer and the time as text.
    pub fn add(&self, write: impl FnOnce(&mut Vec<u8>, TimeText<'_>)) {
        let Some(mut buffer) = self.buffer_with_room() else {
            return;
        };
        let before = buffer.text.len();
        let micros = clock::unix_micros();
        buffer.turn_to(micros / 1_000_000);
        let LineBuffer { text, stamp, .. } = &mut *buffer;
        let micros = u32::try_from(micros % 1_000_000).unwrap_or(0);
        write(text, TimeText { stamp, micros });
        buffer.lines += 1;
        let after = buffer.text.len();
        drop(buffer);
        if before < FULL && after >= FULL {
            self.shared.call(WriterSignal::Now);
        } else if before == 0 {
            self.shared.call(WriterSignal::Lines);
        }
    }

    /// Adds a line that is made already, and has it written at once.
    fn add_made(&self, line: &[u8]) {
        let Some(mut buffer) = self.buffer_with_room() else {
            return;
        };
        buffer.text.extend_from_slice(line);
        buffer.lines += 1;
        drop(buffer);
        self.shared.call(WriterSignal::Now);
    }

    fn buffer_with_room(&self) -> Option<MutexGuard<'_, LineBuffer>> {
        let buffer = self.lock();
        if buffer.text.len() > MOST_BYTES {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(buffer)
    }

    /// Takes all text, for which the buffer gets `spare`. `count` is told how many lines they are
    /// before anybody else can look.
    pub(super) fn take(&self, spare: &mut Vec<u8>, count: impl FnOnce(usize)) {
        let mut buffer = self.lock();
        std::mem::swap(&mut buffer.text, spare);
        count(std::mem::take(&mut buffer.lines));
    }

    pub(super) fn count(&self) -> usize {
        self.lock().lines
    }

    fn lock(&self) -> MutexGuard<'_, LineBuffer> {
        self.buffer.lock()
    }
}

/// What the log's formatter writes into: each write is one whole line.
#[derive(Clone, Debug)]
pub(super) struct LineWriter(pub(super) Arc<WorkerLines>);

impl io::Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.add_made(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // that is the writer's work
    }
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// A moment as text, to the microsecond.
#[derive(Clone, Copy, Debug, Default)]
pub struct TimeText<'a> {
    stamp: &'a str,
    micros: u32,
}

impl TimeText<'_> {
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

impl LineBuffer {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_as_rfc_3339() {
        let mut buffer = LineBuffer::default();
        buffer.turn_to(1_795_667_478);
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
    fn lines_too_many_for_the_reader_are_dropped_and_counted() {
        let shared = Arc::new(WriterShared::new(LogFormat::Json));
        let lines = shared.open_lines();
        lines.add(|text, _| text.resize(MOST_BYTES + 1, b'x'));
        lines.add(|text, _| text.push(b'y'));
        lines.add_made(b"z\n");
        assert_eq!(shared.dropped.load(Ordering::Relaxed), 2);
        assert_eq!(lines.lock().text.len(), MOST_BYTES + 1);
        assert_eq!(shared.waiting(), 1);
    }
}
