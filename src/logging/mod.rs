//! Starts the log. Lines go to stdout through a thread of their own: a reader that
//! stalls, or a disk that is full, costs lines, which are counted, and never a request.
//! What has been logged when the program ends is written before it ends.

mod lines;
mod writer;

use std::io::{self, IsTerminal as _};

use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, registry, reload};

pub use lines::{TimeText, WorkerLines};

use crate::config::{Log, LogFormat};
use lines::LineWriter;
use writer::LogWriter;

/// The running log. Dropping it closes it.
#[derive(Debug)]
pub struct LogHandle {
    writer: LogWriter,
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
    Thread(#[from] io::Error),
}

impl LogHandle {
    pub fn start(log: &Log) -> Result<Self, Error> {
        let (filter, handle) = reload::Layer::new(log.filter.parse::<Targets>()?);
        let writer = LogWriter::start(log.format)?;
        let lines = LineWriter(writer.open_lines());
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
            writer,
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
        self.writer.dropped()
    }

    /// Writes what is left: at most 10 seconds, and 2 without progress. Gives the number of lines
    /// lost since the start; 0: the log is whole.
    pub fn close(&self) -> usize {
        self.writer.close()
    }
}
