//! The routes that name hosts, by host. Hosts whose routes have the same paths, as those of many upstreams
//! with one profile, share a tree.

use std::collections::HashMap;
use std::sync::Arc;

use super::route_tree::{RouteNode, segments};
use crate::config::{Route, Segment};

/// The routes that name hosts.
#[derive(Debug, Default)]
pub(super) struct HostTable {
    exact: HashMap<Box<str>, HostRoutes>,
    /// By what follows `*.` in the pattern.
    wildcard: HashMap<Box<str>, HostRoutes>,
}

/// The routes of one host.
#[derive(Debug)]
struct HostRoutes {
    /// Its indices count from `first`.
    tree: Arc<RouteNode>,
    first: usize,
}

/// A path in the list of a host's routes; lists that are equal have equal trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ListedPath {
    /// Compared by place: upstreams share the paths of a profile.
    path: *const Segment,
    /// Position behind the first route of this host.
    offset: usize,
}

impl HostTable {
    /// None: no route names a host.
    pub(super) fn of(routes: &[Arc<Route>]) -> Option<Box<Self>> {
        let mut by_host: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, route) in routes.iter().enumerate() {
            for host in route.hosts.iter() {
                by_host.entry(host).or_default().push(index);
            }
        }
        if by_host.is_empty() {
            return None;
        }
        let mut trees = HashMap::new();
        let mut table = Self::default();
        for (host, indices) in by_host {
            let found = HostRoutes::of(&indices, routes, &mut trees);
            match host.strip_prefix("*.") {
                Some(domain) => table.wildcard.insert(domain.into(), found),
                None => table.exact.insert(host.into(), found),
            };
        }
        Some(Box::new(table))
    }

    /// As `RouteTable::search`. `*.example.org` takes `a.example.org` and `b.a.example.org`.
    pub(super) fn search(&self, host: &str, path: &str, found: &mut impl FnMut(usize)) {
        // RFC 1035 2.3.4: no name is longer. Bounds the look-ups for one request.
        const MAX_HOST: usize = 255;
        if host.len() > MAX_HOST {
            return;
        }
        if let Some(routes) = self.exact.get(host) {
            routes.search(path, found);
        }
        if self.wildcard.is_empty() {
            return;
        }
        for dot in memchr::memchr_iter(b'.', host.as_bytes()).filter(|dot| *dot > 0) {
            if let Some(routes) = self.wildcard.get(&host[dot + 1..]) {
                routes.search(path, found);
            }
        }
    }
}

impl HostRoutes {
    /// `indices`: of its routes in `routes`, at least one, ascending.
    fn of(
        indices: &[usize],
        routes: &[Arc<Route>],
        trees: &mut HashMap<Vec<ListedPath>, Arc<RouteNode>>,
    ) -> Self {
        let first = indices[0];
        let listed = indices.iter().map(|index| ListedPath {
            path: routes[*index].path.0.as_ptr(),
            offset: index - first,
        });
        let tree = trees.entry(listed.collect()).or_insert_with(|| {
            let mut tree = RouteNode::default();
            for index in indices {
                tree.insert(&routes[*index].path, index - first);
            }
            tree.shrink();
            Arc::new(tree)
        });
        Self {
            tree: Arc::clone(tree),
            first,
        }
    }

    fn search(&self, path: &str, found: &mut impl FnMut(usize)) {
        let mut found = |offset| found(self.first + offset);
        self.tree.search(segments(path), &mut found);
    }
}
