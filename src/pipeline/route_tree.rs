//! A tree of path segments that finds the routes for a path.

use std::collections::BTreeMap;

use crate::config::{PathPattern, Segment, plain};

/// One place in the tree: the segments up to it have matched.
#[derive(Debug, Default)]
pub(super) struct RouteNode {
    literal: BTreeMap<Box<str>, Self>,
    one: Option<Box<Self>>,
    /// Routes whose pattern ends at this node.
    ends: Vec<usize>,
    /// Routes whose pattern takes any segments after this node.
    rest: Vec<usize>,
}

impl RouteNode {
    pub(super) fn insert(&mut self, pattern: &PathPattern, index: usize) {
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
    pub(super) fn search<'a>(
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
pub(super) fn segments(
    path: &str,
) -> std::iter::Filter<std::str::Split<'_, char>, fn(&&str) -> bool> {
    path.split('/').filter(|segment: &&str| !segment.is_empty())
}
