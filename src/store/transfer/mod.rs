//! Export and import of a store as lines of JSON: for backups, for moving to another engine, for
//! inspection. Contains digests, password hashes and sealed bytes, never a secret in the clear.

use std::io::{self, BufRead, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{ExportRecord, GrantRecord, KeyRecord, SealedLease, UserEpoch, UserRecord};

/// Version of the format; incremented when an older program can no longer read it.
const LAYOUT: u64 = 1;
/// Bad lines reported one by one.
const MAX_REPORTED: usize = 20;
/// Maximum length of a line; lines of an export are much shorter.
const MAX_LINE: u64 = 1 << 20;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// One line of an export.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum ExportLine {
    /// The first line.
    Export {
        layout: u64,
    },
    User(UserRecord),
    Key(KeyRecord),
    Epoch(UserEpoch),
    Grant(GrantRecord),
    Lease(SealedLease),
    /// The last line: if it is missing, the export is truncated.
    End {
        records: u64,
    },
}

/// Numbers of records, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordCounts {
    pub users: u64,
    pub keys: u64,
    pub epochs: u64,
    pub grants: u64,
    pub leases: u64,
    /// Were in the store already, and stay as they are.
    pub known: u64,
    /// Dead tokens: expired, or ended by their user.
    pub over: u64,
}

impl RecordCounts {
    pub fn count(&mut self, record: &ExportRecord) {
        match record {
            ExportRecord::User(_) => self.users += 1,
            ExportRecord::Key(_) => self.keys += 1,
            ExportRecord::Epoch(_) => self.epochs += 1,
            ExportRecord::Grant(_) => self.grants += 1,
            ExportRecord::Lease(_) => self.leases += 1,
        }
    }

    fn records(&self) -> u64 {
        self.users + self.keys + self.epochs + self.grants + self.leases
    }
}

impl std::fmt::Display for RecordCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} users, {} keys, {} tokens of {} users, {} sealed leases",
            self.users, self.keys, self.grants, self.epochs, self.leases
        )?;
        if self.known > 0 {
            write!(
                f,
                "; {} were there already and stay as they are",
                self.known
            )?;
        }
        if self.over > 0 {
            write!(f, "; {} tokens are over", self.over)?;
        }
        Ok(())
    }
}

/// An error in one line. The line's text is not repeated: it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    pub number: u64,
    pub reason: String,
}

/// Why an export or import failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("cannot write the export")]
    Unwritten(#[source] io::Error),
    #[error("cannot read the lines")]
    Unread(#[source] io::Error),
    #[error("nothing was imported: {}", list_bad_lines(lines, *count))]
    BadLines {
        /// The first of them.
        lines: Vec<BadLine>,
        count: u64,
    },
    #[error("nothing was imported: the lines are cut off, the last one is missing")]
    CutOff,
    #[error("nothing was imported: the store is not empty; --merge adds what it does not have")]
    NotEmpty,
    #[error(transparent)]
    Store(#[from] super::OpenError),
    #[error("cannot use the shared store")]
    Shared(#[from] super::StoreUnavailable),
    #[error("cannot use the shared store")]
    Unreachable(#[from] super::shared::SharedOpenError),
    #[error("a shared store is its server's to compact: tokens that are over leave by themselves")]
    NotAFile,
    #[error("cannot start")]
    Runtime(#[source] io::Error),
    #[error("with [store] path = \"memory\" nothing is kept that could be looked at")]
    Memory,
}

fn list_bad_lines(lines: &[BadLine], count: u64) -> String {
    let mut text = format!("{count} bad lines");
    for line in lines {
        text.push_str(&format!("\n  line {}: {}", line.number, line.reason));
    }
    if count > lines.len() as u64 {
        text.push_str("\n  ...");
    }
    text
}

/// Writes records as lines.
#[derive(Debug)]
pub struct RecordExporter<W> {
    out: W,
    counts: RecordCounts,
    progress: TransferProgress,
}

impl<W: Write> RecordExporter<W> {
    pub fn begin(out: W) -> Result<Self, TransferError> {
        let mut exporter = Self {
            out,
            counts: RecordCounts::default(),
            progress: TransferProgress::new("exported"),
        };
        exporter.line(&ExportLine::Export { layout: LAYOUT })?;
        Ok(exporter)
    }

    pub fn put(&mut self, record: &ExportRecord) -> Result<(), TransferError> {
        self.counts.count(record);
        self.progress.show(self.counts.records());
        let text = serde_json::to_vec(record).map_err(io::Error::from);
        self.write(&text.map_err(TransferError::Unwritten)?)
    }

    pub fn end(mut self) -> Result<RecordCounts, TransferError> {
        let records = self.counts.records();
        self.line(&ExportLine::End { records })?;
        self.out.flush().map_err(TransferError::Unwritten)?;
        Ok(self.counts)
    }

    fn line(&mut self, line: &ExportLine) -> Result<(), TransferError> {
        let text = serde_json::to_vec(line).map_err(io::Error::from);
        self.write(&text.map_err(TransferError::Unwritten)?)
    }

    fn write(&mut self, text: &[u8]) -> Result<(), TransferError> {
        let written = self.out.write_all(text);
        let written = written.and_then(|()| self.out.write_all(b"\n"));
        written.map_err(TransferError::Unwritten)
    }
}

/// Reads all lines and passes each record to `each`; fails if any line is bad, after all have been
/// read.
pub fn read_lines(
    input: impl BufRead,
    mut each: impl FnMut(ExportRecord) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let mut reader = RecordReader {
        input,
        number: 0,
        bad: Vec::new(),
        count: 0,
        records: 0,
        has_ended: false,
        progress: TransferProgress::new("read"),
    };
    while let Some(line) = reader.next()? {
        match reader.record(&line) {
            Ok(None) => {}
            // After a bad line the good ones are no longer passed on.
            Ok(Some(record)) if reader.count == 0 => each(record)?,
            Ok(Some(_)) => {}
            Err(reason) => reader.report(reason),
        }
    }
    if reader.count > 0 {
        return Err(TransferError::BadLines {
            lines: reader.bad,
            count: reader.count,
        });
    }
    if reader.has_ended {
        Ok(())
    } else {
        Err(TransferError::CutOff)
    }
}

struct RecordReader<R> {
    input: R,
    number: u64,
    bad: Vec<BadLine>,
    count: u64,
    records: u64,
    has_ended: bool,
    progress: TransferProgress,
}

impl<R: BufRead> RecordReader<R> {
    fn next(&mut self) -> Result<Option<Vec<u8>>, TransferError> {
        let mut line = Vec::new();
        let mut input = io::Read::take(&mut self.input, MAX_LINE);
        let read = input.read_until(b'\n', &mut line);
        if read.map_err(TransferError::Unread)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.progress.show(self.number);
        Ok(Some(line))
    }

    fn record(&mut self, line: &[u8]) -> Result<Option<ExportRecord>, String> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(None);
        }
        if self.has_ended {
            return Err("comes after the end".to_owned());
        }
        // The parser's messages contain no digests or hashes: those are JSON strings.
        let line = serde_json::from_slice(line).map_err(|error| reason(&error))?;
        if self.number == 1 && !matches!(line, ExportLine::Export { .. }) {
            return Err("is not the first line of an export".to_owned());
        }
        self.records += 1;
        let record = match line {
            ExportLine::Export { layout } => {
                self.records -= 1;
                if self.number > 1 {
                    return Err("is the beginning of another export".to_owned());
                }
                if layout > LAYOUT {
                    return Err("was written by a newer version of this program".to_owned());
                }
                return Ok(None);
            }
            ExportLine::End { records } => {
                self.records -= 1;
                self.has_ended = true;
                if records != self.records && self.count == 0 {
                    let found = self.records;
                    return Err(format!("{records} records were written, {found} are here"));
                }
                return Ok(None);
            }
            ExportLine::User(user) => ExportRecord::User(user),
            ExportLine::Key(key) => ExportRecord::Key(key),
            ExportLine::Epoch(epoch) => ExportRecord::Epoch(epoch),
            ExportLine::Grant(grant) => ExportRecord::Grant(grant),
            ExportLine::Lease(lease) => ExportRecord::Lease(lease),
        };
        Ok(Some(record))
    }

    fn report(&mut self, reason: String) {
        self.count += 1;
        if self.bad.len() < MAX_REPORTED {
            self.bad.push(BadLine {
                number: self.number,
                reason,
            });
        }
    }
}

/// The parser's message without any value, which may be a secret in the wrong field.
fn reason(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    match error.classify() {
        Category::Io => "cannot be read".to_owned(),
        Category::Eof => "is cut off".to_owned(),
        Category::Syntax => format!("is not JSON (column {})", error.column()),
        Category::Data => {
            let text = error.to_string();
            match text.split_once('`').and_then(|(before, rest)| {
                let (name, _) = rest.split_once('`')?;
                Some((before.trim_end().to_owned(), name.to_owned()))
            }) {
                Some((before, name)) if name.len() < 32 => format!("is no record: {before} {name}"),
                _ => "is no record: a value has the wrong form".to_owned(),
            }
        }
    }
}

/// Shows progress on standard error once a second.
#[derive(Debug)]
struct TransferProgress {
    what: &'static str,
    last: Instant,
}

impl TransferProgress {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            last: Instant::now(),
        }
    }

    fn show(&mut self, count: u64) {
        if count.is_multiple_of(16_384) && self.last.elapsed() >= PROGRESS_INTERVAL {
            self.last = Instant::now();
            // Fails if standard error is closed.
            let _ = writeln!(io::stderr(), "{count} lines {}", self.what);
        }
    }
}

#[cfg(test)]
mod tests;
