//! `[[route]]` and `close`: the route table as the operator changes it.

use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::hidden_routes::{report_if_hidden, report_unreached_upstreams};
use super::http_section::allow_fields;
use super::profile_routing::UpstreamNames;
use super::route_values::{host, prefix, upstream};
use crate::config::file::config_table::ConfigTable;
use crate::config::file::value_readers::{
    flag, many, method, name, pattern, size, some, span, span_or_none,
};
use crate::config::file::value_readers::{text, word};
use crate::config::problem::nearest;
use crate::config::shipped::shipped_routes;
use crate::config::{Access, AllowedFields, PathPattern, PathPrefix, Route, Target, UsersCall};
use crate::profiles::{Profile, Role};

const TARGETS: &[(&str, Target)] = &[
    ("upstream", Target::Upstream),
    ("closed", Target::Closed),
    ("users.login", Target::UsersNode(UsersCall::Login)),
    ("users.logout", Target::UsersNode(UsersCall::Logout)),
    ("users.create", Target::UsersNode(UsersCall::Create)),
    ("users.show", Target::UsersNode(UsersCall::Show)),
    ("users.change", Target::UsersNode(UsersCall::Change)),
    ("users.delete", Target::UsersNode(UsersCall::Delete)),
];

const ACCESS: &[(&str, Access)] = &[
    ("open", Access::Open),
    ("token", Access::Token),
    ("user", Access::Role(Role::User)),
    ("admin", Access::Role(Role::Admin)),
    ("api_key", Access::ApiKey),
];

/// In match order: the file's own, then the profile's with the file's changes. `relayed`: the upstream
/// that has the users, if one has.
pub(in crate::config::file) fn routes(
    root: &ConfigTable<'_>,
    profile: &Profile,
    relayed: Option<&Arc<str>>,
    allowed: &AllowedFields,
    upstreams: &UpstreamNames,
) -> Vec<Route> {
    let mut shipped = shipped_routes(profile, &upstreams.routings);
    for route in &mut shipped {
        route.allow_fields = allowed.clone();
        if Some(&route.upstream) == relayed {
            leave_roles_to_upstream(route);
        }
    }
    let mut own: Vec<Route> = Vec::new();
    let mut seen: Vec<RouteName> = Vec::new();
    for table in root.sections("route") {
        let Some(name) = table.required("name", name, "\"my.route\"") else {
            table.leave_unread();
            continue;
        };
        let named = table.read("upstream", |value| upstream(value, &upstreams.names));
        let name = RouteName {
            name: Arc::from(name),
            upstream: named.map(|position| Arc::clone(&upstreams.names[position])),
        };
        let is_shipped = shipped.iter().any(|route| name.is_of(route));
        let is_taken = |other: &RouteName| match is_shipped {
            true => name.overlaps(other),
            false => name.name == other.name,
        };
        if seen.iter().any(is_taken) {
            let reason = format!("\"{}\" is taken by a route above", name.name);
            table.complain("name", &reason, "");
        }
        if is_shipped {
            override_shipped(&table, &name, &mut shipped);
        } else if let Some(route) = added(&table, &name, &shipped, allowed, upstreams) {
            report_if_hidden(&table, &route, &own);
            own.push(route);
        }
        seen.push(name);
    }
    report_unreached_upstreams(root, &own, &shipped);
    own.append(&mut shipped);
    close(root, &mut own);
    own
}

/// The keys `name` and `upstream` of a route.
struct RouteName {
    name: Arc<str>,
    /// None: of a shipped route, those of all upstreams.
    upstream: Option<Arc<str>>,
}

impl RouteName {
    fn is_of(&self, route: &Route) -> bool {
        let is_same = |upstream: &Arc<str>| *upstream == route.upstream;
        self.name == route.name && self.upstream.as_ref().is_none_or(is_same)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (one, two) = (&self.upstream, &other.upstream);
        self.name == other.name && (one.is_none() || two.is_none() || one == two)
    }
}

/// The upstream knows the roles of its own users and checks them; a token that the gateway has
/// learned from a login says nothing about roles.
fn leave_roles_to_upstream(route: &mut Route) {
    if *route.access == [Access::Role(Role::Admin)] {
        route.access = Arc::from([Access::Token, Access::Role(Role::Admin)]);
    }
}

/// Changes the shipped routes of this name, one for each upstream that has them.
fn override_shipped(table: &ConfigTable<'_>, name: &RouteName, shipped: &mut [Route]) {
    let keys = RouteKeys::read(table);
    let mut upstreams: Vec<&Arc<str>> = Vec::new();
    for route in shipped.iter_mut().filter(|route| name.is_of(route)) {
        let is_first = upstreams.is_empty();
        *route = keys.applied_to(route.clone());
        if is_first {
            check(table, route);
        }
        if !upstreams.contains(&&route.upstream) {
            upstreams.push(&route.upstream);
        }
    }
    let place = ["hosts", "path"].into_iter().find(|key| table.has(key));
    if let Some(key) = place.filter(|_| upstreams.len() > 1) {
        let reason = "would be the same for the routes of several upstreams";
        let suggestion = format!("name one, such as upstream = \"{}\"", upstreams[0]);
        table.complain(key, reason, &suggestion);
    }
}

fn added(
    table: &ConfigTable<'_>,
    name: &RouteName,
    shipped: &[Route],
    allowed: &AllowedFields,
    upstreams: &UpstreamNames,
) -> Option<Route> {
    let keys = RouteKeys::read(table);
    if !table.has("path") {
        let names = shipped.iter().map(|route| route.name.as_ref());
        let meant = nearest(&name.name, names);
        let meant = meant.map(|meant| format!("did you mean route \"{meant}\"?"));
        let suggestion = meant.unwrap_or_else(|| "add path = \"/...\"".to_owned());
        let reason = "is missing: no shipped route has this name";
        table.complain("path", reason, &suggestion);
    }
    let is_forwarded = keys.target.is_none_or(|target| target == Target::Upstream);
    if is_forwarded && upstreams.names.len() > 1 && !table.has("upstream") {
        let suggestion = format!("such as \"{}\"", upstreams.names[0]);
        table.complain(
            "upstream",
            "is missing: there are several upstreams",
            &suggestion,
        );
    }
    let first = upstreams.names.first().cloned();
    let upstream = name.upstream.clone().or(first);
    let mut route = plain(&name.name, upstream.unwrap_or_else(|| Arc::from("")));
    route.allow_fields = allowed.clone();
    let route = keys.applied_to(route);
    check(table, &route);
    keys.path.is_some().then_some(route)
}

/// The defaults of a route.
fn plain(name: &Arc<str>, upstream: Arc<str>) -> Route {
    Route {
        name: Arc::clone(name),
        hosts: Arc::default(),
        path: PathPattern(Arc::default()),
        strip_prefix: None,
        preserve_host: false,
        methods: Arc::default(),
        access: Arc::from([Access::Token]),
        target: Target::Upstream,
        upstream,
        class: Arc::from("other"),
        monitoring: false,
        max_body: 1 << 20,
        first_byte_timeout: None,
        timeout: Duration::from_secs(60),
        max_wait: Duration::ZERO,
        allow_fields: AllowedFields::default(),
    }
}

/// The keys of one `[[route]]`; None: not there, or wrong.
struct RouteKeys {
    hosts: Option<Arc<[String]>>,
    path: Option<PathPattern>,
    strip_prefix: Option<PathPrefix>,
    preserve_host: Option<bool>,
    methods: Option<Arc<[Method]>>,
    access: Option<Arc<[Access]>>,
    target: Option<Target>,
    class: Option<Arc<str>>,
    monitoring: Option<bool>,
    max_body: Option<u64>,
    first_byte_timeout: Option<Duration>,
    timeout: Option<Duration>,
    max_wait: Option<Duration>,
    allow_fields: Option<AllowedFields>,
}

impl RouteKeys {
    fn read(table: &ConfigTable<'_>) -> Self {
        Self {
            hosts: table.read("hosts", many(host)).map(Arc::from),
            path: table.read("path", pattern),
            strip_prefix: table.read("strip_prefix", prefix),
            preserve_host: table.read("preserve_host", flag),
            methods: table.read("methods", many(method)).map(Arc::from),
            access: table.read("access", some(word(ACCESS))).map(Arc::from),
            target: table.read("target", word(TARGETS)),
            class: table.read("class", name).map(Arc::from),
            monitoring: table.read("monitoring", flag),
            max_body: table.read("max_body", size(0..=1 << 40)),
            first_byte_timeout: table.read("first_byte_timeout", span),
            timeout: table.read("timeout", span),
            max_wait: table.read("max_wait", span_or_none),
            allow_fields: allow_fields(table),
        }
    }

    /// `route` with these keys.
    fn applied_to(&self, route: Route) -> Route {
        let mut route = route;
        set(&mut route.hosts, &self.hosts);
        set(&mut route.path, &self.path);
        set(&mut route.preserve_host, &self.preserve_host);
        set(&mut route.methods, &self.methods);
        set(&mut route.access, &self.access);
        set(&mut route.target, &self.target);
        set(&mut route.class, &self.class);
        set(&mut route.monitoring, &self.monitoring);
        set(&mut route.max_body, &self.max_body);
        set(&mut route.timeout, &self.timeout);
        set(&mut route.max_wait, &self.max_wait);
        set(&mut route.allow_fields, &self.allow_fields);
        route.first_byte_timeout = self.first_byte_timeout.or(route.first_byte_timeout);
        if let Some(prefix) = &self.strip_prefix {
            route.strip_prefix = (!prefix.is_empty()).then(|| prefix.clone());
        }
        route
    }
}

fn set<T: Clone>(place: &mut T, value: &Option<T>) {
    if let Some(value) = value {
        place.clone_from(value);
    }
}

/// Reports keys that do not fit together.
fn check(table: &ConfigTable<'_>, route: &Route) {
    let first_byte = route.first_byte_timeout.unwrap_or_default();
    if first_byte > route.timeout {
        let key = if table.has("timeout") {
            "timeout"
        } else {
            "first_byte_timeout"
        };
        let reason = "leaves less time for the whole response than for its first byte";
        table.complain(key, reason, "");
    }
    if route.max_wait >= route.timeout {
        let reason = "leaves no time for the request itself";
        table.complain("max_wait", reason, "below timeout");
    }
    if let Some(prefix) = &route.strip_prefix
        && !prefix.covers(&route.path)
        && (table.has("strip_prefix") || table.has("path"))
    {
        let key = if table.has("strip_prefix") {
            "strip_prefix"
        } else {
            "path"
        };
        let reason = format!(
            "does not fit: paths of {} do not begin with {prefix}",
            route.path
        );
        table.complain(key, &reason, "path is the whole path that clients send");
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
