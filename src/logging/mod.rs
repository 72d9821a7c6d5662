//! Starts the log. Lines go to stdout through a thread of their own: a reader that
//! stalls, or a disk that is full, costs lines, which are counted, and never a request.

mod lines;

use std::io::{self, IsTerminal as _, Stdout, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, registry, reload};

pub use lines::{Lines, Stamp};

use crate::config::{Log, LogFormat};
use lines::Writer;

/// Lines kept for a slow reader; at 300 bytes each a megabyte and more. Access lines are not
/// among them. Room for all of them is taken, and touched, at the start: 40 bytes a line.
const LINES_KEPT: usize = 4096;

/// The running log. Dropping it writes what is still kept.
#[derive(Debug)]
pub struct Logging {
    access: Writer,
    _writer: WorkerGuard,
    dropped: ErrorCounter,
    failed: Arc<AtomicUsize>,
    filter: reload::Handle<Targets, Registry>,
}

/// Why the log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("log filter cannot be used")]
    Filter(#[from] ParseError),
    #[error("a log is running already")]
    Running(#[from] tracing_subscriber::util::TryInitError),
    #[error("cannot start the log's thread")]
    Thread(#[from] std::io::Error),
}

impl Logging {
    pub fn start(log: &Log) -> Result<Self, Error> {
        let (filter, handle) = reload::Layer::new(log.filter.parse::<Targets>()?);
        let failed = Arc::new(AtomicUsize::new(0));
        let output = Counting {
            to: io::stdout(),
            failed: Arc::clone(&failed),
        };
        let (lines, writer) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES_KEPT)
            .thread_name("log")
            .finish(output);
        let dropped = lines.error_counter();
        let layer = match log.format {
            LogFormat::Json => fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(lines)
                .boxed(),
            LogFormat::Text => fmt::layer()
                .with_ansi(io::stdout().is_terminal())
                .with_writer(lines)
                .boxed(),
        };
        registry().with(filter).with(layer).try_init()?;
        Ok(Self {
            access: Writer::start(log.format)?,
            _writer: writer,
            dropped,
            failed,
            filter: handle,
        })
    }

    /// Takes the filter of a reloaded configuration, which has been checked.
    pub fn refilter(&self, filter: &str) {
        let taken = filter
            .parse()
            .is_ok_and(|new: Targets| self.filter.reload(new).is_ok());
        if !taken {
            tracing::warn!(filter, "the log keeps its old filter");
        }
    }

    /// Lines lost so far because the output was too slow, or took none.
    pub fn dropped(&self) -> usize {
        self.dropped.dropped_lines() + self.failed.load(Ordering::Relaxed) + self.access.dropped()
    }
}

/// Standard output; counts the lines it would not take.
#[derive(Debug)]
struct Counting {
    to: Stdout,
    failed: Arc<AtomicUsize>,
}

impl Write for Counting {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Whole or not at all, as far as the caller can tell: half a line that is
        // tried again would be the beginning of every line after it.
        if self.to.write_all(line).is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // What could not be written has been counted.
        let _ = self.to.flush();
        Ok(())
    }
}
