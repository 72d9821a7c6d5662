//! Files that are read again when their content changes: configuration, certificates, the
//! upstream's CA, API key and password. The content is polled: inotify reports neither a symbolic
//! link that is swapped further up the path, as Kubernetes does it (`..data`), nor a change made by
//! another host on a network disk. Start at `WatchedFiles`.

mod file_contents;
mod reload_signal;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use file_contents::ContentFingerprint;
pub use file_contents::{FileContent, FileContents};
pub use reload_signal::{ReloadRequests, ReloadSignal};

/// Between two reads of the files.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Tells one reader that the content of some files has changed since it got them last.
///
/// Contents are compared, not modification times. A change is reported when two reads in a row
/// find the same content, so that a file that is being written is left alone. A file that is
/// missing or unreadable counts as content, the error: the reader gets it once, not at each poll,
/// and keeps what it has.
#[derive(Debug)]
pub struct WatchedFiles {
    state: Mutex<WatchState>,
    poll_interval: Duration,
}

#[derive(Debug)]
struct WatchState {
    paths: Arc<[PathBuf]>,
    /// The content that the reader has got; None: nothing yet.
    delivered: Option<ContentFingerprint>,
    /// The content of the last read; None: there was none.
    last_read: Option<ContentFingerprint>,
}

/// What the reader gets.
#[derive(Debug)]
pub struct FileLook {
    pub contents: FileContents,
    /// Whether it differs from what the reader got before; false only if `is_requested`.
    pub is_changed: bool,
    /// The operator has asked for it.
    pub is_requested: bool,
}

impl WatchedFiles {
    /// Watches `paths`, which the reader has not read yet.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            state: Mutex::new(WatchState {
                paths: paths.into(),
                delivered: None,
                last_read: None,
            }),
            poll_interval: POLL_INTERVAL,
        }
    }

    /// Reads `paths` now, on this thread, and watches them from that content on.
    pub fn open(paths: Vec<PathBuf>) -> (Self, FileContents) {
        let contents = FileContents::read(&paths);
        let files = Self::new(paths);
        let fingerprint = Some(contents.fingerprint());
        let mut state = files.state.lock();
        (state.delivered, state.last_read) = (fingerprint, fingerprint);
        drop(state);
        (files, contents)
    }

    #[cfg(test)]
    pub(crate) fn polled_every(self, poll_interval: Duration) -> Self {
        Self {
            poll_interval,
            ..self
        }
    }

    /// Watches the files of `other` instead.
    pub fn replace(&self, other: Self) {
        *self.state.lock() = other.state.into_inner();
    }

    /// Whether the reader has got nothing newer: false once `replace` has been called.
    pub fn is_latest(&self, contents: &FileContents) -> bool {
        self.state.lock().delivered == Some(contents.fingerprint())
    }

    /// Waits for a change, or for a request: then the files are read at once, changed or not. The
    /// files are read on a thread for blocking work. Nothing is lost when the future is dropped,
    /// but the poll interval begins anew.
    pub async fn next_look(&self, requests: &mut ReloadRequests) -> FileLook {
        loop {
            let pause = match self.state.lock().last_read {
                Some(_) => self.poll_interval,
                None => Duration::ZERO,
            };
            let is_requested = tokio::select! {
                biased;
                () = requests.received() => true,
                () = sleep(pause) => false,
            };
            if let Some(look) = self.look(is_requested).await {
                return look;
            }
        }
    }

    /// Gives every look to `reader`, on a thread for blocking work; does not return.
    pub async fn follow(
        &self,
        mut requests: ReloadRequests,
        reader: impl Fn(FileLook) + Clone + Send + 'static,
    ) {
        loop {
            let look = self.next_look(&mut requests).await;
            let reader = reader.clone();
            // Fails only if the reader panics; the next change is another chance.
            let _ = spawn_blocking(move || reader(look)).await;
        }
    }

    async fn look(&self, is_requested: bool) -> Option<FileLook> {
        let paths = Arc::clone(&self.state.lock().paths);
        let read = Arc::clone(&paths);
        let contents = spawn_blocking(move || FileContents::read(&read)).await;
        // Fails only when the runtime ends.
        let contents = contents.ok()?;
        let mut state = self.state.lock();
        if !Arc::ptr_eq(&paths, &state.paths) {
            return None; // replaced while they were read
        }
        let now = contents.fingerprint();
        let is_stable = state.last_read.replace(now) == Some(now);
        let is_changed = state.delivered != Some(now);
        if !(is_requested || is_changed && is_stable) {
            return None;
        }
        state.delivered = Some(now);
        Some(FileLook {
            contents,
            is_changed,
            is_requested,
        })
    }
}
