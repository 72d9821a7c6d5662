//! Reads files and takes the fingerprint of their content.

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Larger than any file that is watched; a wrong path must not fill the memory.
const MAX_FILE_SIZE: u64 = 16 << 20;

/// The contents of some files, read at one time, symbolic links followed as they were then.
#[derive(Debug)]
pub struct FileContents {
    files: Vec<FileContent>,
    fingerprint: ContentFingerprint,
}

/// One file, or why it cannot be read. The bytes may be a secret: they are overwritten when dropped,
/// and `Debug` does not show them.
pub struct FileContent {
    pub path: PathBuf,
    pub content: io::Result<Zeroizing<Vec<u8>>>,
}

/// A hash of the contents of files: equal contents and equal errors have an equal fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentFingerprint([u8; 32]);

impl FileContents {
    /// Reads all files, on this thread.
    pub(super) fn read(paths: &[PathBuf]) -> Self {
        let files: Vec<FileContent> = paths.iter().map(|path| FileContent::read(path)).collect();
        let fingerprint = ContentFingerprint::of(&files);
        Self { files, fingerprint }
    }

    pub(super) fn fingerprint(&self) -> ContentFingerprint {
        self.fingerprint
    }

    /// The files in the order of the paths.
    pub fn into_files(self) -> Vec<FileContent> {
        self.files
    }

    /// The file, for a reader that watches one.
    pub fn into_file(self) -> FileContent {
        let first = self.files.into_iter().next();
        first.expect("a reader of one file watches one path")
    }
}

impl FileContent {
    fn read(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            content: bytes_of(path),
        }
    }
}

impl fmt::Debug for FileContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = self.content.as_ref().err();
        f.debug_struct("FileContent")
            .field("path", &self.path)
            .field("error", &error)
            .finish_non_exhaustive()
    }
}

impl ContentFingerprint {
    fn of(files: &[FileContent]) -> Self {
        let mut hash = Sha256::new();
        let mut part = |kind: u8, bytes: &[u8]| {
            hash.update([kind]);
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        for file in files {
            part(0, file.path.as_os_str().as_encoded_bytes());
            match &file.content {
                Ok(bytes) => part(1, bytes),
                Err(error) => part(2, error.to_string().as_bytes()),
            }
        }
        Self(hash.finalize().into())
    }
}

fn bytes_of(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let metadata = std::fs::metadata(path)?;
    // Reading from a pipe would block.
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let length = metadata.len().min(MAX_FILE_SIZE);
    let capacity = usize::try_from(length).unwrap_or_default() + 1;
    // Allocated at once: a vector that grows leaves copies of a secret in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}
