//! What the threads that add log lines and the writer thread share: the signal between them, and
//! the count of dropped lines.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::config::LogFormat;

/// How long lines may be buffered before they are written.
const BUFFER_TIME: Duration = Duration::from_millis(50);

/// The state of the writer thread.
#[derive(Debug)]
pub(super) struct WriterState {
    pub(super) format: LogFormat,
    signal: Mutex<WriterSignal>,
    changed: Condvar,
    /// Lines dropped because their buffer was full or the output refused them.
    dropped: AtomicUsize,
}

/// What the writer thread has to do, in the order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WriterSignal {
    Nothing,
    /// Lines have been added.
    Lines,
    /// Write at once.
    Now,
    End,
    /// Set by the writer thread: everything has been written.
    Ended,
}

impl WriterState {
    pub(super) fn new(format: LogFormat) -> Self {
        Self {
            format,
            signal: Mutex::new(WriterSignal::Nothing),
            changed: Condvar::new(),
            dropped: AtomicUsize::new(0),
        }
    }

    pub(super) fn dropped(&self) -> usize {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn add_dropped(&self, lines: usize) {
        self.dropped.fetch_add(lines, Ordering::Relaxed);
    }

    /// Raises the signal; a more urgent one stays.
    pub(super) fn raise(&self, wanted: WriterSignal) {
        let mut signal = self.signal.lock();
        *signal = (*signal).max(wanted);
        drop(signal);
        self.changed.notify_all();
    }

    /// Waits until the writer thread has ended, at most for `timeout`.
    pub(super) fn has_ended(&self, timeout: Duration) -> bool {
        let mut signal = self.signal.lock();
        let is_running = |signal: &mut WriterSignal| *signal != WriterSignal::Ended;
        self.changed
            .wait_while_for(&mut signal, is_running, timeout);
        *signal == WriterSignal::Ended
    }

    /// Waits until lines are to be written; true if it is for the last time.
    pub(super) fn wait_for_work(&self) -> bool {
        let mut signal = self.signal.lock();
        self.changed
            .wait_while(&mut signal, |signal| *signal == WriterSignal::Nothing);
        let is_buffering = |signal: &mut WriterSignal| *signal == WriterSignal::Lines;
        self.changed
            .wait_while_for(&mut signal, is_buffering, BUFFER_TIME);
        let is_end = *signal == WriterSignal::End;
        if !is_end {
            *signal = WriterSignal::Nothing;
        }
        is_end
    }
}
