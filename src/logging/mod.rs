//! The log. Lines are buffered (`worker_lines`) and written to standard output by a thread of its
//! own (`log_writer`): if the reader stalls or the disk is full, lines are dropped and counted, and
//! requests are not delayed. Buffered lines are written before the program ends. Start at
//! `LogHandle::start`.

mod log_writer;
mod worker_lines;
mod writer_state;

use std::io::{self, IsTerminal as _};

use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, registry, reload};

pub use worker_lines::{TimeText, WorkerLines};

use crate::config::{Log, LogFormat};
use log_writer::LogWriter;
use worker_lines::LineWriter;

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

    /// Applies the filter of a reloaded configuration, which has been checked.
    pub fn set_filter(&self, filter: &str) {
        let applied = filter
            .parse()
            .is_ok_and(|new: Targets| self.filter.reload(new).is_ok());
        if !applied {
            tracing::warn!(filter, "the log keeps its old filter");
        }
    }

    /// Lines dropped so far because the output was too slow or refused them.
    pub fn dropped(&self) -> usize {
        self.writer.dropped()
    }

    /// Writes the remaining lines, for at most 10 seconds, and 2 without progress. Returns the
    /// number of lines lost since the start; 0: the log is complete.
    pub fn close(&self) -> usize {
        self.writer.close()
    }
}
