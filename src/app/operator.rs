//! What the operator's listener reads of the running parts.

use std::sync::Arc;

use super::ControlParts;
use crate::admin;
use crate::config::UnknownTokens;
use crate::pipeline::LiveRules;
use crate::upstream::{ProbeTrust, Upstream};

impl ControlParts {
    pub(super) fn for_operator(&self) -> admin::AdminParts {
        admin::AdminParts {
            refresh: self.refresh(),
            ready: self.ready(),
            notes: self.notes(),
            keys: self.key_desk(),
            users: admin::UserAdmin {
                users: self.shared.users.clone(),
                tokens: Arc::clone(&self.shared.tokens),
            },
            endpoints: self.endpoints(),
        }
    }

    fn key_desk(&self) -> admin::KeyAdmin {
        let shared = Arc::clone(&self.shared);
        admin::KeyAdmin {
            token: Arc::new({
                let shared = Arc::clone(&shared);
                move || shared.live.load().config.operator.token.clone()
            }),
            ring: Arc::clone(&shared.live.load().ring),
            configured: Arc::new(move || {
                let live = shared.live.load();
                let keys = live.config.api_keys.iter();
                keys.map(|key| live.keys.listed(key)).collect()
            }),
            upstreams: self.upstream_names(),
        }
    }

    fn upstream_names(&self) -> Arc<dyn Fn() -> Vec<Arc<str>> + Send + Sync> {
        let shared = Arc::clone(&self.shared);
        Arc::new(move || {
            let live = shared.live.load();
            let upstreams = live.upstreams.iter();
            upstreams
                .map(|upstream| Arc::clone(&upstream.name))
                .collect()
        })
    }

    fn endpoints(&self) -> admin::EndpointAdmin {
        let shared = Arc::clone(&self.shared);
        admin::EndpointAdmin {
            upstreams: Arc::new(move || {
                let live = shared.live.load();
                let upstreams = live.upstreams.iter();
                upstreams
                    .map(|upstream| Arc::clone(upstream.endpoints()))
                    .collect()
            }),
        }
    }

    /// Sets the gauges that are computed just before a scrape.
    fn refresh(&self) -> Arc<dyn Fn() + Send + Sync> {
        let shared = Arc::clone(&self.shared);
        let ready = self.ready();
        let tasks = self.control.tasks.clone();
        Arc::new(move || {
            let panics = i64::try_from(tasks.failed()).unwrap_or(i64::MAX);
            shared.metrics.task_panics.set(panics);
            let live = shared.live.load();
            for upstream in &live.upstreams {
                upstream.refresh_gauges();
            }
            live.limiter.refresh_gauges();
            shared.metrics.ready.set(i64::from(ready().is_ok()));
        })
    }

    /// Whether the next request would succeed, and if not, why.
    fn ready(&self) -> Arc<dyn Fn() -> Result<(), String> + Send + Sync> {
        let shared = Arc::clone(&self.shared);
        let readiness = self.readiness.clone();
        Arc::new(move || {
            if !readiness.is_ready() {
                return Err("starting or draining".to_owned());
            }
            if !shared.tokens.is_trusted() {
                return Err("store: away for longer than stale_for".to_owned());
            }
            let live = shared.live.load();
            let reasons = unready_upstreams(&live, true);
            match reasons.is_empty() {
                true => Ok(()),
                false => Err(reasons.join("\n")),
            }
        })
    }

    /// Problems that do not keep the next request from succeeding.
    fn notes(&self) -> Arc<dyn Fn() -> Option<String> + Send + Sync> {
        let shared = Arc::clone(&self.shared);
        let pending = self.pending.clone();
        Arc::new(move || {
            let store = shared.tokens.trouble().map(|trouble| {
                format!("store: {trouble}; logins, logouts and changes are refused")
            });
            let warning = shared.tokens.warning();
            let warning = warning.map(|warning| format!("store: {warning}"));
            let live = shared.live.load();
            let upstreams = || live.upstreams.iter();
            let keys = upstreams().filter_map(|upstream| upstream.api_key_trouble());
            let endpoints = upstreams().flat_map(|upstream| upstream.endpoints().notes());
            let logins = upstreams().flat_map(|upstream| upstream.login_notes());
            let notes: Vec<String> = [store, warning, probe_note(&live)]
                .into_iter()
                .flatten()
                .chain(keys)
                .chain(endpoints)
                .chain(logins)
                .chain(unready_upstreams(&live, false))
                .chain(pending.notes())
                .collect();
            (!notes.is_empty()).then(|| notes.join("\n"))
        })
    }
}

/// Why requests would fail, of the upstreams that are required, or of those that are not.
fn unready_upstreams(live: &LiveRules, required: bool) -> Vec<String> {
    let has_several = live.upstreams.len() > 1;
    let all = live.config.upstreams.iter().zip(&live.upstreams);
    let of_kind = all.filter(|(settings, _)| settings.required == required);
    of_kind
        .flat_map(|(_, upstream)| unready(upstream, has_several))
        .collect()
}

/// Why the next request to this upstream would fail.
fn unready(upstream: &Upstream, is_named: bool) -> impl Iterator<Item = String> {
    let outage = upstream.endpoints().outage();
    let mut unready = upstream.sessions().filter(|session| !session.is_ready());
    let no_login = unready.next().filter(|_| !upstream.is_logged_in());
    let outage = outage.map(|outage| outage.to_string());
    let no_login = no_login.map(|session| {
        let status = session.status().to_string();
        match status.strip_prefix("upstream ").filter(|_| is_named) {
            Some(status) => format!("upstream {}: {status}", upstream.name),
            None => status,
        }
    });
    outage.into_iter().chain(no_login)
}

/// Why unknown tokens are not checked at the upstream, where they should be.
fn probe_note(live: &LiveRules) -> Option<String> {
    let is_asking = live.config.users.unknown_tokens == UnknownTokens::Ask;
    let probe = live.users_upstream().probe().filter(|_| is_asking)?;
    let path = probe.path();
    match probe.trust() {
        ProbeTrust::Discriminates => None,
        ProbeTrust::PassesAnything => Some(format!(
            "probe: {path} accepts made-up tokens; unknown tokens are rejected, not asked about"
        )),
        ProbeTrust::Unknown => Some(format!(
            "probe: {path} has not refused a made-up token yet; unknown tokens get 503"
        )),
    }
}
