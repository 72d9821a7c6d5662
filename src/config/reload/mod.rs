//! Reload: `ConfigWatcher` reads the file every second and on request; a changed file is checked and
//! applied, or the old configuration stays.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::{Config, Difference, KeyLines, Problems, load};
use crate::error_chain::chain;
use crate::lifecycle::ShutdownSignal;
use crate::metrics::{Metrics, ReloadResult};

/// Between two reads of the file. The content is compared, not the modification time: mounted
/// config maps swap a symlink, editors rename, and both can keep old times.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Queued requests; further ones would get the result of the same read.
const MAX_REQUESTS: usize = 8;

/// The result of reading the file.
#[derive(Debug)]
pub enum ReloadOutcome {
    Applied(Vec<Difference>),
    Unchanged,
    Refused(ReloadRefused),
}

/// Why the old configuration stays in use.
#[derive(Debug, thiserror::Error)]
pub enum ReloadRefused {
    #[error(transparent)]
    Problems(#[from] Problems),
    #[error("this configuration cannot be applied")]
    Unusable(#[source] Box<dyn Error + Send + Sync>),
}

/// The watcher has ended, most likely because the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the config file is no longer watched")]
pub struct WatcherGone;

/// Requests a read of the file now. Clones use the same watcher.
#[derive(Clone, Debug)]
pub struct ReloadHandle(mpsc::Sender<ReloadRequest>);

/// The watcher's end of a `ReloadHandle`.
#[derive(Debug)]
pub struct ReloadRequests(mpsc::Receiver<ReloadRequest>);

#[derive(Debug)]
struct ReloadRequest(Option<oneshot::Sender<ReloadOutcome>>);

pub fn reloader() -> (ReloadHandle, ReloadRequests) {
    let (sender, receiver) = mpsc::channel(MAX_REQUESTS);
    (ReloadHandle(sender), ReloadRequests(receiver))
}

impl ReloadHandle {
    /// As SIGHUP does, without waiting. If the queue is full, a read is about to happen.
    pub fn ask(&self) {
        let _ = self.0.try_send(ReloadRequest(None));
    }

    /// Waits until the file has been read; returns the result.
    pub async fn reload(&self) -> Result<ReloadOutcome, WatcherGone> {
        let (answer, outcome) = oneshot::channel();
        let sent = self.0.send(ReloadRequest(Some(answer))).await;
        sent.map_err(|_| WatcherGone)?;
        outcome.await.map_err(|_| WatcherGone)
    }
}

/// The one task that reads the config file again.
#[derive(Debug)]
pub struct ConfigWatcher {
    path: PathBuf,
    metrics: Arc<Metrics>,
    requests: ReloadRequests,
    every: Duration,
}

/// The file's content, as far as it is needed to see a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileContent {
    Digest([u8; 32]),
    Unreadable,
}

impl ConfigWatcher {
    pub fn new(path: PathBuf, metrics: Arc<Metrics>, requests: ReloadRequests) -> Self {
        Self {
            path,
            metrics,
            requests,
            every: POLL_INTERVAL,
        }
    }

    /// Runs until drain. `apply` applies a checked configuration as a whole or not at all; when it
    /// fails, later files are still compared with `current`.
    pub async fn run<A, F, E>(
        mut self,
        mut current: Arc<Config>,
        stop: ShutdownSignal,
        mut apply: A,
    ) where
        A: FnMut(Arc<Config>) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut tick = interval(self.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The content last applied or refused, and the content of the last read. A file that is
        // being written differs at each read.
        let mut handled: Option<FileContent> = None;
        let mut last_read: Option<FileContent> = None;
        loop {
            let request = tokio::select! {
                biased;
                () = stop.draining() => return,
                Some(request) = self.requests.0.recv() => Some(request),
                _ = tick.tick() => None,
            };
            let content = self.content().await;
            if request.is_none() {
                let differs = handled != Some(content);
                let is_stable = last_read.replace(content) == Some(content);
                if !differs || !is_stable {
                    continue;
                }
            }
            let is_first = handled.replace(content).is_none();
            let outcome = self.check_file(&current, &mut apply).await;
            let outcome = outcome.map(|(new, differences)| {
                current = new;
                differences
            });
            let outcome = self.report(outcome, is_first && request.is_none());
            if let Some(ReloadRequest(Some(answer))) = request {
                // Fails when the caller has left meanwhile.
                let _ = answer.send(outcome);
            }
        }
    }

    async fn content(&self) -> FileContent {
        match tokio::fs::read(&self.path).await {
            Ok(bytes) => FileContent::Digest(Sha256::digest(&bytes).into()),
            Err(_) => FileContent::Unreadable,
        }
    }

    async fn check_file<A, F, E>(
        &self,
        current: &Arc<Config>,
        apply: &mut A,
    ) -> Result<(Arc<Config>, Vec<Difference>), ReloadRefused>
    where
        A: FnMut(Arc<Config>) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let path = self.path.clone();
        // Reads every file that the config names: not on an async thread.
        let loaded = tokio::task::spawn_blocking(move || load(&path)).await;
        let loaded = loaded.map_err(|end| ReloadRefused::Unusable(Box::new(end)))??;
        for warning in &loaded.warnings {
            warn!(line = warning.line, "config: {warning}");
        }
        let (new, lines) = (Arc::new(loaded.config), loaded.lines);
        let differences = current.differences(&new);
        if differences.is_empty() {
            return Ok((new, differences));
        }
        let applied = apply(Arc::clone(&new)).await;
        applied.map_err(|error| self.refused(error.into(), &lines))?;
        Ok((new, differences))
    }

    /// Adds lines to problems that are found while the configuration is applied.
    fn refused(&self, error: Box<dyn Error + Send + Sync>, lines: &KeyLines) -> ReloadRefused {
        match error.downcast::<Problems>() {
            Ok(problems) => ReloadRefused::Problems(
                Problems {
                    file: self.path.display().to_string(),
                    ..*problems
                }
                .located(lines),
            ),
            Err(error) => ReloadRefused::Unusable(error),
        }
    }

    /// Logs and counts the result; `quiet` for the first read, which finds what the program started
    /// with.
    fn report(
        &self,
        outcome: Result<Vec<Difference>, ReloadRefused>,
        quiet: bool,
    ) -> ReloadOutcome {
        let outcome = match outcome {
            Ok(differences) if differences.is_empty() => ReloadOutcome::Unchanged,
            Ok(differences) => ReloadOutcome::Applied(differences),
            Err(refused) => ReloadOutcome::Refused(refused),
        };
        self.metrics
            .config_is_current
            .set(i64::from(!matches!(outcome, ReloadOutcome::Refused(_))));
        match &outcome {
            ReloadOutcome::Unchanged if quiet => return outcome,
            ReloadOutcome::Unchanged => {
                info!("config read again: nothing changed");
                self.metrics.reloads.add(ReloadResult::Unchanged);
            }
            ReloadOutcome::Applied(differences) => {
                for difference in differences {
                    let key = difference.key.as_str();
                    if difference.reloadable {
                        info!(key, "config changed");
                    } else {
                        warn!(key, "config changed; takes effect at restart");
                    }
                }
                self.metrics.reloads.add(ReloadResult::Applied);
            }
            ReloadOutcome::Refused(refused) => {
                error!(error = %chain(refused), "config refused, the old one stays in use");
                self.metrics.reloads.add(ReloadResult::Refused);
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests;
