//! Path patterns: parsed, matched, printed.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::{PathPattern, Segment};

/// Why a text is not a path pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    #[error("must begin with /")]
    NoSlash,
    #[error("has an empty segment")]
    Empty,
    #[error("has a * before its end")]
    EarlyStar,
    #[error("has a {{name}} that is not a whole segment")]
    Brace,
    #[error("has a character that no request path can have here")]
    Character,
    #[error("has a segment . or .., which no request may have")]
    Dots,
}

impl PathPattern {
    /// Reads `/media/{id}` or `/groups/*`. A trailing slash is dropped.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        let rest = text.strip_prefix('/').ok_or(BadPattern::NoSlash)?;
        if rest.is_empty() {
            return Ok(Self(Arc::default()));
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let count = rest.split('/').count();
        let segments = rest.split('/').enumerate().map(|(position, text)| {
            let segment = segment(text)?;
            if segment == Segment::Rest && position + 1 < count {
                return Err(BadPattern::EarlyStar);
            }
            Ok(segment)
        });
        segments.collect::<Result<_, _>>().map(Self)
    }

    /// Whether a path's segments match. `*` matches no segment as well: a rule for `/groups/*`
    /// covers `/groups` too.
    pub fn matches<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> bool {
        let mut path = path.into_iter();
        for segment in self.0.iter() {
            if *segment == Segment::Rest {
                return true;
            }
            match (segment, path.next()) {
                (_, None) => return false,
                (Segment::Literal(literal), Some(text)) if *literal != plain(text) => return false,
                _ => {}
            }
        }
        path.next().is_none()
    }
}

/// A path's segment without escapes, as the upstream will read it. If it were compared as sent,
/// `/%73ettings` would evade the rules of `/settings`.
pub fn plain(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    percent_encoding::percent_decode_str(segment).decode_utf8_lossy()
}

fn segment(text: &str) -> Result<Segment, BadPattern> {
    match text {
        "" => return Err(BadPattern::Empty),
        "*" => return Ok(Segment::Rest),
        "." | ".." => return Err(BadPattern::Dots),
        _ => {}
    }
    let inside = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'));
    if let Some(name) = inside {
        let good = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        let one = good.then(|| Segment::One(name.to_owned()));
        return one.ok_or(BadPattern::Brace);
    }
    if text.contains(['{', '}']) {
        return Err(BadPattern::Brace);
    }
    if text.contains('*') {
        return Err(BadPattern::EarlyStar);
    }
    // RFC 3986 3.3, pchar without escapes: escapes of a path are decoded before it is compared.
    let pchar = |c: u8| c.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@".contains(&c);
    let good = text.bytes().all(pchar);
    let literal = good.then(|| Segment::Literal(text.to_owned()));
    literal.ok_or(BadPattern::Character)
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        for segment in self.0.iter() {
            match segment {
                Segment::Literal(text) => write!(f, "/{text}")?,
                Segment::One(name) => write!(f, "/{{{name}}}")?,
                Segment::Rest => f.write_str("/*")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        let pattern = PathPattern::parse(pattern).unwrap();
        pattern.matches(path.split('/').filter(|segment| !segment.is_empty()))
    }

    #[test]
    fn a_pattern_prints_as_it_was_written() {
        for text in ["/", "/v1/users", "/v1/media/{id}", "/v1/groups/*", "/*"] {
            assert_eq!(PathPattern::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(
            PathPattern::parse("/v1/users/").unwrap().to_string(),
            "/v1/users"
        );
    }

    #[test]
    fn a_pattern_that_no_request_could_match_is_refused() {
        let cases = [
            ("v1", BadPattern::NoSlash),
            ("", BadPattern::NoSlash),
            ("/a//b", BadPattern::Empty),
            ("//", BadPattern::Empty),
            ("/*/a", BadPattern::EarlyStar),
            ("/a*", BadPattern::EarlyStar),
            ("/{a", BadPattern::Brace),
            ("/x{a}", BadPattern::Brace),
            ("/{}", BadPattern::Brace),
            ("/a?b", BadPattern::Character),
            ("/a%2Fb", BadPattern::Character),
            ("/a b", BadPattern::Character),
            ("/a/../b", BadPattern::Dots),
        ];
        for (text, why) in cases {
            assert_eq!(PathPattern::parse(text), Err(why), "{text}");
        }
    }

    #[test]
    fn a_parameter_is_one_segment_and_the_rest_may_be_empty() {
        assert!(matches("/v1/media/{id}", "/v1/media/7"));
        assert!(!matches("/v1/media/{id}", "/v1/media"));
        assert!(!matches("/v1/media/{id}", "/v1/media/7/8"));
        assert!(matches("/v1/groups/*", "/v1/groups/7/icon"));
        assert!(matches("/v1/groups/*", "/v1/groups"));
        assert!(!matches("/v1/groups/*", "/v1/groupsies"));
        assert!(matches("/*", "/"));
        assert!(
            matches("/v1/a:b", "/%761/%61%3Ab"),
            "escapes do not change the match"
        );
        assert!(!matches("/v1/a", "/v1/%62"));
        assert!(matches("/", "/"));
        assert!(!matches("/", "/v1"));
    }
}
