//! Finds the route for a host, a path and a method. A tree of path segments finds the candidates; the
//! first of them in the configured order wins.

use std::collections::BTreeMap;
use std::ops::Deref;

use http::Method;

use crate::config::{Config, PathPattern, Route, Segment, Target, plain};
use crate::metrics::RouteCounts;
use crate::pipeline::reject::Rejection;

/// The value of `Allow` for a route that takes every method.
pub(super) const ANY_METHOD: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// All routes, indexed for search.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<RouteEntry>,
    root: RouteNode,
}

/// A route, and its request counts.
#[derive(Debug)]
pub struct RouteEntry {
    route: Route,
    /// Position in the configured order.
    pub(in crate::pipeline) index: usize,
    /// Position in `LiveRules::upstreams` of the upstream that its requests go to.
    pub(in crate::pipeline) upstream: usize,
    pub(in crate::pipeline) counts: RouteCounts,
}

impl Deref for RouteEntry {
    type Target = Route;

    fn deref(&self) -> &Route {
        &self.route
    }
}

#[derive(Debug, Default)]
struct RouteNode {
    literal: BTreeMap<Box<str>, Self>,
    one: Option<Box<Self>>,
    /// Routes whose pattern ends at this node.
    ends: Vec<usize>,
    /// Routes whose pattern takes any segments after this node.
    rest: Vec<usize>,
}

impl RouteTable {
    /// The routes of one configuration.
    pub fn of(config: &Config) -> Self {
        Self::new(&config.routes, |target| config.upstream_position(target))
    }

    /// `upstream`: the position of the upstream that a target leads to.
    pub fn new(routes: &[Route], upstream: impl Fn(&Target) -> usize) -> Self {
        let mut table = Self::default();
        for (index, route) in routes.iter().enumerate() {
            table.root.insert(&route.path, index);
            table.routes.push(RouteEntry {
                route: route.clone(),
                index,
                upstream: upstream(&route.target),
                counts: RouteCounts::new(&route.name),
            });
        }
        table
    }

    /// The first route that takes this host, path and method. Fails with `MethodNotAllowed` when the
    /// path has routes for other methods only, and with `NoRoute` when it has none.
    pub fn find(&self, host: &str, path: &str, method: &Method) -> Result<&RouteEntry, Rejection> {
        let mut first = usize::MAX;
        self.root.search(segments(path), &mut |index| {
            let route = &self.routes[index];
            if index < first && takes_host(route, host) && takes_method(route, method) {
                first = index;
            }
        });
        self.routes
            .get(first)
            .ok_or_else(|| self.refusal(host, path))
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
        self.root.search(segments(path), &mut |index| {
            let route = &self.routes[index];
            if takes_host(route, host) && route.target != Target::Closed {
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
            .flat_map(|index| &self.routes[*index].methods);
        let mut allowed: Vec<&str> = Vec::new();
        for method in methods.map(Method::as_str) {
            if !allowed.contains(&method) {
                allowed.push(method);
            }
        }
        allowed.join(", ")
    }
}

impl RouteNode {
    fn insert(&mut self, pattern: &PathPattern, index: usize) {
        let mut node = self;
        for segment in &pattern.0 {
            node = match segment {
                Segment::Literal(text) => node.literal.entry(text.as_str().into()).or_default(),
                Segment::One(_) => node.one.get_or_insert_default(),
                Segment::Rest => {
                    node.rest.push(index);
                    return;
                }
            };
        }
        node.ends.push(index);
    }

    /// Calls `found` with each route whose pattern matches, in no particular order, possibly twice.
    fn search<'a>(
        &self,
        mut segments: impl Iterator<Item = &'a str> + Clone,
        found: &mut impl FnMut(usize),
    ) {
        self.rest.iter().copied().for_each(&mut *found);
        let Some(segment) = segments.next() else {
            self.ends.iter().copied().for_each(found);
            return;
        };
        if let Some(node) = self.literal.get(plain(segment).as_ref()) {
            node.search(segments.clone(), found);
        }
        if let Some(node) = &self.one {
            node.search(segments, found);
        }
    }
}

/// `/a/b` and `/a/b/` have the same segments; `/` has none.
fn segments(path: &str) -> std::iter::Filter<std::str::Split<'_, char>, fn(&&str) -> bool> {
    path.split('/').filter(|segment: &&str| !segment.is_empty())
}

fn takes_host(route: &Route, host: &str) -> bool {
    route.hosts.is_empty()
        || route
            .hosts
            .iter()
            .any(|pattern| match pattern.strip_prefix("*.") {
                Some(domain) => host
                    .strip_suffix(domain)
                    .is_some_and(|sub| sub.len() > 1 && sub.ends_with('.')),
                None => pattern == host,
            })
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
        || (method == Method::OPTIONS && matches!(route.target, Target::Upstream(_)))
        || (method == Method::HEAD && route.methods.contains(&Method::GET))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Access, AllowedFields};

    fn route(index: usize, path: PathPattern, methods: Vec<Method>) -> Route {
        Route {
            name: format!("r{index}").into(),
            hosts: Vec::new(),
            path,
            methods,
            access: vec![Access::Token],
            target: Target::Upstream("main".into()),
            class: "other".into(),
            monitoring: false,
            max_body: 1,
            first_byte_timeout: None,
            timeout: Duration::from_secs(1),
            max_wait: Duration::ZERO,
            allow_fields: AllowedFields::default(),
        }
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
                PathPattern(all)
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
            let routes: Vec<Route> = patterns.into_iter().enumerate().map(|(index, (path, get))| {
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
            let table = RouteTable::new(&routes, |_| 0);
            let found = table.find("gate", &text, &Method::GET);
            prop_assert_eq!(found.ok().map(|r| r.name.clone()), expected.map(|r| r.name.clone()));
        }
    }

    #[test]
    fn hosts_and_methods_narrow_a_route() {
        let mut wild = route(0, PathPattern(vec![Segment::Rest]), vec![Method::GET]);
        wild.hosts = vec!["*.example.org".to_owned()];
        let table = RouteTable::new(&[wild], |_| 0);
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
