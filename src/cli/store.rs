//! `tollgate store`: the operator's hands on the store while no gate uses it.

use std::io::{self, Write};

use clap::Subcommand;

use super::Error;
use crate::config::{Store, StorePlace};
use crate::store::{Exporter, Mode, Offline, TransferError, read_lines};

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum Command {
    /// Read every page and every row; say what there is.
    Check,
    /// Write everything to standard output, one record a line: digests, no secrets.
    Export,
    /// Read an export from standard input; all of it or nothing.
    Import {
        /// Into a store that is not empty: add what is not there.
        #[arg(long)]
        merge: bool,
    },
    /// Take out what is over, and give the room back to the disk.
    Compact,
}

pub(super) fn run(command: &Command, settings: &Store, out: &mut impl Write) -> Result<(), Error> {
    let StorePlace::File(path) = &settings.place else {
        return Err(TransferError::Memory.into());
    };
    let open = || Offline::open(path).map_err(TransferError::from);
    match command {
        Command::Check => {
            let tally = open()?.check().map_err(TransferError::from)?;
            writeln!(out, "{}: good; {tally}", path.display())?;
        }
        Command::Export => {
            let mut exporter = Exporter::begin(io::BufWriter::new(out))?;
            open()?.records(|record| exporter.put(record))?;
            let tally = exporter.end()?;
            writeln!(io::stderr(), "exported {tally}")?;
        }
        Command::Import { merge } => {
            let store = Offline::open_or_make(path).map_err(TransferError::from)?;
            let mut import = store.import().map_err(TransferError::from)?;
            let mode = if *merge { Mode::Merge } else { Mode::IntoEmpty };
            if !import.may(mode) {
                return Err(TransferError::NotEmpty.into());
            }
            let input = io::BufReader::new(io::stdin().lock());
            read_lines(input, |record| Ok(import.put(record)?))?;
            let tally = import.commit().map_err(TransferError::from)?;
            writeln!(out, "imported {tally}")?;
        }
        Command::Compact => {
            let done = open()?.compact().map_err(TransferError::from)?;
            writeln!(
                out,
                "{}: {} bytes, before {}; {} tokens that were over taken out",
                path.display(),
                done.after,
                done.before,
                done.removed
            )?;
        }
    }
    Ok(())
}
