//! What a reload changes, and which changes wait for a restart.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Config, DirectoryKind, Route, UpstreamConfig};

/// One changed section or key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// A section or key, such as `drain` or `route.messages.send`.
    pub key: String,
    /// False: takes effect at restart.
    pub reloadable: bool,
}

impl Config {
    /// What differs in `new`. Empty exactly when the two are equal.
    pub fn differences(&self, new: &Self) -> Vec<Difference> {
        let mut found = DifferenceList::default();
        self.at_restart(new, &mut found);
        self.at_once(new, &mut found);
        if found.0.is_empty() && self != new {
            found.note("config", true, true);
        }
        found.0
    }

    /// Sockets are bound, threads started and the log opened once.
    fn at_restart(&self, new: &Self, found: &mut DifferenceList) {
        found.note("workers", self.workers != new.workers, false);
        let operator = self.operator.address != new.operator.address;
        found.note("operator.address", operator, false);
        found.note("emulator", self.emulator != new.emulator, false);
        found.note("store", self.store != new.store, false);
        found.note("log.format", self.log.format != new.log.format, false);
        let directory = self.users.directory != new.users.directory;
        found.note("users.directory", directory, false);
        let slots = self.users.hashing_slots != new.users.hashing_slots;
        found.note("users.hashing_slots", slots, false);
        let bound = |config: &Self| -> Vec<_> {
            let listeners = config.listeners.iter();
            listeners
                .map(|listener| (listener.address, listener.tls.is_some()))
                .collect()
        };
        found.note("listener addresses", bound(self) != bound(new), false);
    }

    fn at_once(&self, new: &Self, found: &mut DifferenceList) {
        found.note("profile", self.profile != new.profile, true);
        for (position, (old, new)) in self.listeners.iter().zip(&new.listeners).enumerate() {
            let key = format!("listener[{position}]");
            found.note(&key, old != new && old.address == new.address, true);
        }
        let log = (&self.log.filter, self.log.access) != (&new.log.filter, new.log.access);
        found.note("log", log, true);
        let token = self.operator.token != new.operator.token;
        found.note("operator.token", token, true);
        self.upstreams(new, found);
        let mut users = new.users.clone();
        users.directory = self.users.directory;
        users.hashing_slots = self.users.hashing_slots;
        found.note("users", self.users != users, true);
        let users_upstream = new.users.directory == DirectoryKind::Upstream
            && self.users_upstream().name != new.users_upstream().name;
        found.note("users.upstream", users_upstream, true);
        found.by_name("api_key", &self.api_keys, &new.api_keys, |key| &key.name);
        self.routes(new, found);
        let (old_limits, new_limits) = (&self.limits, &new.limits);
        found.by_name(
            "limit",
            &old_limits.policies,
            &new_limits.policies,
            |limit| &limit.name,
        );
        let mut limits = new_limits.clone();
        limits.policies.clone_from(&old_limits.policies);
        found.note("limits", *old_limits != limits, true);
        found.note("http", self.http != new.http, true);
        found.note("drain", self.drain != new.drain, true);
    }

    /// Routes of upstreams that are added or removed change with them.
    fn routes(&self, new: &Self, found: &mut DifferenceList) {
        let names = |config: &Self| -> HashSet<Arc<str>> {
            let upstreams = config.upstreams.iter();
            upstreams
                .map(|upstream| Arc::clone(&upstream.name))
                .collect()
        };
        let (old_names, new_names) = (names(self), names(new));
        let stays = |route: &Arc<Route>| {
            old_names.contains(&route.upstream) && new_names.contains(&route.upstream)
        };
        let staying = |config: &Self| -> Vec<Arc<Route>> {
            let routes = config.routes.iter();
            routes.filter(|route| stays(route)).cloned().collect()
        };
        let (old_routes, new_routes) = (staying(self), staying(new));
        found.by_name("route", &old_routes, &new_routes, |route| &route.name);
    }

    fn upstreams(&self, new: &Self, found: &mut DifferenceList) {
        let before = found.0.len();
        for upstream in &new.upstreams {
            match named(&self.upstreams, &upstream.name) {
                Some(old) => upstream_keys(old, upstream, found),
                None => found.note(&format!("upstream.{}", upstream.name), true, true),
            }
        }
        for gone in &self.upstreams {
            let is_gone = named(&new.upstreams, &gone.name).is_none();
            found.note(&format!("upstream.{}", gone.name), is_gone, true);
        }
        if found.0.len() == before {
            found.note("upstream", self.upstreams != new.upstreams, true);
        }
    }
}

fn named<'a>(upstreams: &'a [UpstreamConfig], name: &str) -> Option<&'a UpstreamConfig> {
    upstreams.iter().find(|upstream| *upstream.name == *name)
}

/// The keys by which two settings of one upstream differ.
fn upstream_keys(old: &UpstreamConfig, new: &UpstreamConfig, found: &mut DifferenceList) {
    let mut note = |key: &str, differs| {
        found.note(&format!("upstream.{}.{key}", new.name), differs, true);
    };
    note("url", old.base != new.base);
    note("endpoints", old.more_endpoints != new.more_endpoints);
    let (before, after) = (&old.endpoint_policy, &new.endpoint_policy);
    note("resolve", before.resolution != after.resolution);
    note("affinity", before.affinity != after.affinity);
    note("health_check", before.health_check != after.health_check);
    note("ejection", before.ejection != after.ejection);
    note("slow_start", before.slow_start != after.slow_start);
    note("retry_share", before.retry_share != after.retry_share);
    note("host", old.host != new.host);
    note(
        "trust",
        old.trust != new.trust || old.server_name != new.server_name,
    );
    let certificate = old.client_certificate != new.client_certificate;
    note("client_certificate", certificate);
    note("proxy", old.proxy != new.proxy);
    note("http2", old.http2 != new.http2);
    note("login", old.login != new.login);
    note("api_key", old.api_key != new.api_key);
    note("concurrency", old.concurrency != new.concurrency);
    let stalled = old.stalled_streams != new.stalled_streams;
    note("stalled_streams", stalled);
    let waits = |upstream: &UpstreamConfig| {
        [
            upstream.queue_timeout,
            upstream.idle_timeout,
            upstream.connect_timeout,
            upstream.first_byte_timeout,
            upstream.body_idle_timeout,
        ]
    };
    note("timeouts", waits(old) != waits(new));
    note("replay_limit", old.replay_limit != new.replay_limit);
    note("probe", old.probe != new.probe);
    note("required", old.required != new.required);
}

#[derive(Default)]
struct DifferenceList(Vec<Difference>);

impl DifferenceList {
    fn note(&mut self, key: &str, differs: bool, reloadable: bool) {
        if differs {
            self.0.push(Difference {
                key: key.to_owned(),
                reloadable,
            });
        }
    }

    fn by_name<T: PartialEq>(
        &mut self,
        list: &str,
        old: &[T],
        new: &[T],
        name: fn(&T) -> &Arc<str>,
    ) {
        let before = self.0.len();
        let grouped = |items: &'_ [T]| -> HashMap<Arc<str>, Vec<usize>> {
            let mut groups: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
            for (position, item) in items.iter().enumerate() {
                let group = groups.entry(Arc::clone(name(item))).or_default();
                group.push(position);
            }
            groups
        };
        let (old_groups, new_groups) = (grouped(old), grouped(new));
        let mut seen = HashSet::new();
        for item in old.iter().chain(new) {
            let name = name(item);
            if !seen.insert(Arc::clone(name)) {
                continue;
            }
            let of = |groups: &HashMap<Arc<str>, Vec<usize>>| -> Vec<usize> {
                groups.get(name).cloned().unwrap_or_default()
            };
            let here = of(&old_groups).into_iter().map(|at| &old[at]);
            let there = of(&new_groups).into_iter().map(|at| &new[at]);
            self.note(&format!("{list}.{name}"), !here.eq(there), true);
        }
        // Only the order differs, which decides between routes.
        if self.0.len() == before {
            self.note(list, old != new, true);
        }
    }
}
