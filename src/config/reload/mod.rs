//! Reload: a changed config file is checked and applied, or the old configuration stays. Start at
//! `ConfigWatcher`.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::{error, info, warn};

use super::file::load_file;
use super::{Config, Difference, KeyLines, Problems};
use crate::error_chain::chain;
use crate::lifecycle::ShutdownSignal;
use crate::metrics::{Metrics, ReloadResult};
use crate::watched_files::{FileContent, ReloadRequests, WatchedFiles};

/// The result of reading the file.
#[derive(Debug)]
enum ReloadOutcome {
    Applied(Vec<Difference>),
    Unchanged,
    Refused(ReloadRefused),
}

/// Why the old configuration stays in use.
#[derive(Debug, thiserror::Error)]
enum ReloadRefused {
    #[error(transparent)]
    Problems(#[from] Problems),
    #[error("this configuration cannot be applied")]
    Unusable(#[source] Box<dyn Error + Send + Sync>),
}

/// The one task that reads the config file again.
#[derive(Debug)]
pub struct ConfigWatcher {
    path: PathBuf,
    files: WatchedFiles,
    metrics: Arc<Metrics>,
    requests: ReloadRequests,
}

impl ConfigWatcher {
    /// Reads the file at `path` when its content changes, and on `requests`.
    pub fn new(path: PathBuf, metrics: Arc<Metrics>, requests: ReloadRequests) -> Self {
        Self {
            files: WatchedFiles::new(vec![path.clone()]),
            path,
            metrics,
            requests,
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
        let mut is_first = true;
        loop {
            let look = tokio::select! {
                biased;
                () = stop.draining() => return,
                look = self.files.next_look(&mut self.requests) => look,
            };
            let file = look.contents.into_file();
            let outcome = self.check_file(file, &current, &mut apply).await;
            let outcome = outcome.map(|(new, differences)| {
                current = new;
                differences
            });
            // The first read finds what the program started with.
            self.report(outcome, is_first && !look.is_requested);
            is_first = false;
        }
    }

    async fn check_file<A, F, E>(
        &self,
        file: FileContent,
        current: &Arc<Config>,
        apply: &mut A,
    ) -> Result<(Arc<Config>, Vec<Difference>), ReloadRefused>
    where
        A: FnMut(Arc<Config>) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        // Reads every file that the config names: not on an async thread.
        let loaded = tokio::task::spawn_blocking(move || load_file(file)).await;
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

    /// Logs and counts the result; if `quiet`, not that nothing has changed.
    fn report(&self, outcome: Result<Vec<Difference>, ReloadRefused>, quiet: bool) {
        let outcome = match outcome {
            Ok(differences) if differences.is_empty() => ReloadOutcome::Unchanged,
            Ok(differences) => ReloadOutcome::Applied(differences),
            Err(refused) => ReloadOutcome::Refused(refused),
        };
        self.metrics
            .config_is_current
            .set(i64::from(!matches!(outcome, ReloadOutcome::Refused(_))));
        match &outcome {
            ReloadOutcome::Unchanged if quiet => {}
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
    }
}

#[cfg(test)]
mod tests;
