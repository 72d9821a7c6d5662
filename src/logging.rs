//! Starts the log. Lines go to stdout through a thread of their own: a reader that
//! stalls costs lines, which are counted, and never a request.

use std::io::IsTerminal as _;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, registry, reload};

use crate::config::{Log, LogFormat};

/// Lines kept for a slow reader; at 300 bytes each some ten megabytes.
const LINES_KEPT: usize = 32_768;

/// The running log. Dropping it writes what is still kept.
#[derive(Debug)]
pub struct Logging {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why the log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("log filter cannot be used")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("a log is running already")]
    Running(#[from] tracing_subscriber::util::TryInitError),
}

impl Logging {
    pub fn start(log: &Log) -> Result<Self, Error> {
        let (filter, handle) = reload::Layer::new(EnvFilter::try_new(&log.filter)?);
        let (lines, writer) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES_KEPT)
            .thread_name("log")
            .finish(std::io::stdout());
        let dropped = lines.error_counter();
        let layer = match log.format {
            LogFormat::Json => fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(lines)
                .boxed(),
            LogFormat::Text => fmt::layer()
                .with_ansi(std::io::stdout().is_terminal())
                .with_writer(lines)
                .boxed(),
        };
        registry().with(filter).with(layer).try_init()?;
        Ok(Self {
            _writer: writer,
            dropped,
            filter: handle,
        })
    }

    /// Takes the filter of a reloaded configuration, which has been checked.
    pub fn refilter(&self, filter: &str) {
        let taken = EnvFilter::try_new(filter).is_ok_and(|new| self.filter.reload(new).is_ok());
        if !taken {
            tracing::warn!(filter, "the log keeps its old filter");
        }
    }

    /// Lines lost so far because the output was too slow.
    pub fn dropped(&self) -> usize {
        self.dropped.dropped_lines()
    }
}
