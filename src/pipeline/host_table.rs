//! The routes that name hosts, by host.

use std::collections::HashMap;

use super::route_tree::{RouteNode, segments};
use crate::config::PathPattern;

/// The routes that name hosts.
#[derive(Debug, Default)]
pub(super) struct HostTable {
    exact: HashMap<Box<str>, RouteNode>,
    /// By what follows `*.` in the pattern.
    wildcard: HashMap<Box<str>, RouteNode>,
}

impl HostTable {
    /// Adds a route for each of `hosts`.
    pub(super) fn insert(&mut self, hosts: &[String], path: &PathPattern, index: usize) {
        for host in hosts {
            let tree = match host.strip_prefix("*.") {
                Some(domain) => self.wildcard.entry(domain.into()),
                None => self.exact.entry(host.as_str().into()),
            };
            tree.or_default().insert(path, index);
        }
    }

    /// As `RouteNode::shrink`.
    pub(super) fn shrink(&mut self) {
        let trees = self.exact.values_mut().chain(self.wildcard.values_mut());
        trees.for_each(RouteNode::shrink);
    }

    /// As `RouteTable::search`. `*.example.org` takes `a.example.org` and `b.a.example.org`.
    pub(super) fn search(&self, host: &str, path: &str, found: &mut impl FnMut(usize)) {
        // RFC 1035 2.3.4: no name is longer. Bounds the look-ups for one request.
        const MAX_HOST: usize = 255;
        if host.len() > MAX_HOST {
            return;
        }
        if let Some(tree) = self.exact.get(host) {
            tree.search(segments(path), found);
        }
        if self.wildcard.is_empty() {
            return;
        }
        for dot in memchr::memchr_iter(b'.', host.as_bytes()).filter(|dot| *dot > 0) {
            if let Some(tree) = self.wildcard.get(&host[dot + 1..]) {
                tree.search(segments(path), found);
            }
        }
    }
}
