//! A tree of path segments that finds the routes for a path.

use crate::config::{PathPattern, Segment, plain};

/// One place in the tree: the segments up to it have matched.
#[derive(Debug, Default)]
pub(super) struct RouteNode {
    /// Sorted by segment. Most nodes have one or two: a map would take a kilobyte for each.
    literal: Vec<LiteralNode>,
    one: Option<Box<Self>>,
    /// Routes whose pattern ends at this node.
    ends: Vec<usize>,
    /// Routes whose pattern takes any segments after this node.
    rest: Vec<usize>,
}

/// What follows one literal segment.
#[derive(Debug)]
struct LiteralNode {
    segment: Box<str>,
    node: RouteNode,
}

impl RouteNode {
    pub(super) fn insert(&mut self, pattern: &PathPattern, index: usize) {
        let mut node = self;
        for segment in pattern.0.iter() {
            node = match segment {
                Segment::Literal(text) => node.literal_or_new(text),
                Segment::One(_) => node.one.get_or_insert_default(),
                Segment::Rest => {
                    node.rest.push(index);
                    return;
                }
            };
        }
        node.ends.push(index);
    }

    fn literal_or_new(&mut self, segment: &str) -> &mut Self {
        let position = self.position(segment).unwrap_or_else(|position| {
            let new = LiteralNode {
                segment: segment.into(),
                node: Self::default(),
            };
            self.literal.insert(position, new);
            position
        });
        &mut self.literal[position].node
    }

    /// Where the literal segment is; an error: where it belongs.
    fn position(&self, segment: &str) -> Result<usize, usize> {
        let literal = &self.literal;
        literal.binary_search_by(|literal| (*literal.segment).cmp(segment))
    }

    /// Frees what growing has left over; to be called when all routes are inserted.
    pub(super) fn shrink(&mut self) {
        self.literal.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.rest.shrink_to_fit();
        let literal = self.literal.iter_mut().map(|literal| &mut literal.node);
        literal
            .chain(self.one.as_deref_mut())
            .for_each(Self::shrink);
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
        if let Ok(position) = self.position(&plain(segment)) {
            self.literal[position].node.search(segments.clone(), found);
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
