//! `[[route]]` and `close`: the route table as the operator changes it.

use std::sync::Arc;
use std::time::Duration;

use super::http_section::allow_fields;
use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::value_readers::{
    flag, many, method, name, pattern, size, some, span, span_or_none,
};
use crate::config::file::value_readers::{text, word};
use crate::config::problem::nearest;
use crate::config::shipped::shipped_routes;
use crate::config::{Access, AllowedFields, DirectoryKind, PathPattern, Route, Target, UsersCall};
use crate::profiles::{Profile, Role};

/// What `target` may say.
#[derive(Clone, Copy)]
enum TargetWord {
    Upstream,
    UsersNode(UsersCall),
    Closed,
}

impl TargetWord {
    fn target(self, upstream: &Arc<str>) -> Target {
        match self {
            Self::Upstream => Target::Upstream(Arc::clone(upstream)),
            Self::UsersNode(call) => Target::UsersNode(call),
            Self::Closed => Target::Closed,
        }
    }
}

const TARGETS: &[(&str, TargetWord)] = &[
    ("upstream", TargetWord::Upstream),
    ("closed", TargetWord::Closed),
    ("users.login", TargetWord::UsersNode(UsersCall::Login)),
    ("users.logout", TargetWord::UsersNode(UsersCall::Logout)),
    ("users.create", TargetWord::UsersNode(UsersCall::Create)),
    ("users.show", TargetWord::UsersNode(UsersCall::Show)),
    ("users.change", TargetWord::UsersNode(UsersCall::Change)),
    ("users.delete", TargetWord::UsersNode(UsersCall::Delete)),
];

const ACCESS: &[(&str, Access)] = &[
    ("open", Access::Open),
    ("token", Access::Token),
    ("user", Access::Role(Role::User)),
    ("admin", Access::Role(Role::Admin)),
    ("api_key", Access::ApiKey),
];

/// In match order: the file's own, then the profile's with the file's changes. `upstream` is the name of
/// the upstream that they lead to.
pub(in crate::config::file) fn routes(
    root: &ConfigTable<'_>,
    profile: &Profile,
    directory: DirectoryKind,
    allowed: &AllowedFields,
    upstream: &Arc<str>,
) -> Vec<Route> {
    let mut shipped = shipped_routes(profile, upstream);
    for route in &mut shipped {
        route.allow_fields = allowed.clone();
    }
    if directory == DirectoryKind::Upstream {
        shipped.iter_mut().for_each(leave_roles_to_upstream);
    }
    let mut own: Vec<Route> = Vec::new();
    let mut seen: Vec<Arc<str>> = Vec::new();
    for table in root.sections("route") {
        let Some(name) = table.required("name", name, "\"my.route\"") else {
            table.leave_unread();
            continue;
        };
        let name: Arc<str> = Arc::from(name);
        if seen.contains(&name) {
            table.complain("name", &format!("\"{name}\" is taken by a route above"), "");
        }
        seen.push(Arc::clone(&name));
        if let Some(place) = shipped.iter_mut().find(|route| route.name == name) {
            *place = changed(&table, place.clone(), upstream);
        } else if let Some(route) = added(&table, &name, &shipped, allowed, upstream) {
            warn_if_hidden(&table, &route, &own);
            own.push(route);
        }
    }
    own.append(&mut shipped);
    close(root, &mut own);
    own
}

/// The upstream knows the roles of its own users and checks them; a token that the gateway has
/// learned from a login says nothing about roles.
fn leave_roles_to_upstream(route: &mut Route) {
    if route.access == [Access::Role(Role::Admin)] {
        route.access.insert(0, Access::Token);
    }
}

fn added(
    table: &ConfigTable<'_>,
    name: &Arc<str>,
    shipped: &[Route],
    allowed: &AllowedFields,
    upstream: &Arc<str>,
) -> Option<Route> {
    let Some(path) = table.value("path") else {
        let names = shipped.iter().map(|route| route.name.as_ref());
        let meant = nearest(name, names).map(|meant| format!("did you mean route \"{meant}\"?"));
        let suggestion = meant.unwrap_or_else(|| "add path = \"/...\"".to_owned());
        table.complain(
            "path",
            "is missing: no shipped route has this name",
            &suggestion,
        );
        let route = plain(name, PathPattern(Vec::new()), upstream);
        changed(table, route, upstream);
        return None;
    };
    let path = pattern(&path);
    let pattern = path.clone().unwrap_or(PathPattern(Vec::new()));
    let mut route = plain(name, pattern, upstream);
    route.allow_fields = allowed.clone();
    let route = changed(table, route, upstream);
    path.map(|path| Route { path, ..route })
}

/// The defaults of a route with this path.
fn plain(name: &Arc<str>, path: PathPattern, upstream: &Arc<str>) -> Route {
    Route {
        name: Arc::clone(name),
        hosts: Vec::new(),
        path,
        methods: Vec::new(),
        access: vec![Access::Token],
        target: Target::Upstream(Arc::clone(upstream)),
        class: Arc::from("other"),
        monitoring: false,
        max_body: 1 << 20,
        first_byte_timeout: None,
        timeout: Duration::from_secs(60),
        max_wait: Duration::ZERO,
        allow_fields: AllowedFields::default(),
    }
}

/// `route` with the keys of `table`.
fn changed(table: &ConfigTable<'_>, route: Route, upstream: &Arc<str>) -> Route {
    let path = match table.value("path") {
        // Reported already by `added`.
        Some(_) if route.path.0.is_empty() => route.path,
        Some(path) => pattern(&path).unwrap_or(route.path),
        None => route.path,
    };
    let class = table.read("class", name).map(Arc::from);
    let changed = Route {
        hosts: table.or("host", many(host), route.hosts),
        methods: table.or("methods", many(method), route.methods),
        access: table.or("access", some(word(ACCESS)), route.access),
        target: match table.read("target", word(TARGETS)) {
            Some(word) => word.target(upstream),
            None => route.target,
        },
        class: class.unwrap_or(route.class),
        monitoring: table.or("monitoring", flag, route.monitoring),
        max_body: table.or("max_body", size(0..=1 << 40), route.max_body),
        first_byte_timeout: table
            .read("first_byte_timeout", span)
            .or(route.first_byte_timeout),
        timeout: table.or("timeout", span, route.timeout),
        max_wait: table.or("max_wait", span_or_none, route.max_wait),
        allow_fields: allow_fields(table).unwrap_or(route.allow_fields),
        name: route.name,
        path,
    };
    let first_byte = changed.first_byte_timeout.unwrap_or_default();
    if first_byte > changed.timeout {
        let key = if table.has("timeout") {
            "timeout"
        } else {
            "first_byte_timeout"
        };
        table.complain(
            key,
            "leaves less time for the whole response than for its first byte",
            "",
        );
    }
    if changed.max_wait >= changed.timeout {
        table.complain(
            "max_wait",
            "leaves no time for the request itself",
            "below timeout",
        );
    }
    changed
}

fn host(value: &ConfigValue<'_>) -> Option<String> {
    let host = text(value)?.to_ascii_lowercase();
    let name = host.strip_prefix("*.").unwrap_or(&host);
    let letter = |letter: u8| letter.is_ascii_alphanumeric() || b"-._:[]".contains(&letter);
    let good = !name.starts_with('.') && name.bytes().all(letter);
    // `*.example.org:8443` or `example.org:8443`; an IPv6 address keeps its brackets.
    let has_port = name
        .rsplit_once(':')
        .is_some_and(|(name, _)| !name.contains('['));
    if !good || has_port || name.is_empty() {
        value.complain(
            "must be a host name without port",
            "such as \"*.example.org\"",
        );
        return None;
    }
    Some(host)
}

/// A route below another with the same path, host and methods gets no request.
fn warn_if_hidden(table: &ConfigTable<'_>, route: &Route, above: &[Route]) {
    let covers = |other: &&Route| {
        other.path == route.path
            && (other.hosts.is_empty() || other.hosts == route.hosts)
            && (other.methods.is_empty()
                || !route.methods.is_empty()
                    && route
                        .methods
                        .iter()
                        .all(|method| other.methods.contains(method)))
    };
    if let Some(other) = above.iter().find(covers) {
        let reason = format!(
            "is never reached: route \"{}\" above takes it all",
            other.name
        );
        table.warn("path", &reason, "the first match wins: put it above");
    }
}

/// `close = ["groups.*"]`: routes by name; a `*` at the end stands for any rest.
fn close(root: &ConfigTable<'_>, routes: &mut [Route]) {
    let Some(value) = root.value("close") else {
        return;
    };
    let patterns = if matches!(value.inner, toml::de::DeValue::String(_)) {
        vec![value]
    } else {
        value.items().unwrap_or_default()
    };
    for value in patterns {
        let Some(wanted) = text(&value) else {
            continue;
        };
        let fits = |name: &str| match wanted.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == wanted,
        };
        let mut found = false;
        for route in routes.iter_mut().filter(|route| fits(&route.name)) {
            route.target = Target::Closed;
            found = true;
        }
        if !found {
            let names = routes.iter().map(|route| route.name.as_ref());
            let meant = nearest(&wanted, names).map(|meant| format!("did you mean \"{meant}\"?"));
            let suggestion = meant.unwrap_or_else(|| "tollgate check lists all routes".to_owned());
            value.complain("names no route", &suggestion);
        }
    }
}
