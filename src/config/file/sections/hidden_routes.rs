//! Routes that get no request because those above take them all: the first match wins.

use std::sync::Arc;

use crate::config::file::config_table::ConfigTable;
use crate::config::{PathPattern, Route, Segment, Target};

/// Reports a route that another above leaves no request. It is refused where the two take the same
/// requests or lead to different upstreams, since one of them must be a mistake.
pub(super) fn report_if_hidden(table: &ConfigTable<'_>, route: &Route, above: &[Route]) {
    let Some(other) = above.iter().find(|other| covers(other, route)) else {
        return;
    };
    let reason = format!(
        "is never reached: route \"{}\" above takes it all",
        other.name
    );
    let is_other_upstream = other.target == Target::Upstream && other.upstream != route.upstream;
    if covers(route, other) || is_other_upstream {
        let suggestion = "give them different hosts, paths or methods, or remove one";
        table.complain("path", &reason, suggestion);
    } else {
        table.warn("path", &reason, "the first match wins: put it above");
    }
}

/// Reports each upstream that only the profile's routes lead to, if the file's own routes lead all their
/// requests elsewhere.
pub(super) fn report_unreached_upstreams(root: &ConfigTable<'_>, own: &[Route], shipped: &[Route]) {
    let mut open: Vec<&Arc<str>> = Vec::new();
    let mut hidden: Vec<(&Arc<str>, &Route)> = Vec::new();
    let leads_up = |route: &&Route| route.target == Target::Upstream;
    for route in shipped.iter().filter(leads_up) {
        let is_known = |upstream: &&Arc<str>| **upstream == route.upstream;
        if open.last().is_some_and(is_known) {
            continue;
        }
        let mut above = own.iter().filter(leads_up);
        match above.find(|other| covers(other, route)) {
            Some(other) => hidden.push((&route.upstream, other)),
            None => open.push(&route.upstream),
        }
    }
    hidden.dedup_by_key(|(upstream, _)| *upstream);
    let leads_to = |upstream: &str| {
        let mut own = own.iter().filter(leads_up);
        own.any(|route| *route.upstream == *upstream)
    };
    for (upstream, other) in hidden {
        if open.contains(&upstream) || leads_to(upstream) {
            continue;
        }
        let reason = format!(
            "is never reached: route \"{}\" takes the requests of all its routes",
            other.name
        );
        let suggestion = "give that route hosts or a narrower path";
        let place = format!("upstream.{upstream}");
        root.report.complain(&place, &reason, suggestion);
    }
}

/// Whether `one` takes every request that `other` takes.
fn covers(one: &Route, other: &Route) -> bool {
    let takes_host = |host: &String| one.hosts.iter().any(|own| host_covers(own, host));
    path_covers(&one.path, &other.path)
        && (one.hosts.is_empty() || !other.hosts.is_empty() && other.hosts.iter().all(takes_host))
        && (one.methods.is_empty()
            || !other.methods.is_empty()
                && other
                    .methods
                    .iter()
                    .all(|method| one.methods.contains(method)))
}

/// Whether the host pattern `one` takes every host of `other`; `*.` stands for one or more labels.
fn host_covers(one: &str, other: &str) -> bool {
    let below = |domain: &str| {
        let name = other.strip_prefix("*.").unwrap_or(other);
        let start = name.strip_suffix(domain);
        start.is_some_and(|start| start.len() > 1 && start.ends_with('.'))
    };
    one == other || one.strip_prefix("*.").is_some_and(below)
}

fn path_covers(one: &PathPattern, other: &PathPattern) -> bool {
    let mut others = other.0.iter();
    for segment in one.0.iter() {
        let fits = match (segment, others.next()) {
            (Segment::Rest, _) => return true,
            (_, None | Some(Segment::Rest)) => false,
            (Segment::One(_), Some(_)) => true,
            (Segment::Literal(text), Some(Segment::Literal(other))) => text == other,
            (Segment::Literal(_), Some(Segment::One(_))) => false,
        };
        if !fits {
            return false;
        }
    }
    others.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_hosts_covers_those_below_it() {
        assert!(host_covers("*.b.c", "a.b.c") && host_covers("*.b.c", "x.a.b.c"));
        assert!(host_covers("*.b.c", "*.a.b.c") && host_covers("*.b.c", "*.b.c"));
        assert!(host_covers("a.b.c", "a.b.c"));
        for (one, other) in [
            ("*.b.c", "b.c"),
            ("*.b.c", "ab.c"),
            ("*.b.c", "xb.c"),
            ("*.a.b.c", "*.b.c"),
            ("a.b.c", "*.b.c"),
            ("b.c", "a.b.c"),
        ] {
            assert!(!host_covers(one, other), "{one} {other}");
        }
    }

    #[test]
    fn a_pattern_of_paths_covers_narrower_ones() {
        let covers = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| PathPattern::parse(text).unwrap());
            path_covers(&one, &other)
        };
        for (one, other) in [
            ("/*", "/"),
            ("/*", "/a/{b}/*"),
            ("/a/*", "/a"),
            ("/a/*", "/a/b/c"),
            ("/a/{x}", "/a/b"),
            ("/a/{x}", "/a/{y}"),
            ("/{x}/*", "/a/*"),
            ("/a", "/a/"),
        ] {
            assert!(covers(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("/a/*", "/ab"),
            ("/a/*", "/*"),
            ("/a/{x}", "/a"),
            ("/a/{x}", "/a/*"),
            ("/a/{x}", "/a/b/c"),
            ("/a/b", "/a/{x}"),
            ("/a", "/a/*"),
            ("/", "/*"),
        ] {
            assert!(!covers(one, other), "{one} {other}");
        }
    }
}
