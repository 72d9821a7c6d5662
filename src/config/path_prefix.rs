//! A path prefix that ends at the border of a segment, and its removal from request targets.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::{BadPattern, PathPattern, Segment};

/// Literal segments at the start of a path, such as `/api/v2`; `/` has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPrefix(Arc<[String]>);

impl PathPrefix {
    /// Reads `/api` or `/`. None: a segment is not literal.
    pub fn parse(text: &str) -> Result<Option<Self>, BadPattern> {
        let pattern = PathPattern::parse(text)?;
        let literals = pattern.0.iter().map(|segment| match segment {
            Segment::Literal(text) => Some(text.clone()),
            Segment::One(_) | Segment::Rest => None,
        });
        Ok(literals.collect::<Option<_>>().map(Self))
    }

    /// The number of segments.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it is `/`, the prefix of every path.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every path of `pattern` begins with it.
    pub fn covers(&self, pattern: &PathPattern) -> bool {
        let is_same = |(own, segment): (&String, &Segment)| match segment {
            Segment::Literal(text) => text == own,
            Segment::One(_) | Segment::Rest => false,
        };
        pattern.0.len() >= self.len() && self.0.iter().zip(pattern.0.iter()).all(is_same)
    }

    /// The pattern of the same paths behind this prefix.
    pub fn before(&self, pattern: &PathPattern) -> PathPattern {
        let own = self.0.iter().cloned().map(Segment::Literal);
        PathPattern(own.chain(pattern.0.iter().cloned()).collect())
    }

    /// Path and query without the prefix, byte for byte. `target` must begin with the prefix, in
    /// whatever escapes, and have no empty segment.
    pub fn strip<'a>(&self, target: &'a str) -> Cow<'a, str> {
        let end = |byte: &u8| matches!(byte, b'/' | b'?');
        let mut rest = target;
        for _ in self.0.iter() {
            let inside = rest.get(1..).unwrap_or_default();
            let length = inside.bytes().position(|byte| end(&byte));
            rest = length.map_or("", |length| &inside[length..]);
        }
        match rest.as_bytes().first() {
            Some(b'/') => Cow::Borrowed(rest),
            None => Cow::Borrowed("/"),
            Some(_) => Cow::Owned(format!("/{rest}")),
        }
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("/");
        }
        self.0
            .iter()
            .try_for_each(|segment| write!(f, "/{segment}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> PathPrefix {
        PathPrefix::parse(text).unwrap().unwrap()
    }

    #[test]
    fn a_prefix_is_removed_at_the_border_of_a_segment_and_the_rest_stays_as_it_is() {
        for (target, rest) in [
            ("/api", "/"),
            ("/api/", "/"),
            ("/api?x=1", "/?x=1"),
            ("/api?/x/y", "/?/x/y"),
            ("/api/?x=1", "/?x=1"),
            ("/api/a%20b;c/%C3%A9/", "/a%20b;c/%C3%A9/"),
            ("/%61pi/a", "/a"),
        ] {
            assert_eq!(prefix("/api").strip(target), rest, "{target}");
        }
        assert_eq!(prefix("/api/v2").strip("/api/v2/x/y?z"), "/x/y?z");
        assert_eq!(prefix("/").strip("/api?x"), "/api?x");
    }

    #[test]
    fn a_prefix_has_literal_segments_only() {
        assert_eq!(PathPrefix::parse("/a/{id}"), Ok(None));
        assert_eq!(PathPrefix::parse("/a/*"), Ok(None));
        assert_eq!(PathPrefix::parse("a"), Err(BadPattern::NoSlash));
        assert_eq!(prefix("/a/b/").to_string(), "/a/b");
        let covers = |pattern| prefix("/api").covers(&PathPattern::parse(pattern).unwrap());
        assert!(covers("/api") && covers("/api/{id}") && covers("/api/*"));
        assert!(!covers("/apiary") && !covers("/*") && !covers("/{x}/y"));
    }
}
