//! `Via` (RFC 9110, 7.6.3): the gateway adds its name to requests it forwards, and detects loops by
//! it.

use http::header::VIA;
use http::{HeaderMap, HeaderValue, Version};

/// The gateway's name in `Via`. It is random and new at each start, so that gateways of one fleet
/// differ.
#[derive(Clone, Debug)]
pub struct GatewayVia {
    name: &'static str,
    /// The field value for requests received over HTTP/1.0, 1.1 and 2.
    values: [HeaderValue; 3],
}

impl GatewayVia {
    #[must_use]
    pub fn random() -> Self {
        let name = leaked(format!("tollgate-{:016x}", rand::random::<u64>()));
        let value = |version| HeaderValue::from_static(leaked(format!("{version} {name}")));
        Self {
            name,
            values: [value("1.0"), value("1.1"), value("2.0")],
        }
    }

    /// The field value for a request received in this version.
    #[must_use]
    pub fn value(&self, version: Version) -> &HeaderValue {
        &self.values[match version {
            Version::HTTP_09 | Version::HTTP_10 => 0,
            Version::HTTP_2 => 2,
            _ => 1,
        }]
    }

    /// Whether a request with these fields has passed this gateway before.
    #[must_use]
    pub fn is_in(&self, fields: &HeaderMap) -> bool {
        fields
            .get_all(VIA)
            .iter()
            .any(|line| self.is_in_line(line.as_bytes()))
    }

    fn is_in_line(&self, line: &[u8]) -> bool {
        // A comment that an earlier proxy did not close must not hide the name.
        let is_hidden_in_comments = !is_closed(line);
        members(line, is_hidden_in_comments).any(|member| self.is_by(member))
    }

    /// Whether a member (protocol, name, optional comment) has this gateway's name.
    fn is_by(&self, member: &[u8]) -> bool {
        let mut words = member
            .split(|byte| matches!(byte, b' ' | b'\t'))
            .filter(|word| !word.is_empty());
        let Some(name) = words.nth(1) else {
            return false;
        };
        // A comment may follow without a space, and another proxy may have added a port.
        let end = name.iter().position(|byte| matches!(byte, b'(' | b':'));
        name[..end.unwrap_or(name.len())].eq_ignore_ascii_case(self.name.as_bytes())
    }
}

/// Leaks a text of the start: copies of a static header value change no reference count that the
/// workers would share.
fn leaked(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// The members between commas. Commas in comments do not separate, unless comments are ignored.
fn members(line: &[u8], ignores_comments: bool) -> impl Iterator<Item = &[u8]> {
    let mut depth = CommentDepth::default();
    line.split(move |byte| !depth.is_inside(*byte, ignores_comments) && *byte == b',')
}

fn is_closed(line: &[u8]) -> bool {
    let mut depth = CommentDepth::default();
    for byte in line {
        depth.is_inside(*byte, false);
    }
    depth.open == 0
}

/// The nesting of comments at a position of a field value (RFC 9110, 5.6.5).
#[derive(Clone, Copy, Default)]
struct CommentDepth {
    open: usize,
    is_quoted: bool,
}

impl CommentDepth {
    /// Takes the next byte; returns whether it is part of a comment.
    fn is_inside(&mut self, byte: u8, ignores_comments: bool) -> bool {
        if ignores_comments {
            return false;
        }
        if std::mem::take(&mut self.is_quoted) {
            return true;
        }
        match byte {
            b'\\' if self.open > 0 => self.is_quoted = true,
            b'(' => self.open += 1,
            b')' => self.open = self.open.saturating_sub(1),
            _ => {}
        }
        self.open > 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(lines: &[&str]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(VIA, HeaderValue::from_str(line).unwrap());
        }
        fields
    }

    #[test]
    fn the_version_is_that_of_the_request_and_each_gateway_has_another_name() {
        let (one, other) = (GatewayVia::random(), GatewayVia::random());
        let text = |version| one.value(version).to_str().unwrap().to_owned();
        assert_eq!(text(Version::HTTP_10), format!("1.0 {}", one.name));
        assert_eq!(text(Version::HTTP_11), format!("1.1 {}", one.name));
        assert_eq!(text(Version::HTTP_2), format!("2.0 {}", one.name));
        assert_ne!(one.name, other.name);
        assert!(!other.is_in(&fields(&[&text(Version::HTTP_11)])));
    }

    #[test]
    fn the_name_is_found_in_any_line_and_spelling() {
        let via = GatewayVia::random();
        let name = via.name;
        let seen = |lines: &[&str]| via.is_in(&fields(lines));
        for line in [
            format!("1.1 {name}"),
            format!("1.0 fred, 1.1 {name}"),
            format!("1.1 {name}, 1.1 cache.example:8080 (squid/6)"),
            format!("HTTP/2.0\t{name} (a comment, with a comma (and \\) more))"),
            format!("1.1 {name}(no space)"),
            format!("1.1 {}", name.to_ascii_uppercase()),
            format!("1.1 {name}:443"),
            format!(",, 1.1  {name} ,"),
            format!("1.1 fred (left open, 1.1 {name}"),
            format!("1.1 fred (closed too often)), 1.1 {name}"),
        ] {
            assert!(seen(&[&line]), "{line}");
            assert!(seen(&["1.1 first", &line, "1.1 last"]), "{line}");
        }
    }

    #[test]
    fn similar_names_are_not_found() {
        let via = GatewayVia::random();
        let name = via.name;
        for line in [
            String::new(),
            "1.1 fred".to_owned(),
            "1.1 tollgate".to_owned(),
            "1.1 tollgate-0000000000000000".to_owned(),
            name.to_owned(),
            format!("1.1 {name}0"),
            format!("1.1 x{name}"),
            format!("1.1 fred ({name})"),
            format!("1.1 fred (and, 1.1 {name})"),
            format!("1.1 fred (1.1 \\), 1.1 {name})"),
            format!("{name} 1.1"),
            format!("1.1 {}", &name[..name.len() - 1]),
        ] {
            assert!(!via.is_in(&fields(&[&line])), "{line}");
        }
    }

    proptest! {
        /// Whatever earlier hops have written, the own member is found, in their line or in a line
        /// of its own.
        #[test]
        fn no_line_of_another_hop_hides_the_own_member(line in "[ -~\t\u{80}-\u{ff}]{0,60}") {
            let via = GatewayVia::random();
            let own = format!("1.1 {}", via.name);
            let joined = format!("{line}, {own}");
            let mut fields = HeaderMap::new();
            fields.append(VIA, HeaderValue::from_bytes(joined.as_bytes()).unwrap());
            prop_assert!(via.is_in(&fields), "{joined}");
            let mut fields = HeaderMap::new();
            fields.append(VIA, HeaderValue::from_bytes(line.as_bytes()).unwrap());
            prop_assert!(!via.is_in(&fields), "{line}");
            fields.append(VIA, HeaderValue::from_bytes(own.as_bytes()).unwrap());
            prop_assert!(via.is_in(&fields), "{line}");
        }
    }
}
