//! Opening the file. It is created once and never by accident, never open twice at a time, and
//! never mistaken for empty because it could not be read.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageBackend, TableHandle as _};
use tokio::time::Instant;
use tracing::{info, warn};

use super::tables::{GRANTS, KEYS, LEASES, META, SCHEMA, SCHEMA_KEY, TOKEN_USERS, USERS};

/// The first bytes of every redb file.
const MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";
/// The engine's page cache in bytes, besides the kernel's page cache. For a gateway small enough
/// that the pages of a load stay in the processor's cache: up to a fifth faster.
pub(super) const CACHE_OF_A_GATE: usize = 2 << 20;
/// For a command, which may change millions of rows in one transaction.
pub(super) const CACHE_OF_A_COMMAND: usize = 32 << 20;
/// A file up to this size is checked page by page at each start, not only after a crash.
const CHECKED_AT_START: u64 = 64 << 20;

/// A check that takes less time is not logged.
const LOG_AFTER: Duration = Duration::from_secs(1);
/// Interval of the log lines about a check.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Why the store could not be opened, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot use the store {}: {source}{}", path.display(), advice(source))]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "the store {} is in use by another process; stop that one, or give this one a [store] path of \
         its own",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error(
        "the store {} is an empty file; remove it to begin with a new store, or put a backup in its place",
        path.display()
    )]
    Empty { path: PathBuf },
    #[error("{} is not a store of this program; choose another [store] path", path.display())]
    Foreign { path: PathBuf },
    #[error(
        "the store {} is damaged ({reason}); put a backup in its place, or move it away to begin \
         with a new store",
        path.display()
    )]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "the store {} was written by a newer version of this program (layout {found}, this one \
         knows {SCHEMA}); use that version",
        path.display()
    )]
    Newer { path: PathBuf, found: u64 },
    #[error(
        "there is no store at {}: it was moved or removed, or no gate has run here yet",
        path.display()
    )]
    Gone { path: PathBuf },
}

fn advice(source: &std::io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::NotFound => "; make its folder, or choose another [store] path",
        ErrorKind::PermissionDenied => "; the gate's user must own the file and its folder",
        ErrorKind::ReadOnlyFilesystem => "; [store] path must be on a disk that can be written",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; make room on the disk",
        ErrorKind::IsADirectory => "; [store] path names a file",
        _ => "",
    }
}

/// What to do if the file is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MissingFile {
    Create,
    Refuse,
}

/// Whether there is a file at `path`; a folder or an empty file is an error.
pub(super) fn is_there(path: &Path) -> Result<bool, OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err(io(ErrorKind::IsADirectory.into())),
        Ok(metadata) if metadata.len() == 0 => Err(OpenError::Empty {
            path: path.to_owned(),
        }),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io(error)),
    }
}

pub(super) fn open(
    path: &Path,
    missing: MissingFile,
    cache_bytes: usize,
) -> Result<Database, OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    if !is_there(path)? {
        return match missing {
            MissingFile::Create => create(path, cache_bytes),
            MissingFile::Refuse => Err(OpenError::Gone {
                path: path.to_owned(),
            }),
        };
    }
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(io)?;
    check_magic(path, &file)?;
    restrict_permissions(path, &file).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let backend = FileBackend::new(file).map_err(|error| open_error(path, error))?;
    let database = open_backend(path, backend, length <= CHECKED_AT_START, cache_bytes)?;
    check_schema(path, &database)?;
    Ok(database)
}

/// Creates the file beside its final path and moves it there once it is complete, so that a kill
/// meanwhile leaves no empty file.
fn create(path: &Path, cache_bytes: usize) -> Result<Database, OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    create_folder(path).map_err(io)?;
    // A random name, so that two processes do not create the same file.
    let fresh = path.with_extension(format!("new-{:016x}", rand::random::<u64>()));
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh);
    let file = options.map_err(io)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or_else(|| Path::new("."))).map_err(io)?;
    let made = FileBackend::new(file)
        .map_err(|error| open_error(path, error))
        .and_then(|backend| open_backend(path, backend, false, cache_bytes))
        .and_then(|database| {
            create_tables(&database).map_err(|error| storage(path, error))?;
            put_in_place(&fresh, path).map_err(io)?;
            folder.sync_all().map_err(io)?;
            Ok(database)
        });
    let _ = std::fs::remove_file(&fresh);
    if made.is_ok() {
        info!(path = %path.display(), "created a new store");
    }
    made
}

/// Never replaces a file that another process has created meanwhile, where the file system allows
/// hard links.
fn put_in_place(fresh: &Path, path: &Path) -> std::io::Result<()> {
    match std::fs::hard_link(fresh, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(error),
        Err(_) => std::fs::rename(fresh, path), // a file system without hard links
        Ok(()) => Ok(()),
    }
}

/// Creates the last folder of the path only, so that a typo does not create a tree.
fn create_folder(path: &Path) -> std::io::Result<()> {
    let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    else {
        return Ok(());
    };
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn restrict_permissions(path: &Path, file: &File) -> std::io::Result<()> {
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        warn!(path = %path.display(), "the store was readable by other users; now only its owner can read it");
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(())
}

pub(super) fn check_magic(path: &Path, mut file: &File) -> Result<(), OpenError> {
    let mut first = [0; MAGIC.len()];
    match file.read_exact(&mut first) {
        Ok(()) if first == MAGIC => Ok(()),
        _ => Err(OpenError::Foreign {
            path: path.to_owned(),
        }),
    }
}

/// Opens a file, or a test's backend.
pub(super) fn open_backend(
    path: &Path,
    backend: impl StorageBackend,
    is_checked: bool,
    cache_bytes: usize,
) -> Result<Database, OpenError> {
    let mut builder = Builder::new();
    builder
        .set_cache_size(cache_bytes)
        .set_check_integrity_on_open(is_checked);
    let progress = RepairProgress::begin(path, is_checked);
    builder.set_repair_callback(move |repair| progress.tell(repair.progress()));
    // The engine validates what it reads, but a page with a valid checksum and wrong contents can
    // make it panic; that must become an error message.
    let opened = catch_unwind(AssertUnwindSafe(|| builder.create_with_backend(backend)));
    let opened = opened.map_err(|_| damaged(path, "it cannot be read"))?;
    opened.map_err(|error| open_error(path, error))
}

/// Logs that the file is being checked: at once after an unclean stop, otherwise only if it takes
/// long; then its progress every few seconds.
struct RepairProgress {
    path: String,
    reason: &'static str,
    next: Mutex<Instant>,
}

impl RepairProgress {
    fn begin(path: &Path, is_checked: bool) -> Self {
        let (reason, quiet) = match is_checked {
            true => ("checking the store before it is used", LOG_AFTER),
            false => (
                "the gateway was not stopped cleanly; checking the store",
                Duration::ZERO,
            ),
        };
        Self {
            path: path.display().to_string(),
            reason,
            next: Mutex::new(Instant::now() + quiet),
        }
    }

    fn tell(&self, progress: f64) {
        let mut next = self.next.lock();
        if Instant::now() < *next {
            return;
        }
        *next = Instant::now() + LOG_INTERVAL;
        let (percent, reason) = ((progress * 100.0).round(), self.reason);
        info!(path = self.path, percent, "{reason}");
    }
}

/// Creates all tables of a new store.
pub(super) fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    txn.open_table(META)?.insert(SCHEMA_KEY, SCHEMA)?;
    txn.open_table(TOKEN_USERS)?;
    txn.open_table(GRANTS)?;
    for table in [USERS, KEYS, LEASES] {
        txn.open_table(table)?;
    }
    txn.commit()?;
    Ok(())
}

pub(super) fn check_schema(path: &Path, database: &impl ReadableDatabase) -> Result<(), OpenError> {
    let schema = catch_unwind(AssertUnwindSafe(|| read_schema(database)));
    let schema = schema.map_err(|_| damaged(path, "it cannot be read"))?;
    match schema.map_err(|error| storage(path, error))? {
        Some(SCHEMA) => Ok(()),
        Some(found) => Err(OpenError::Newer {
            path: path.to_owned(),
            found,
        }),
        None => Err(OpenError::Foreign {
            path: path.to_owned(),
        }),
    }
}

fn read_schema(database: &impl ReadableDatabase) -> Result<Option<u64>, redb::Error> {
    let txn = database.begin_read()?;
    if !txn.list_tables()?.any(|table| table.name() == META.name()) {
        return Ok(None);
    }
    let table = txn.open_table(META)?;
    let schema = redb::ReadableTable::get(&table, SCHEMA_KEY)?;
    Ok(schema.map(|schema| schema.value()))
}

pub(super) fn damaged(path: &Path, reason: &str) -> OpenError {
    OpenError::Damaged {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

pub(super) fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            OpenError::InUse {
                path: path.to_owned(),
            }
        }
        DatabaseError::UpgradeRequired(_) => damaged(path, "it has an older file format"),
        DatabaseError::Storage(error) => storage(path, error.into()),
        other => damaged(path, &other.to_string()),
    }
}

pub(super) fn storage(path: &Path, error: redb::Error) -> OpenError {
    match error {
        redb::Error::Io(source)
            if matches!(
                source.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::InvalidInput
            ) =>
        {
            damaged(path, "it is cut off, or not whole")
        }
        redb::Error::Io(source) => OpenError::Io {
            path: path.to_owned(),
            source,
        },
        other => damaged(path, &StorageText(&other).to_string()),
    }
}

/// The engine's message without its prefix.
struct StorageText<'a>(&'a redb::Error);

impl std::fmt::Display for StorageText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            redb::Error::Corrupted(reason) => f.write_str(reason),
            other => other.fmt(f),
        }
    }
}
