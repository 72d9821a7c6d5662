//! What a start and a reload need of files and settings, read and checked before anything is
//! opened. `check` does the same and drops the result, so that it finds what a start would refuse.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::Error;
use super::store_bootstrap::seal;
use crate::config::{self, BaseAddress, Config, Problem, Problems, StorePlace, UpstreamConfig};
use crate::error_chain::{causes, chain};
use crate::listener::{self, ServerTls};
use crate::metrics::Metrics;
use crate::pipeline::RouteTable;
use crate::secret::{self, SecretSource};
use crate::store::{SealingKeys, shared};
use crate::upstream::{ClientCertificateError, TrustError, UpstreamMaterials};

/// Everything that can be made without the network and without a change on a disk.
#[derive(Debug)]
pub(super) struct PreparedParts {
    /// TLS of each listener; None: plain HTTP.
    pub(super) listeners: Vec<Option<Arc<ServerTls>>>,
    /// In the order of the configuration's upstreams.
    pub(super) upstreams: Vec<UpstreamMaterials>,
    pub(super) seal: Option<Arc<SealingKeys>>,
    pub(super) routes: RouteTable,
}

/// Fails with every problem at once. `file` is the configuration's name in the report.
pub(super) fn prepare(
    config: &Config,
    file: Option<&Path>,
    metrics: &Arc<Metrics>,
) -> Result<PreparedParts, Problems> {
    let mut search = ProblemSearch::of(config);
    match search.prepare(metrics) {
        Some(prepared) if search.found.is_empty() => Ok(prepared),
        _ => {
            let name = file.unwrap_or(Path::new("the configuration"));
            let found = search.found.into_iter();
            let problems = found.map(|found| found.problem).collect();
            Err(Problems::found(name.display().to_string(), problems))
        }
    }
}

/// The problems, except missing files that the first start makes.
pub(super) fn problems(config: &Config, metrics: &Arc<Metrics>) -> Vec<Problem> {
    let mut search = ProblemSearch::of(config);
    search.prepare(metrics);
    let found = search.found.into_iter();
    let found = found.filter(|found| !found.is_made_at_start);
    found.map(|found| found.problem).collect()
}

/// Collects problems.
struct ProblemSearch<'a> {
    config: &'a Config,
    found: Vec<FoundProblem>,
}

struct FoundProblem {
    problem: Problem,
    /// The file that is missing will be made by the emulator's first start.
    is_made_at_start: bool,
}

impl<'a> ProblemSearch<'a> {
    fn of(config: &'a Config) -> Self {
        Self {
            config,
            found: Vec::new(),
        }
    }

    fn note(&mut self, key: String, error: &(dyn StdError + 'static)) {
        let emulator = self.config.emulator.as_ref();
        let missing = missing_file(error);
        self.found.push(FoundProblem {
            problem: Problem {
                line: None,
                key,
                reason: chain(error),
                suggestion: None,
            },
            is_made_at_start: emulator
                .zip(missing)
                .is_some_and(|(emulator, path)| path.starts_with(&emulator.folder)),
        });
    }

    fn prepare(&mut self, metrics: &Arc<Metrics>) -> Option<PreparedParts> {
        let config = self.config;
        let listeners = self.listeners(metrics);
        let upstreams = self.upstreams();
        for (key, source) in secrets(config) {
            if let Err(error) = source.read() {
                self.note(key, &error);
            }
        }
        self.passwords_of_one_user();
        let seal = self.seal();
        if let StorePlace::Shared(settings) = &config.store.place
            && let Err(error) = shared::check_settings(settings)
        {
            self.note("store.url".to_owned(), &error);
        }
        Some(PreparedParts {
            listeners: listeners?,
            upstreams: upstreams?,
            seal: seal?,
            routes: RouteTable::of(config),
        })
    }

    fn listeners(&mut self, metrics: &Arc<Metrics>) -> Option<Vec<Option<Arc<ServerTls>>>> {
        let mut all = Some(Vec::new());
        for (position, listener) in self.config.listeners.iter().enumerate() {
            let tls = match &listener.tls {
                None => Some(None),
                Some(settings) => match ServerTls::open(settings, metrics) {
                    Ok(tls) => Some(Some(tls)),
                    Err(error) => {
                        let key = format!("listener[{position}].tls.certificates");
                        self.bad_certificates(&key, settings, &error, metrics);
                        None
                    }
                },
            };
            all = all.zip(tls).map(|(mut all, tls)| {
                all.push(tls);
                all
            });
        }
        all
    }

    /// `ServerTls::open` stops at the first bad certificate; this reports each.
    fn bad_certificates(
        &mut self,
        key: &str,
        settings: &config::ListenerTls,
        first: &listener::Error,
        metrics: &Arc<Metrics>,
    ) {
        let before = self.found.len();
        for (position, files) in settings.certificates.iter().enumerate() {
            let alone = config::ListenerTls {
                certificates: vec![files.clone()],
                ..settings.clone()
            };
            if let Err(error) = ServerTls::open(&alone, metrics) {
                self.note(format!("{key}[{position}]"), &error);
            }
        }
        if self.found.len() == before {
            self.note(key.to_owned(), first);
        }
    }

    fn upstreams(&mut self) -> Option<Vec<UpstreamMaterials>> {
        let mut all = Vec::new();
        for settings in &self.config.upstreams {
            let mut wrong = Vec::new();
            all.push(UpstreamMaterials::read(settings, &mut wrong));
            for error in &wrong {
                self.note(format!("upstream.{}.{}", settings.name, error.key()), error);
            }
        }
        all.into_iter().collect()
    }

    /// Two upstreams that log in as one user with different passwords: the upstream would refuse one of
    /// them again and again, until it locks the user.
    fn passwords_of_one_user(&mut self) {
        type Account<'a> = (&'a BaseAddress, Option<&'a str>, &'a str);
        let mut known: HashMap<Account<'_>, (&UpstreamConfig, &SecretSource)> = HashMap::new();
        for upstream in &self.config.upstreams {
            let Some(login) = &upstream.login else {
                continue;
            };
            let host = upstream.host.as_deref();
            let account = |base| (base, host, login.username.as_str());
            // A login may go to any of its endpoints.
            let same = upstream
                .addresses()
                .find_map(|base| known.get(&account(base)));
            let Some((other, password)) = same.copied() else {
                let accounts = upstream.addresses().map(account);
                known.extend(accounts.map(|account| (account, (upstream, &login.password))));
                continue;
            };
            let is_other = match (password.read(), login.password.read()) {
                (Ok(one), Ok(other)) => one != other,
                _ => false, // reported already
            };
            if *password == login.password || !is_other {
                continue;
            }
            let reason = format!(
                "is not the password of upstream \"{}\", which logs in as the same user there",
                other.name
            );
            self.found.push(FoundProblem {
                problem: Problem {
                    line: None,
                    key: format!("upstream.{}.login.password", upstream.name),
                    reason,
                    suggestion: Some("use one source for both, or another user".to_owned()),
                },
                is_made_at_start: false,
            });
        }
    }

    fn seal(&mut self) -> Option<Option<Arc<SealingKeys>>> {
        match seal(&self.config.store) {
            Ok(seal) => return Some(seal),
            Err(Error::SealKey { key, source }) => self.note(format!("store.{key}"), &source),
            Err(error) => self.note("store".to_owned(), &error),
        }
        None
    }
}

/// Secrets that are read later, when they are needed.
fn secrets(config: &Config) -> Vec<(String, &SecretSource)> {
    let mut all = Vec::new();
    for upstream in &config.upstreams {
        if let Some(login) = &upstream.login {
            let key = format!("upstream.{}.login.password", upstream.name);
            all.push((key, &login.password));
        }
    }
    if let Some(token) = &config.operator.token {
        all.push(("operator.token".to_owned(), token));
    }
    all
}

/// The file that could not be read because it does not exist.
fn missing_file<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Path> {
    std::iter::once(error)
        .chain(causes(error))
        .find_map(|error| {
            let (path, source) = if let Some(error) = error.downcast_ref() {
                match error {
                    listener::Error::Unreadable { path, source } => (path, source),
                    _ => return None,
                }
            } else if let Some(error) = error.downcast_ref() {
                match error {
                    TrustError::Unreadable { path, source } => (path, source),
                    _ => return None,
                }
            } else if let Some(error) = error.downcast_ref() {
                match error {
                    ClientCertificateError::Unreadable { path, source } => (path, source),
                    _ => return None,
                }
            } else {
                match error.downcast_ref()? {
                    secret::Error::Unreadable { path, source } => (path, source),
                    _ => return None,
                }
            };
            (source.kind() == ErrorKind::NotFound).then_some(path.as_path())
        })
}
