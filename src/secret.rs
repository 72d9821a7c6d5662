//! Text nobody should see, and where the operator keeps it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use memchr::memmem;
use serde::Deserialize;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Text nobody should see. No `Display`; `Debug` gives nothing away;
/// `==` takes the same time wherever the difference is.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The only way to the text. Easy to search for in a review.
    pub fn expose(&self) -> &str {
        &self.0
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

/// A secret to look for where it must not be; ready to be looked for often.
#[derive(Clone)]
pub struct Needle(Arc<memmem::Finder<'static>>);

impl Needle {
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

    /// `bytes` with each occurrence overwritten, their number unchanged; None: there is none.
    pub fn blotted_out(&self, bytes: &[u8]) -> Option<Vec<u8>> {
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

impl fmt::Debug for Needle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Where a secret is kept: config names the place, never the text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum SecretSource {
    /// A file whose first line is the secret; read again whenever it is needed.
    File(PathBuf),
    /// An environment variable of this process.
    Env(String),
}

/// Why a secret could not be had. Names the place, never the text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read secret file {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("environment variable {name} is not set, or is not UTF-8")]
    Unset { name: String },
    #[error("the secret at {place} is empty")]
    Empty { place: String },
}

impl SecretSource {
    /// Reads the secret now. One trailing line end is dropped: editors and
    /// `echo` add it, and no password ends with one.
    pub fn read(&self) -> Result<Secret, Error> {
        let mut text = match self {
            Self::File(path) => {
                std::fs::read_to_string(path).map_err(|source| Error::Unreadable {
                    path: path.clone(),
                    source,
                })?
            }
            Self::Env(name) => {
                std::env::var(name).map_err(|_| Error::Unset { name: name.clone() })?
            }
        };
        let kept = text.trim_end_matches(['\r', '\n']).len();
        text.truncate(kept);
        if text.is_empty() {
            return Err(Error::Empty {
                place: self.to_string(),
            });
        }
        Ok(Secret::new(text))
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
    fn debug_gives_nothing_away() {
        let secret = Secret::new("canary-hunter2");
        assert!(!format!("{secret:?}").contains("canary"));
    }

    #[test]
    fn one_line_end_is_dropped_and_spaces_are_kept() {
        let folder = std::env::temp_dir().join(format!("tollgate-secret-{}", std::process::id()));
        std::fs::write(&folder, " a:b \r\n").unwrap();
        let secret = SecretSource::File(folder.clone()).read().unwrap();
        assert_eq!(secret.expose(), " a:b ");
        std::fs::remove_file(folder).unwrap();
    }
}
