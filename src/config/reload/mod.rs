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
use crate::causes::chain;
use crate::lifecycle::ShutdownSignal;
use crate::metrics::{Metrics, Reload};

/// Between two looks at the file. Content decides, not its time stamp: mounted
/// config maps swap a link, editors rename, and both keep old stamps.
const EVERY: Duration = Duration::from_secs(1);

/// Asks waiting for the watcher; more would all be answered by the same look.
const ASKS: usize = 8;

/// How a look at the file ended.
#[derive(Debug)]
pub enum Outcome {
    Applied(Vec<Difference>),
    Unchanged,
    Refused(Refused),
}

/// Why the old configuration stays in use.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Problems(#[from] Problems),
    #[error("this configuration cannot be put to use")]
    Unusable(#[source] Box<dyn Error + Send + Sync>),
}

/// The watcher has ended, with the program most likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the config file is no longer watched")]
pub struct Gone;

/// Asks for a look at the file now. Clones ask the same watcher.
#[derive(Clone, Debug)]
pub struct Reloader(mpsc::Sender<Ask>);

/// The watcher's end of a `Reloader`.
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<Ask>);

#[derive(Debug)]
struct Ask(Option<oneshot::Sender<Outcome>>);

pub fn reloader() -> (Reloader, Requests) {
    let (sender, receiver) = mpsc::channel(ASKS);
    (Reloader(sender), Requests(receiver))
}

impl Reloader {
    /// As SIGHUP does: nobody waits. With the queue full a look is about to happen.
    pub fn ask(&self) {
        let _ = self.0.try_send(Ask(None));
    }

    /// Waits until the file was looked at and tells how that ended.
    pub async fn reload(&self) -> Result<Outcome, Gone> {
        let (answer, outcome) = oneshot::channel();
        let sent = self.0.send(Ask(Some(answer))).await;
        sent.map_err(|_| Gone)?;
        outcome.await.map_err(|_| Gone)
    }
}

/// The one task that reads the config file again.
#[derive(Debug)]
pub struct Watcher {
    path: PathBuf,
    metrics: Arc<Metrics>,
    requests: Requests,
    every: Duration,
}

/// The file's content, as far as one needs to know whether it is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Digest([u8; 32]),
    Unreadable,
}

impl Watcher {
    pub fn new(path: PathBuf, metrics: Arc<Metrics>, requests: Requests) -> Self {
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
        let mut taken: Option<Content> = None;
        let mut settling: Option<Content> = None;
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
            let outcome = self.look(&current, &mut apply).await;
            let outcome = outcome.map(|(new, differences)| {
                current = new;
                differences
            });
            let outcome = self.told(outcome, is_first && ask.is_none());
            if let Some(Ask(Some(answer))) = ask {
                // Whoever asked may have left meanwhile.
                let _ = answer.send(outcome);
            }
        }
    }

    async fn content(&self) -> Content {
        match tokio::fs::read(&self.path).await {
            Ok(bytes) => Content::Digest(Sha256::digest(&bytes).into()),
            Err(_) => Content::Unreadable,
        }
    }

    async fn look<A, F, E>(
        &self,
        current: &Arc<Config>,
        apply: &mut A,
    ) -> Result<(Arc<Config>, Vec<Difference>), Refused>
    where
        A: FnMut(Arc<Config>) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let path = self.path.clone();
        // It looks at every file that the config names: not on an async thread.
        let loaded = tokio::task::spawn_blocking(move || load(&path)).await;
        let loaded = loaded.map_err(|end| Refused::Unusable(Box::new(end)))??;
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
    fn refused(&self, error: Box<dyn Error + Send + Sync>, lines: &KeyLines) -> Refused {
        match error.downcast::<Problems>() {
            Ok(problems) => Refused::Problems(
                Problems {
                    file: self.path.display().to_string(),
                    ..*problems
                }
                .located(lines),
            ),
            Err(error) => Refused::Unusable(error),
        }
    }

    /// Logs and counts. The first look finds what the program started with, which is no news.
    fn told(&self, outcome: Result<Vec<Difference>, Refused>, quiet: bool) -> Outcome {
        let outcome = match outcome {
            Ok(differences) if differences.is_empty() => Outcome::Unchanged,
            Ok(differences) => Outcome::Applied(differences),
            Err(refused) => Outcome::Refused(refused),
        };
        self.metrics
            .config_good
            .set(i64::from(!matches!(outcome, Outcome::Refused(_))));
        match &outcome {
            Outcome::Unchanged if quiet => return outcome,
            Outcome::Unchanged => {
                info!("config read again: nothing changed");
                self.metrics.reloads.add(Reload::Unchanged);
            }
            Outcome::Applied(differences) => {
                for difference in differences {
                    let key = difference.key.as_str();
                    if difference.reloadable {
                        info!(key, "config changed");
                    } else {
                        warn!(key, "config changed; takes effect at restart");
                    }
                }
                self.metrics.reloads.add(Reload::Applied);
            }
            Outcome::Refused(refused) => {
                error!(error = %chain(refused), "config refused, the old one stays in use");
                self.metrics.reloads.add(Reload::Refused);
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests;
