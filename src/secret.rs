//! Secrets, and the files or environment variables that hold them.

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memchr::memmem;
use serde::Deserialize;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// A secret text. It has no `Display`, `Debug` does not show it, and `==` takes the same time
/// wherever the first difference is.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The only access to the text, easy to search for in a review.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Secret {
    /// Compares with `text`, in the same time wherever the first difference is.
    pub fn is(&self, text: &str) -> bool {
        self.0.as_bytes().ct_eq(text.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

/// A compiled search for a secret where it must not appear.
#[derive(Clone)]
pub struct SecretPattern(Arc<memmem::Finder<'static>>);

impl SecretPattern {
    pub fn new(secret: &Secret) -> Self {
        let finder = memmem::Finder::new(secret.expose()).into_owned();
        Self(Arc::new(finder))
    }

    /// The secret itself; see `Secret::expose`.
    pub fn expose(&self) -> &[u8] {
        self.0.needle()
    }

    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.find(bytes).is_some()
    }

    /// A copy of `bytes`, of the same length, with each occurrence overwritten by `*`. None if there
    /// is no occurrence.
    pub fn redacted(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut at = self.find(bytes)?;
        let mut clean = bytes.to_vec();
        let length = self.expose().len();
        loop {
            clean[at..at + length].fill(b'*');
            match self.find(&clean[at + length..]) {
                Some(next) => at += length + next,
                None => return Some(clean),
            }
        }
    }

    fn find(&self, bytes: &[u8]) -> Option<usize> {
        let length = self.expose().len();
        if length == 0 || bytes.len() < length {
            return None;
        }
        self.0.find(bytes)
    }
}

impl fmt::Debug for SecretPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Where a secret is stored. The configuration has only this, never the text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum SecretSource {
    /// A file that contains only the secret; read each time the secret is needed.
    File(PathBuf),
    /// An environment variable of this process.
    Env(String),
}

/// Why a secret could not be read. Names its source, never the text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read secret file {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("environment variable {name} is not set")]
    Unset { name: String },
    #[error("{place} {fault}")]
    Unusable {
        place: SecretSource,
        fault: SecretFault,
    },
}

/// Why the content is not usable as a secret, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretFault {
    #[error("is empty: write the secret into it")]
    Empty,
    #[error("has more than one line: leave only the secret, without notes or empty lines")]
    SeveralLines,
    #[error("has a NUL byte: write it as plain text")]
    Nul,
    #[error("begins with a byte order mark: save it as UTF-8 without one")]
    ByteOrderMark,
    #[error("is not UTF-8: save it as UTF-8")]
    NotUtf8,
    #[error("is longer than 8 KiB: is it the right one?")]
    TooLong,
}

/// Minimum length of the operator's token in characters, because a guessed token can create API
/// keys.
pub const LEAST_OPERATOR_TOKEN: usize = 16;

/// Maximum length of a secret in bytes, without its line end.
const MAX_LENGTH: usize = 8 * 1024;

/// The secret in the content of a file or variable. One line end (LF or CRLF) is removed, because
/// editors and `echo` add it. Spaces belong to the secret.
fn secret_in(bytes: &[u8]) -> Result<Secret, SecretFault> {
    if bytes.len() > MAX_LENGTH + 2 {
        return Err(SecretFault::TooLong);
    }
    let marks = [&b"\xef\xbb\xbf"[..], b"\xff\xfe", b"\xfe\xff"];
    if marks.iter().any(|mark| bytes.starts_with(mark)) {
        return Err(SecretFault::ByteOrderMark);
    }
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let text = match text.len() < bytes.len() {
        true => text.strip_suffix(b"\r").unwrap_or(text),
        false => text,
    };
    if text.trim_ascii().is_empty() {
        return Err(SecretFault::Empty);
    }
    if text.contains(&0) {
        return Err(SecretFault::Nul);
    }
    if text.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        return Err(SecretFault::SeveralLines);
    }
    if text.len() > MAX_LENGTH {
        return Err(SecretFault::TooLong);
    }
    let text = std::str::from_utf8(text).map_err(|_| SecretFault::NotUtf8)?;
    Ok(Secret::new(text))
}

/// Reads as much of a file as a secret can have, and a little more to detect that it is longer.
fn bytes_of(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // Allocated at once: a vector that grows leaves copies of the secret in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LENGTH + 4));
    // Reading from a pipe would block.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = std::fs::File::open(path)?;
    file.take(MAX_LENGTH as u64 + 3).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl SecretSource {
    /// Reads the secret. All passwords, keys and tokens of the configuration are read here.
    pub fn read(&self) -> Result<Secret, Error> {
        match self {
            Self::File(path) => self.secret_of_file(path, bytes_of(path)),
            Self::Env(name) => {
                let text = std::env::var_os(name);
                let text = text.ok_or_else(|| Error::Unset { name: name.clone() })?;
                self.checked(&Zeroizing::new(text.into_encoded_bytes()))
            }
        }
    }

    /// The secret in the content of the file at `path`, which has been read already.
    pub fn secret_of_file(
        &self,
        path: &Path,
        content: io::Result<Zeroizing<Vec<u8>>>,
    ) -> Result<Secret, Error> {
        let bytes = content.map_err(|source| Error::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        self.checked(&bytes)
    }

    /// The file to watch; None: the secret cannot change while the program runs.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Env(_) => None,
        }
    }

    fn checked(&self, bytes: &[u8]) -> Result<Secret, Error> {
        secret_in(bytes).map_err(|fault| Error::Unusable {
            place: self.clone(),
            fault,
        })
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_show_the_secret() {
        let secret = Secret::new("canary-hunter2");
        assert!(!format!("{secret:?}").contains("canary"));
    }

    #[test]
    fn one_line_end_is_dropped_and_the_rest_is_the_secret() {
        for (bytes, text) in [
            ("a:b", "a:b"),
            ("a:b\n", "a:b"),
            (" a:b \r\n", " a:b "),
            ("grüße\n", "grüße"),
            ("a\tb", "a\tb"),
        ] {
            let secret = secret_in(bytes.as_bytes()).unwrap();
            assert_eq!(secret.expose(), text);
        }
        let longest = "x".repeat(MAX_LENGTH);
        assert!(secret_in(format!("{longest}\r\n").as_bytes()).is_ok());
        assert_eq!(
            secret_in(format!("{longest}x").as_bytes()),
            Err(SecretFault::TooLong)
        );
    }

    #[test]
    fn unusable_content_is_refused_with_its_source_and_without_its_text() {
        let file = std::env::temp_dir().join(format!("tollgate-secret-{}", std::process::id()));
        let long = "canary".repeat(10_000);
        for (bytes, fault) in [
            (&b""[..], SecretFault::Empty),
            (b"\n", SecretFault::Empty),
            (b"  \r\n", SecretFault::Empty),
            (b"canary\nnote\n", SecretFault::SeveralLines),
            (b"canary\n\n", SecretFault::SeveralLines),
            (b"canary\rnote", SecretFault::SeveralLines),
            (b"canary\r\nnote", SecretFault::SeveralLines),
            (b"canary\0", SecretFault::Nul),
            (b"\xef\xbb\xbfcanary\n", SecretFault::ByteOrderMark),
            (b"\xff\xfec\0a\0", SecretFault::ByteOrderMark),
            (b"canary\xf6\n", SecretFault::NotUtf8),
            (long.as_bytes(), SecretFault::TooLong),
        ] {
            std::fs::write(&file, bytes).unwrap();
            let error = SecretSource::File(file.clone()).read().unwrap_err();
            let message = error.to_string();
            assert!(message.contains(&file.display().to_string()), "{message}");
            assert!(
                message.contains(&fault.to_string()) && !message.contains("canary"),
                "{message}"
            );
        }
        std::fs::remove_file(file).unwrap();
    }
}
