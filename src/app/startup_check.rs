//! `tollgate check`: whether a start could use the configuration, and with `--connect` whether the
//! upstream and the store can be reached. Nothing is bound, nothing is changed.

use futures_util::stream::{self, StreamExt as _};
use tokio::runtime::Handle;

use super::prepare::{self, PreparedParts};
use crate::clock;
use crate::config::{self, Config, Login, Problem, StorePlace};
use crate::error_chain::chain;
use crate::lifecycle::TaskScope;
use crate::metrics::Metrics;
use crate::store::shared::{self, EvictionFound};
use crate::store::{self, StoreLook};
use crate::upstream::{
    CertificateDates, ProbeTrust, ReachedEndpoint, TriedLogin, UpstreamMaterials, UpstreamTrial,
};

/// Upstreams that are tried at the same time: one that hangs takes its time alone.
const AT_ONCE: usize = 16;

/// The result of one check, in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckResult {
    Good {
        key: String,
        text: String,
    },
    /// Does not prevent a start.
    Odd(Problem),
    Wrong(Problem),
}

impl CheckResult {
    fn good(key: &str, text: String) -> Self {
        let key = key.to_owned();
        Self::Good { key, text }
    }

    fn problem(key: &str, reason: String, suggestion: &str) -> Problem {
        Problem {
            line: None,
            key: key.to_owned(),
            reason,
            suggestion: (!suggestion.is_empty()).then(|| suggestion.to_owned()),
        }
    }

    fn wrong(key: &str, reason: String) -> Self {
        Self::Wrong(Self::problem(key, reason, ""))
    }

    fn odd(key: &str, reason: &str, suggestion: &str) -> Self {
        Self::Odd(Self::problem(key, reason.to_owned(), suggestion))
    }
}

/// Whether a start could use this configuration, without the network.
pub fn check(config: &Config) -> Vec<CheckResult> {
    let metrics = Metrics::new();
    let problems = prepare::problems(config, &metrics);
    let mut found: Vec<_> = problems.into_iter().map(CheckResult::Wrong).collect();
    found.extend(config.upstreams.iter().filter_map(check_certificate));
    if let StorePlace::File(path) = &config.store.place {
        found.extend(match store::look(path) {
            Ok(StoreLook::Good | StoreLook::Missing) => None,
            Ok(StoreLook::InUse) => Some(CheckResult::odd(
                "store.path",
                "is in use: a gate runs with it now, and no second one can",
                "",
            )),
            Ok(StoreLook::NotClosed) => Some(CheckResult::odd(
                "store.path",
                "was not closed by the gate that had it: the next start looks it through first",
                "tollgate store check does so now",
            )),
            Err(error) => Some(CheckResult::wrong("store.path", chain(&error))),
        });
    }
    found
}

/// Whether the upstream and the store can be reached and accept the credentials. Spends a login
/// at the upstream.
pub async fn check_connections(config: &Config) -> Vec<CheckResult> {
    let mut found = Vec::new();
    let scope = TaskScope::new(Handle::current());
    found.extend(check_upstreams(config, &scope).await);
    if let StorePlace::Shared(settings) = &config.store.place {
        found.push(check_store(settings).await);
    }
    scope.stop.abort();
    found
}

/// The gate's own certificate at an upstream, if it is not valid now.
fn check_certificate(settings: &config::UpstreamConfig) -> Option<CheckResult> {
    // Files that cannot be used are reported already.
    let materials = UpstreamMaterials::read(settings, &mut Vec::new())?;
    let key = format!("upstream.{}.client_certificate", settings.name);
    match materials.certificate_dates(clock::unix_seconds())? {
        CertificateDates::Valid { .. } => None,
        dates => Some(CheckResult::odd(&key, &dates.to_string(), "")),
    }
}

async fn check_store(settings: &config::SharedStoreConfig) -> CheckResult {
    match shared::reach(settings).await {
        Ok(EvictionFound::Evicts(server)) if settings.allow_eviction => {
            let suggestion = "allow_eviction accepts it";
            CheckResult::odd("store.url", &server.to_string(), suggestion)
        }
        Ok(EvictionFound::Evicts(server)) => CheckResult::wrong("store.url", server.to_string()),
        Ok(EvictionFound::Hidden(server)) => CheckResult::odd(
            "store.url",
            &format!("{server} does not tell whether it evicts keys"),
            "the gate's ACL user needs +info, in a cluster +cluster|slots",
        ),
        Ok(EvictionFound::Keeps | EvictionFound::NotAsked) => {
            CheckResult::good("store.url", format!("{settings} answers"))
        }
        Err(error) => CheckResult::wrong("store.url", chain(&error)),
    }
}

/// The results in the order of the upstreams.
async fn check_upstreams(config: &Config, scope: &TaskScope) -> Vec<CheckResult> {
    let metrics = Metrics::new();
    // `check` has reported all other problems before.
    let Ok(PreparedParts { upstreams, .. }) = prepare::prepare(config, None, &metrics) else {
        let untried = |settings: &config::UpstreamConfig| {
            let key = format!("upstream.{}", settings.name);
            let reason = "was not tried: the first start makes files that it needs";
            CheckResult::odd(&key, reason, "")
        };
        return config.upstreams.iter().map(untried).collect();
    };
    let (metrics, settings) = (&metrics, config.upstreams.iter());
    let checks = settings
        .zip(upstreams)
        .map(|(settings, materials)| async move {
            let trial = UpstreamTrial::new(settings, materials, scope, metrics);
            match trial.await {
                Ok(trial) => check_upstream(settings, &trial).await,
                Err(error) => {
                    let key = format!("upstream.{}.{}", settings.name, error.key());
                    vec![CheckResult::wrong(&key, chain(&error))]
                }
            }
        });
    let found: Vec<_> = stream::iter(checks).buffered(AT_ONCE).collect().await;
    found.into_iter().flatten().collect()
}

/// That an endpoint can be reached, and how.
fn in_words(settings: &config::UpstreamConfig, endpoint: &str) -> String {
    let trusted = match settings.base.tls {
        true => ", its certificate is trusted",
        false => "",
    };
    let through = match &settings.proxy {
        Some(proxy) => format!(" through proxy {proxy}"),
        None => String::new(),
    };
    format!("{endpoint} is there{through}{trusted}")
}

async fn check_upstream(
    settings: &config::UpstreamConfig,
    trial: &UpstreamTrial,
) -> Vec<CheckResult> {
    let mut found = Vec::new();
    let section = format!("upstream.{}", settings.name);
    let key = match settings.more_endpoints.is_empty() {
        true => format!("{section}.url"),
        false => format!("{section}.endpoints"),
    };
    let reached = trial.reach().await;
    let can_be_reached = reached.iter().any(|one| one.outcome.is_ok());
    for ReachedEndpoint { endpoint, outcome } in reached {
        let error = match outcome {
            Ok(()) => {
                found.push(CheckResult::good(&key, in_words(settings, &endpoint)));
                continue;
            }
            Err(error) => error,
        };
        let key = match error.key() {
            "url" => key.clone(),
            other => format!("{section}.{other}"),
        };
        let text = match settings.has_endpoints() {
            true => format!("{endpoint}: {}", chain(&error)),
            false => chain(&error),
        };
        found.push(match can_be_reached {
            true => CheckResult::odd(&key, &text, "the other endpoints get its requests"),
            false => CheckResult::wrong(&key, text),
        });
    }
    if !can_be_reached {
        return found;
    }
    if let Some(login) = &settings.login {
        found.extend(check_login(trial, login, &format!("{section}.login")).await);
    }
    if trial.probe_trust().await == Some(ProbeTrust::PassesAnything) {
        found.push(CheckResult::odd(
            &format!("{section}.probe"),
            "accepts made-up tokens: nothing can be learned about a token there",
            "name a path that only good tokens open",
        ));
    }
    found
}

async fn check_login(trial: &UpstreamTrial, login: &Login, key: &str) -> Vec<CheckResult> {
    if login.single_active_token {
        let reason =
            "was not tried: with single_active_token it would end the token of a gate that runs";
        return vec![CheckResult::odd(key, reason, "")];
    }
    let tried = trial.log_in(login).await;
    let is_one_good = tried.iter().any(|tried| tried.outcome.is_ok());
    let results = tried.iter();
    results
        .map(|tried| login_result(tried, is_one_good, login, key))
        .collect()
}

/// `is_one_good`: another endpoint would get the requests.
fn login_result(tried: &TriedLogin, is_one_good: bool, login: &Login, key: &str) -> CheckResult {
    let place = match &tried.endpoint {
        Some(endpoint) => format!("endpoint {endpoint}"),
        None => "the upstream".to_owned(),
    };
    match &tried.outcome {
        Ok(left) => CheckResult::good(
            key,
            format!(
                "\"{}\" is let in, for {} s; this was one login at {place}, its token is not kept",
                login.username,
                left.as_secs()
            ),
        ),
        Err(error) if is_one_good => {
            let text = format!("{place}: {}", chain(error));
            CheckResult::odd(key, &text, "the other endpoints get its requests")
        }
        Err(error) if tried.endpoint.is_some() => {
            CheckResult::wrong(key, format!("{place}: {}", chain(error)))
        }
        Err(error) => CheckResult::wrong(key, chain(error)),
    }
}
