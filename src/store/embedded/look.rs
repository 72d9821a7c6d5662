//! Inspects the file without changing it: could a start use it?

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Builder, DatabaseError};
use rustix::fs::{Access, access};

use super::OpenError;
use super::open::{CACHE_OF_A_GATE, check_magic, check_schema, damaged, is_there, open_error};

/// What a start would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreLook {
    Good,
    /// No file; a start would create it.
    Missing,
    /// Open in another process, perhaps the gateway whose configuration this is.
    InUse,
    /// Not closed cleanly; a start checks and repairs it.
    NotClosed,
}

/// Inspects the file at `path` as a start would.
pub fn look(path: &Path) -> Result<StoreLook, OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    if !is_there(path)? {
        check_creatable(path).map_err(io)?;
        return Ok(StoreLook::Missing);
    }
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(io)?;
    check_magic(path, &file)?;
    let backend = FileBackend::new(file).map_err(|error| open_error(path, error))?;
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_OF_A_GATE);
    let opened = catch_unwind(AssertUnwindSafe(|| {
        builder.open_read_only_with_backend(backend)
    }));
    match opened.map_err(|_| damaged(path, "it cannot be read"))? {
        Ok(database) => check_schema(path, &database).map(|()| StoreLook::Good),
        Err(DatabaseError::RepairAborted) => Ok(StoreLook::NotClosed),
        Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch) => {
            Ok(StoreLook::InUse)
        }
        Err(error) => Err(open_error(path, error)),
    }
}

/// Whether a start could create the file, and the last folder of its path.
fn check_creatable(path: &Path) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = match (folder.try_exists()?, folder.parent()) {
        (true, _) => folder,
        (false, Some(above)) if !above.as_os_str().is_empty() => above,
        (false, _) => Path::new("."),
    };
    if !std::fs::metadata(folder)?.is_dir() {
        return Err(ErrorKind::NotADirectory.into());
    }
    Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
}
