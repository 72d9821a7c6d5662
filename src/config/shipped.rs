//! The routes and limits of a profile, as the configuration has them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Access, AllowedFields, DirectoryKind, Limit, LimitKey, PathPattern, Quota, Route, Target,
};
use crate::profiles::{Profile, ProfileAccess, ProfileRoute, Role, RouteNeeds};

/// The route table of a profile, in match order, in front of the upstream of this name.
pub fn shipped_routes(profile: &Profile, upstream: &Arc<str>) -> Vec<Route> {
    let routes = profile.routes.iter();
    routes
        .map(|route| shipped(route, profile, upstream))
        .collect()
}

fn shipped(route: &ProfileRoute, profile: &Profile, upstream: &Arc<str>) -> Route {
    let first = route.name.split_once('.').map_or("", |(first, _)| first);
    let class = if profile.classes.contains(&first) {
        first
    } else {
        "other"
    };
    let plain = Route {
        name: Arc::from(route.name),
        hosts: Vec::new(),
        path: PathPattern::parse(route.path).expect("paths of profiles are checked by a test"),
        methods: route.methods.to_vec(),
        access: match route.access {
            ProfileAccess::Open => vec![Access::Open],
            ProfileAccess::Token => vec![Access::Token],
            ProfileAccess::Service => vec![Access::Token, Access::ApiKey],
            ProfileAccess::Admin => vec![Access::Role(Role::Admin)],
            ProfileAccess::Own => vec![Access::Token, Access::Role(Role::Admin)],
        },
        target: Target::Upstream(Arc::clone(upstream)),
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
        Target::Upstream(_) => true,
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
