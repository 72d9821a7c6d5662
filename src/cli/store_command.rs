//! `tollgate store`: checks, exports, imports and compacts the store while no gateway uses it.

use std::io::{self, Write};
use std::sync::Arc;

use clap::Subcommand;

use super::Error;
use crate::config::{SharedStoreConfig as Place, StoreConfig, StorePlace};
use crate::lifecycle::TaskScope;
use crate::metrics::Metrics;
use crate::store::shared::SharedStore;
use crate::store::{
    ImportMode, OfflineStore, RecordCounts, RecordExporter, TransferError, read_lines,
};

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Read every page and every row; print what there is.
    Check,
    /// Write everything to standard output, one record a line: digests, no secrets.
    Export,
    /// Read an export from standard input; as a whole or not at all.
    Import {
        /// Into a store that is not empty: add what is missing.
        #[arg(long)]
        merge: bool,
    },
    /// Remove expired records, and return the space to the disk.
    Compact,
}

pub(super) fn run(
    command: &StoreCommand,
    settings: &StoreConfig,
    out: &mut impl Write,
) -> Result<(), Error> {
    let path = match &settings.place {
        StorePlace::File(path) => path,
        StorePlace::Memory => return Err(TransferError::Memory.into()),
        StorePlace::Shared(shared) => return run_shared(command, shared, out),
    };
    let open = || OfflineStore::open(path).map_err(TransferError::from);
    match command {
        StoreCommand::Check => {
            let tally = open()?.check().map_err(TransferError::from)?;
            writeln!(out, "{}: good; {tally}", path.display())?;
        }
        StoreCommand::Export => {
            // Opened before the first line is written, so that a failure leaves an empty output.
            let store = open()?;
            let mut exporter = RecordExporter::begin(io::BufWriter::new(out))?;
            store.records(|record| exporter.put(record))?;
            let tally = exporter.end()?;
            writeln!(io::stderr(), "exported {tally}")?;
        }
        StoreCommand::Import { merge } => {
            let store = OfflineStore::open_or_create(path).map_err(TransferError::from)?;
            let mut import = store.import().map_err(TransferError::from)?;
            let mode = if *merge {
                ImportMode::Merge
            } else {
                ImportMode::IntoEmpty
            };
            if !import.is_allowed(mode) {
                return Err(TransferError::NotEmpty.into());
            }
            let input = io::BufReader::new(io::stdin().lock());
            read_lines(input, |record| Ok(import.put(record)?))?;
            let tally = import.commit().map_err(TransferError::from)?;
            writeln!(out, "imported {tally}")?;
        }
        StoreCommand::Compact => {
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

/// The same for a shared store; gateways may run meanwhile.
fn run_shared(command: &StoreCommand, place: &Place, out: &mut impl Write) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(TransferError::Runtime)?;
    runtime.block_on(async {
        let scope = TaskScope::new(runtime.handle().clone());
        let store = Arc::new(SharedStore::new(place.clone(), Metrics::new()));
        let started = store.start(&scope).await;
        started.map_err(TransferError::from)?;
        let done = with_shared(command, &store, out).await;
        scope.stop.abort();
        done
    })
}

async fn with_shared(
    command: &StoreCommand,
    store: &SharedStore,
    out: &mut impl Write,
) -> Result<(), Error> {
    match command {
        StoreCommand::Compact => return Err(TransferError::NotAFile.into()),
        StoreCommand::Check => {
            let mut tally = RecordCounts::default();
            let count = |record| {
                tally.count(&record);
                Ok::<_, TransferError>(())
            };
            store.records(count).await?;
            writeln!(out, "{}: good; {tally}", store.settings())?;
        }
        StoreCommand::Export => {
            let mut exporter = RecordExporter::begin(io::BufWriter::new(out))?;
            store.records(|record| exporter.put(&record)).await?;
            let tally = exporter.end()?;
            writeln!(io::stderr(), "exported {tally}")?;
        }
        StoreCommand::Import { merge } => {
            if !merge && !store.is_empty().await.map_err(TransferError::from)? {
                return Err(TransferError::NotEmpty.into());
            }
            let mut records = Vec::new();
            let input = io::BufReader::new(io::stdin().lock());
            read_lines(input, |record| {
                records.push(record);
                Ok(())
            })?;
            let tally = store.import(records).await.map_err(TransferError::from)?;
            writeln!(out, "imported {tally}")?;
        }
    }
    Ok(())
}
