//! Finds the route for a host, a path and a method. Trees of path segments, one for each host that a
//! route names and one for all others, find the candidates; the first of them in the configured order
//! wins.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use http::Method;

use super::host_table::HostTable;
use super::route_rewrite::RouteRewrite;
use super::route_tree::{RouteNode, segments};
use crate::config::{Config, DirectoryKind, Route, Target};
use crate::metrics::RouteCounts;
use crate::pipeline::reject::Rejection;

/// The value of `Allow` for a route that takes every method.
pub(super) const ANY_METHOD: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// All routes, indexed for search.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<RouteEntry>,
    /// Routes that take any host.
    any_host: RouteNode,
    /// None: no route names a host.
    by_host: Option<Box<HostTable>>,
}

/// The upstream that the requests of a route go to.
#[derive(Clone, Debug, Default)]
pub struct RouteUpstream {
    /// In `LiveRules::upstreams`.
    pub position: usize,
    pub name: Arc<str>,
    /// Its own users call, with its own tokens, which are forwarded.
    pub has_users: bool,
}

/// A route, and its request counts.
#[derive(Debug)]
pub struct RouteEntry {
    route: Arc<Route>,
    /// Position in the configured order.
    pub(in crate::pipeline) index: usize,
    /// Position in `LiveRules::upstreams` of the upstream that its requests go to.
    pub(in crate::pipeline) upstream: usize,
    /// The clients' own tokens are tokens of that upstream.
    pub(in crate::pipeline) takes_client_tokens: bool,
    /// Name of the bucket of limits by class: the upstream that its requests go to, `/` and the class.
    pub(in crate::pipeline) class_bucket: Arc<str>,
    /// None: path and `Host` are forwarded as usual.
    pub(in crate::pipeline) rewrite: Option<Box<RouteRewrite>>,
    /// Shared by all routes of this name.
    pub(in crate::pipeline) counts: Arc<RouteCounts>,
}

impl RouteEntry {
    /// Whether its requests go to an upstream.
    pub(in crate::pipeline) fn is_forwarded(&self) -> bool {
        self.route.target == Target::Upstream || self.takes_client_tokens
    }

    /// The name of the upstream that its requests go to, which need not be the one that the route belongs
    /// to: calls about users go to the upstream that has them. None: the gate answers them itself.
    pub(in crate::pipeline) fn destination(&self) -> Option<&str> {
        let after_name = self.class_bucket.len() - self.route.class.len() - 1;
        self.is_forwarded()
            .then(|| &self.class_bucket[..after_name])
    }
}

impl Deref for RouteEntry {
    type Target = Route;

    fn deref(&self) -> &Route {
        &self.route
    }
}

impl RouteTable {
    /// The routes of one configuration.
    pub fn of(config: &Config) -> Self {
        let upstreams = config.upstreams.iter().enumerate();
        let positions: HashMap<&str, usize> = upstreams
            .map(|(position, upstream)| (&*upstream.name, position))
            .collect();
        let is_relaying = config.users.directory == DirectoryKind::Upstream;
        let upstream = |route: &Route| {
            let is_relayed = is_relaying && matches!(route.target, Target::UsersNode(_));
            let position = match is_relayed {
                true => config.users_upstream,
                false => positions[&*route.upstream],
            };
            RouteUpstream {
                position,
                name: Arc::clone(&config.upstreams[position].name),
                has_users: is_relaying && position == config.users_upstream,
            }
        };
        Self::new(&config.routes, upstream)
    }

    /// `upstream`: where the requests of a route go.
    pub fn new(routes: &[Arc<Route>], upstream: impl Fn(&Route) -> RouteUpstream) -> Self {
        let mut table = Self {
            routes: Vec::with_capacity(routes.len()),
            ..Self::default()
        };
        let mut counts: HashMap<&str, Arc<RouteCounts>> = HashMap::new();
        let mut buckets: HashMap<String, Arc<str>> = HashMap::new();
        for (index, route) in routes.iter().enumerate() {
            if route.hosts.is_empty() {
                table.any_host.insert(&route.path, index);
            }
            let upstream = upstream(route);
            let bucket = format!("{}/{}", upstream.name, route.class);
            let bucket = buckets
                .entry(bucket)
                .or_insert_with_key(|name| Arc::from(&**name));
            let new = || Arc::new(RouteCounts::new(&route.name));
            let counts = counts.entry(&route.name).or_insert_with(new);
            table.routes.push(RouteEntry {
                route: Arc::clone(route),
                index,
                upstream: upstream.position,
                takes_client_tokens: upstream.has_users,
                class_bucket: Arc::clone(bucket),
                rewrite: RouteRewrite::of(route).map(Box::new),
                counts: Arc::clone(counts),
            });
        }
        table.any_host.shrink();
        table.by_host = HostTable::of(routes);
        table
    }

    /// The first route that takes this host, path and method. Fails with `MethodNotAllowed` when the
    /// path has routes for other methods only, and with `NoRoute` when it has none.
    pub fn find(&self, host: &str, path: &str, method: &Method) -> Result<&RouteEntry, Rejection> {
        let mut first = usize::MAX;
        self.search(host, path, &mut |index| {
            if index < first && takes_method(&self.routes[index], method) {
                first = index;
            }
        });
        self.routes
            .get(first)
            .ok_or_else(|| self.refusal(host, path))
    }

    /// Calls `found` with each route for this host and path, in no particular order, possibly twice.
    fn search(&self, host: &str, path: &str, found: &mut impl FnMut(usize)) {
        self.any_host.search(segments(path), found);
        if let Some(by_host) = &self.by_host {
            by_host.search(host, path, found);
        }
    }

    /// The route with this index.
    pub(in crate::pipeline) fn at(&self, index: usize) -> Option<&RouteEntry> {
        self.routes.get(index)
    }

    fn refusal(&self, host: &str, path: &str) -> Rejection {
        match self.allowed(host, path) {
            allowed if allowed.is_empty() => Rejection::NoRoute,
            allowed => Rejection::MethodNotAllowed(allowed),
        }
    }

    /// The methods that a path takes, in the form of `Allow`; empty: the path has no route.
    pub(in crate::pipeline) fn allowed(&self, host: &str, path: &str) -> String {
        let mut matching = Vec::new();
        self.search(host, path, &mut |index| {
            if self.routes[index].target != Target::Closed {
                matching.push(index);
            }
        });
        matching.sort_unstable();
        if matching
            .iter()
            .any(|index| self.routes[*index].methods.is_empty())
        {
            return ANY_METHOD.to_owned();
        }
        let methods = matching
            .iter()
            .flat_map(|index| self.routes[*index].methods.iter());
        let mut allowed: Vec<&str> = Vec::new();
        for method in methods.map(Method::as_str) {
            if !allowed.contains(&method) {
                allowed.push(method);
            }
        }
        allowed.join(", ")
    }
}

/// Methods that are never forwarded: TRACE and its variants, whose response would echo the injected
/// credential (RFC 9110 9.3.8); CONNECT; and the standard methods in unusual letter case, which
/// routes do not match but some frameworks accept.
fn is_forbidden(method: &Method) -> bool {
    const TRACE_VARIANTS: [&str; 2] = ["TRACK", "DEBUG"];
    const STANDARD: [&str; 9] = [
        "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT",
    ];
    match *method {
        Method::TRACE | Method::CONNECT => true,
        Method::GET | Method::POST | Method::PUT | Method::DELETE => false,
        Method::HEAD | Method::OPTIONS | Method::PATCH => false,
        _ => {
            let is_same = |name: &&str| method.as_str().eq_ignore_ascii_case(name);
            TRACE_VARIANTS.iter().any(is_same) || STANDARD.iter().any(is_same)
        }
    }
}

fn takes_method(route: &Route, method: &Method) -> bool {
    if is_forbidden(method) {
        return false;
    }
    route.methods.is_empty()
        || route.methods.contains(method)
        || (method == Method::OPTIONS && route.target == Target::Upstream)
        || (method == Method::HEAD && route.methods.contains(&Method::GET))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Access, AllowedFields, PathPattern, Segment};

    fn route(index: usize, path: PathPattern, methods: Vec<Method>) -> Arc<Route> {
        Arc::new(Route {
            name: format!("r{index}").into(),
            hosts: Arc::default(),
            path,
            strip_prefix: None,
            preserve_host: false,
            methods: methods.into(),
            access: Arc::from([Access::Token]),
            target: Target::Upstream,
            upstream: "main".into(),
            class: "other".into(),
            monitoring: false,
            max_body: 1,
            first_byte_timeout: None,
            timeout: Duration::from_secs(1),
            max_wait: Duration::ZERO,
            allow_fields: AllowedFields::default(),
        })
    }

    fn matches(pattern: &[Segment], path: &[&str]) -> bool {
        match (pattern, path) {
            ([Segment::Rest], _) | ([], []) => true,
            ([Segment::Literal(text), rest @ ..], [first, left @ ..]) if text == first => {
                matches(rest, left)
            }
            ([Segment::One(_), rest @ ..], [_, left @ ..]) => matches(rest, left),
            _ => false,
        }
    }

    fn any_segment() -> impl Strategy<Value = Segment> {
        prop_oneof![
            "[ab]".prop_map(Segment::Literal),
            Just(Segment::One("x".to_owned())),
        ]
    }

    fn any_pattern() -> impl Strategy<Value = PathPattern> {
        (
            proptest::collection::vec(any_segment(), 0..4),
            any::<bool>(),
        )
            .prop_map(|(mut all, rest)| {
                if rest {
                    all.push(Segment::Rest);
                }
                PathPattern(all.into())
            })
    }

    proptest! {
        #[test]
        fn the_tree_finds_the_same_route_as_a_linear_search(
            patterns in proptest::collection::vec((any_pattern(), any::<bool>()), 1..12),
            // c, and a and b with and without an escape.
            path in proptest::collection::vec("[abc]|%6[12]", 0..5),
            slash in any::<bool>(),
        ) {
            let routes: Vec<Arc<Route>> = patterns.into_iter().enumerate().map(|(index, (path, get))| {
                route(index, path, vec![if get { Method::GET } else { Method::POST }])
            }).collect();
            let sent: Vec<&str> = path.iter().map(String::as_str).collect();
            let read = path.iter().map(|text| text.replace("%61", "a").replace("%62", "b"));
            let read: Vec<String> = read.collect();
            let segments: Vec<&str> = read.iter().map(String::as_str).collect();
            let expected = routes.iter().find(|route| {
                matches(&route.path.0, &segments) && route.methods.contains(&Method::GET)
            });
            let text = format!("/{}{}", sent.join("/"), if slash && !path.is_empty() { "/" } else { "" });
            let table = RouteTable::new(&routes, |_| RouteUpstream::default());
            let found = table.find("gate", &text, &Method::GET);
            prop_assert_eq!(found.ok().map(|r| r.name.clone()), expected.map(|r| r.name.clone()));
        }
    }

    #[test]
    fn hosts_and_methods_narrow_a_route() {
        let wild = route(
            0,
            PathPattern(Arc::from([Segment::Rest])),
            vec![Method::GET],
        );
        let wild = Route {
            hosts: Arc::from(["*.example.org".to_owned()]),
            ..(*wild).clone()
        };
        let table = RouteTable::new(&[Arc::new(wild)], |_| RouteUpstream::default());
        assert!(table.find("a.example.org", "/x", &Method::HEAD).is_ok());
        for host in ["example.org", ".example.org", "evilexample.org"] {
            assert!(
                matches!(
                    table.find(host, "/x", &Method::GET),
                    Err(Rejection::NoRoute)
                ),
                "{host}"
            );
        }
        let refused = table.find("a.example.org", "/x", &Method::PUT);
        assert!(matches!(refused, Err(Rejection::MethodNotAllowed(allow)) if allow == "GET"));
    }
}
