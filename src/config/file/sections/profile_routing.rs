//! `hosts` and `path_prefix` of an upstream: where the profile's routes answer for it.

use std::sync::Arc;

use super::route_values::{host, prefix};
use crate::config::file::config_table::ConfigTable;
use crate::config::file::value_readers::many;
use crate::config::{PathPrefix, ProfileRouting};
use crate::profiles::Profile;

/// The upstreams of the file, as far as routes need to know them.
#[derive(Debug, Default)]
pub(in crate::config::file) struct UpstreamNames {
    /// In the order of `Config::upstreams`.
    pub(in crate::config::file) names: Vec<Arc<str>>,
    /// Those that the profile's routes lead to.
    pub(in crate::config::file) routings: Vec<ProfileRouting>,
    /// Those whose hosts or prefix are wrong: it is not known where they answer.
    misread: Vec<Arc<str>>,
}

impl UpstreamNames {
    /// Reads the keys of one upstream. `is_only`: there is no other, so the profile's routes lead to it
    /// at any host and path unless the keys say otherwise.
    pub(super) fn read(
        &mut self,
        name: &str,
        table: &ConfigTable<'_>,
        profile: &Profile,
        is_only: bool,
    ) {
        let name: Arc<str> = Arc::from(name);
        let routing = ProfileRouting {
            upstream: Arc::clone(&name),
            hosts: Arc::from(table.or("hosts", many(host), Vec::new())),
            path_prefix: table.read("path_prefix", prefix),
        };
        let is_wrong = |key| table.has_problem(key);
        if is_wrong("hosts") || is_wrong("path_prefix") {
            self.misread.push(Arc::clone(&name));
        }
        self.names.push(name);
        if !is_only && !table.has("hosts") && !table.has("path_prefix") {
            return;
        }
        if !profile.routes.is_empty() {
            self.complain_if_shared(table, &routing);
        }
        self.routings.push(routing);
    }

    fn complain_if_shared(&self, table: &ConfigTable<'_>, new: &ProfileRouting) {
        let is_read = |routing: &ProfileRouting| !self.misread.contains(&routing.upstream);
        let mut others = self.routings.iter().filter(|other| is_read(other));
        let Some(other) = others.find(|other| is_read(new) && is_shared(other, new)) else {
            return;
        };
        let key = if table.has("hosts") {
            "hosts"
        } else {
            "path_prefix"
        };
        let reason = format!(
            "is where upstream \"{}\" answers already: its routes would get no request",
            other.upstream
        );
        table.complain(key, &reason, "give each its own hosts or path_prefix");
    }
}

/// Whether some request fits both equally well.
fn is_shared(one: &ProfileRouting, other: &ProfileRouting) -> bool {
    let length = |routing: &ProfileRouting| routing.path_prefix.as_ref().map_or(0, PathPrefix::len);
    let same_path = match (&one.path_prefix, &other.path_prefix) {
        (Some(one), Some(other)) => one == other,
        _ => length(one) == length(other),
    };
    let same_host = match (&*one.hosts, &*other.hosts) {
        ([], []) => true,
        (hosts, others) => hosts.iter().any(|host| others.contains(host)),
    };
    same_path && same_host
}
