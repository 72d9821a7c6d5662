//! Reload: look at the file every second and when asked, check, hand over or keep the old.

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

/// Between two looks at the file. Content decides, not its time stamp: mounted
/// config maps swap a link, editors rename, and both keep old stamps.
const EVERY: Duration = Duration::from_secs(1);

/// Asks waiting for the watcher; more would all be answered by the same look.
const ASKS: usize = 8;

/// How a look at the file ended.
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
    #[error("this configuration cannot be put to use")]
    Unusable(#[source] Box<dyn Error + Send + Sync>),
}

/// The watcher has ended, with the program most likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the config file is no longer watched")]
pub struct WatcherGone;

/// Asks for a look at the file now. Clones ask the same watcher.
#[derive(Clone, Debug)]
pub struct ReloadHandle(mpsc::Sender<ReloadRequest>);

/// The watcher's end of a `Reloader`.
#[derive(Debug)]
pub struct ReloadRequests(mpsc::Receiver<ReloadRequest>);

#[derive(Debug)]
struct ReloadRequest(Option<oneshot::Sender<ReloadOutcome>>);

pub fn reloader() -> (ReloadHandle, ReloadRequests) {
    let (sender, receiver) = mpsc::channel(ASKS);
    (ReloadHandle(sender), ReloadRequests(receiver))
}

impl ReloadHandle {
    /// As SIGHUP does: nobody waits. With the queue full a look is about to happen.
    pub fn ask(&self) {
        let _ = self.0.try_send(ReloadRequest(None));
    }

    /// Waits until the file was looked at and tells how that ended.
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

/// The file's content, as far as one needs to know whether it is another.
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
            every: EVERY,
        }
    }

    /// Runs until drain. `apply` puts a checked configuration to use, whole or not
    /// at all; when it fails, `current` stays what later files are compared with.
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
        // What was last acted on, and what differed from it at the last look. A file
        // in the middle of being written looks different at each look.
        let mut taken: Option<FileContent> = None;
        let mut settling: Option<FileContent> = None;
        loop {
            let ask = tokio::select! {
                biased;
                () = stop.draining() => return,
                Some(ask) = self.requests.0.recv() => Some(ask),
                _ = tick.tick() => None,
            };
            let content = self.content().await;
            if ask.is_none() {
                let differs = taken != Some(content);
                let settled = settling.replace(content) == Some(content);
                if !differs || !settled {
                    continue;
                }
            }
            let is_first = taken.replace(content).is_none();
            let outcome = self.check_file(&current, &mut apply).await;
            let outcome = outcome.map(|(new, differences)| {
                current = new;
                differences
            });
            let outcome = self.told(outcome, is_first && ask.is_none());
            if let Some(ReloadRequest(Some(answer))) = ask {
                // Whoever asked may have left meanwhile.
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
        // It looks at every file that the config names: not on an async thread.
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

    /// Problems that come up when the configuration is put to use have their lines, too.
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

    /// Logs and counts. The first look finds what the program started with, which is no news.
    fn told(&self, outcome: Result<Vec<Difference>, ReloadRefused>, quiet: bool) -> ReloadOutcome {
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
