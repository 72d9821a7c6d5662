//! The routes and limits of a profile, as the configuration has them.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Access, AllowedFields, DirectoryKind, Limit, LimitKey, PathPattern, PathPrefix, Quota, Route,
    Target,
};
use crate::profiles::{Profile, ProfileAccess, ProfileRoute, Role, RouteNeeds};

/// Where a profile's routes lead to an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileRouting {
    pub upstream: Arc<str>,
    /// As in `Route::hosts`.
    pub hosts: Arc<[String]>,
    /// Stands before the profile's paths, and is removed before they are forwarded.
    pub path_prefix: Option<PathPrefix>,
}

impl ProfileRouting {
    /// At any host, without a prefix.
    pub fn everywhere(upstream: Arc<str>) -> Self {
        Self {
            upstream,
            hosts: Arc::default(),
            path_prefix: None,
        }
    }

    /// One routing for each kind of host, so that they can be sorted.
    fn by_kind_of_host(&self) -> Vec<Self> {
        let of = |hosts: Vec<String>| Self {
            hosts: Arc::from(hosts),
            ..self.clone()
        };
        if self.hosts.is_empty() {
            return vec![of(Vec::new())];
        }
        let is_wildcard = |host: &String| host.starts_with("*.");
        let (wildcards, exact): (Vec<_>, Vec<_>) =
            self.hosts.iter().cloned().partition(is_wildcard);
        let mut all: Vec<Self> = wildcards.into_iter().map(|host| of(vec![host])).collect();
        if !exact.is_empty() {
            all.push(of(exact));
        }
        all
    }

    /// Smaller is more specific: a host by name, the longest wildcard, any host; then the longest
    /// prefix.
    fn rank(&self) -> (usize, Reverse<usize>, Reverse<usize>) {
        let labels = |host: &String| host.split('.').count();
        let host = match self.hosts.first() {
            Some(host) if host.starts_with("*.") => (1, Reverse(labels(host))),
            Some(_) => (0, Reverse(0)),
            None => (2, Reverse(0)),
        };
        let prefix = self.path_prefix.as_ref().map_or(0, PathPrefix::len);
        (host.0, host.1, Reverse(prefix))
    }
}

/// The routes of a profile for each upstream, in match order: the more specific host and prefix first.
pub fn shipped_routes(profile: &Profile, routings: &[ProfileRouting]) -> Vec<Route> {
    let by_kind = routings.iter().flat_map(ProfileRouting::by_kind_of_host);
    let mut sorted: Vec<ProfileRouting> = by_kind.collect();
    sorted.sort_by_key(ProfileRouting::rank);
    // Made once: the routes of a thousand upstreams share names and classes.
    let routes = profile.routes.iter();
    let routes: Vec<Route> = routes.map(|route| shipped(route, profile)).collect();
    let of = |routing| routes.iter().map(move |route| led_by(route, routing));
    sorted.iter().flat_map(of).collect()
}

/// A route of the profile, where `routing` leads it.
fn led_by(route: &Route, routing: &ProfileRouting) -> Route {
    let prefix = &routing.path_prefix;
    Route {
        hosts: Arc::clone(&routing.hosts),
        path: match prefix {
            Some(prefix) => prefix.before(&route.path),
            None => route.path.clone(),
        },
        strip_prefix: prefix.clone().filter(|prefix| !prefix.is_empty()),
        upstream: Arc::clone(&routing.upstream),
        ..route.clone()
    }
}

/// A route of the profile at any host, without an upstream yet.
fn shipped(route: &ProfileRoute, profile: &Profile) -> Route {
    let first = route.name.split_once('.').map_or("", |(first, _)| first);
    let class = if profile.classes.contains(&first) {
        first
    } else {
        "other"
    };
    let plain = Route {
        name: Arc::from(route.name),
        hosts: Arc::default(),
        path: PathPattern::parse(route.path).expect("paths of profiles are checked by a test"),
        strip_prefix: None,
        preserve_host: false,
        methods: Arc::from(route.methods),
        access: Arc::from(match route.access {
            ProfileAccess::Open => &[Access::Open][..],
            ProfileAccess::Token => &[Access::Token],
            ProfileAccess::Service => &[Access::Token, Access::ApiKey],
            ProfileAccess::Admin => &[Access::Role(Role::Admin)],
            ProfileAccess::Own => &[Access::Token, Access::Role(Role::Admin)],
        }),
        target: Target::Upstream,
        upstream: Arc::from(""),
        class: Arc::from(class),
        monitoring: false,
        max_body: 1 << 20,
        first_byte_timeout: None,
        timeout: Duration::from_secs(60),
        max_wait: Duration::ZERO,
        allow_fields: AllowedFields::default(),
    };
    with_needs(plain, route.needs)
}

fn with_needs(plain: Route, needs: RouteNeeds) -> Route {
    let minutes = |number: u64| Duration::from_secs(number * 60);
    match needs {
        RouteNeeds::Nothing => plain,
        RouteNeeds::Minutes(number) => Route {
            first_byte_timeout: Some(minutes(number)),
            timeout: minutes(number + 1),
            ..plain
        },
        RouteNeeds::Media => Route {
            max_body: 110_000_000,
            first_byte_timeout: Some(minutes(2)),
            timeout: minutes(10),
            ..plain
        },
        RouteNeeds::Files => Route {
            max_body: 16 << 20,
            timeout: minutes(2),
            ..plain
        },
        RouteNeeds::Monitoring => Route {
            monitoring: true,
            timeout: minutes(1),
            ..plain
        },
        RouteNeeds::Users(call) => Route {
            target: Target::UsersNode(call),
            max_body: 64 << 10,
            ..plain
        },
    }
}

/// The limits of a profile for `routes`. A limit whose classes have no route that reaches the
/// upstream is left out.
pub(super) fn shipped_limits(
    profile: &Profile,
    routes: &[Route],
    directory: DirectoryKind,
) -> Vec<Limit> {
    // With its own users the gateway answers the users node itself. One bucket for all clients
    // would let one client use up the logins of all others, although none reaches the upstream.
    let reaches_upstream = |route: &&Route| match route.target {
        Target::Upstream => true,
        Target::UsersNode(_) => directory == DirectoryKind::Upstream,
        Target::Closed => false,
    };
    let mut classes: BTreeSet<Arc<str>> = routes
        .iter()
        .filter(reaches_upstream)
        .map(|route| Arc::clone(&route.class))
        .collect();
    let mut limits = Vec::new();
    for limit in profile.limits {
        let limited: Vec<Arc<str>> = match limit.class {
            Some(class) => classes.take(class).into_iter().collect(),
            None => std::mem::take(&mut classes).into_iter().collect(),
        };
        if limited.is_empty() {
            continue;
        }
        limits.push(Limit {
            name: Arc::from(limit.name),
            key: LimitKey::Class,
            classes: limited,
            quota: Quota {
                requests: limit.per_second,
                per: Duration::from_secs(1),
                burst: limit.burst,
            },
            dry_run: false,
        });
    }
    limits
}
