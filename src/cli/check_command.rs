//! `tollgate check`: finds everything that a start would refuse, without starting anything.

use std::io::{self, Write};
use std::path::Path;

use tracing::Level;

use super::Error;
use crate::app::{self, CheckResult};
use crate::config::{self, Config, LoadedConfig, Problem, ProblemTable, Problems};

/// Prints the configuration as understood, or every problem in a line of its own. `connect`: also
/// whether the upstream and the store can be reached and accept the credentials.
pub(super) fn run(path: &Path, connect: bool, out: &mut impl Write) -> Result<(), Error> {
    let found = config::load(path);
    let warnings = match &found {
        Ok(loaded) => &loaded.warnings,
        Err(problems) => &problems.warnings,
    };
    warn(path, warnings)?;
    let LoadedConfig { config, lines, .. } = match found {
        Ok(loaded) => loaded,
        Err(mut problems) => {
            if let Some(rest) = problems.rest.take() {
                let more = CheckReport::of(path, offline_results(&rest.0), &rest.1);
                problems = problems.and(more.problems);
            }
            return Err(problems.into());
        }
    };
    let report = |results| CheckReport::of(path, results, &lines);
    report(offline_results(&config)).end(path, &mut io::sink())?;
    write!(out, "{}", config.describe())?;
    if connect {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::App(app::Error::Runtime(error)))?;
        let results = runtime.block_on(app::check_connections(&config));
        writeln!(out)?;
        report(results).end(path, out)?;
    }
    Ok(())
}

/// What a start would log as a warning goes to standard error.
fn offline_results(config: &Config) -> Vec<CheckResult> {
    let log = tracing_subscriber::fmt()
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .with_max_level(Level::WARN)
        .with_writer(io::stderr)
        .finish();
    tracing::subscriber::with_default(log, || app::check(config))
}

fn warn(path: &Path, warnings: &[Problem]) -> io::Result<()> {
    if warnings.is_empty() {
        return Ok(());
    }
    let rows = ProblemTable(warnings);
    writeln!(io::stderr(), "{}: warnings{rows}", path.display())
}

/// Results by kind, each with its line in the file.
struct CheckReport {
    good: Vec<String>,
    warnings: Problems,
    problems: Problems,
}

impl CheckReport {
    fn of(path: &Path, results: Vec<CheckResult>, lines: &config::KeyLines) -> Self {
        let (mut good, mut odd, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        for finding in results {
            match finding {
                CheckResult::Good { key, text } => good.push(format!("{key}: {text}")),
                CheckResult::Odd(problem) => odd.push(problem),
                CheckResult::Wrong(problem) => wrong.push(problem),
            }
        }
        let located = |found| Problems::found(path.display().to_string(), found).located(lines);
        Self {
            good,
            warnings: located(odd),
            problems: located(wrong),
        }
    }

    fn end(self, path: &Path, out: &mut impl Write) -> Result<(), Error> {
        for line in self.good {
            writeln!(out, "{line}")?;
        }
        warn(path, &self.warnings.problems)?;
        match self.problems.problems.is_empty() {
            true => Ok(()),
            false => Err(self.problems.into()),
        }
    }
}
