//! Names of users: which can be made, and how a path names one. Both ends keep to one
//! rule: a name that can be made is one segment of a path that every parser reads alike.

use percent_encoding::{percent_decode, percent_decode_str};

/// Why a text is no name for a new user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    #[error("Username must have between 4 and 32 characters")]
    Length,
    /// A colon ends the name in Basic (RFC 7617, 2), a slash ends a segment.
    #[error("Username must not have a colon, slash, backslash or control character")]
    Character,
    #[error(
        "Username must not have a percent sign before two hexadecimal digits or u: decoded \
         once more, it would be another name"
    )]
    Escape,
    /// Who trims a header's value reads another name.
    #[error("Username must not begin or end with white space, or have invisible characters")]
    Invisible,
    #[error("Username must not begin with . or .. and a semicolon: in a path that is a folder")]
    Folder,
}

/// The rule for names of new users.
pub fn check_name(name: &str) -> Result<(), BadName> {
    if !(4..=32).contains(&name.chars().count()) {
        return Err(BadName::Length);
    }
    if name.contains(':') {
        return Err(BadName::Character);
    }
    if name.trim() != name || name.contains(is_invisible) {
        return Err(BadName::Invisible);
    }
    check_addressable(name)
}

/// Characters without a width, that turn the direction of writing, or end a line.
pub fn is_invisible(letter: char) -> bool {
    matches!(letter,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Whether a name can stand in a path: what `/v1/users/{name}` cannot name must not be
/// made, because it could never be shown, changed or deleted.
pub fn check_addressable(name: &str) -> Result<(), BadName> {
    let is_bad = |letter: char| matches!(letter, '/' | '\\') || letter.is_control();
    if name.contains(is_bad) {
        return Err(BadName::Character);
    }
    let mut parts = name.as_bytes().split(|byte| *byte == b'%');
    parts.next(); // stands before the first percent sign
    if parts.any(begins_escape) {
        return Err(BadName::Escape);
    }
    match name.trim_start_matches('.').strip_prefix(';') {
        Some(rest) if name.len() - rest.len() <= 3 => Err(BadName::Folder),
        _ => Ok(()),
    }
}

/// Whether what stands behind a percent sign would be decoded with it: two hexadecimal
/// digits, or the `u` of the old `%uXXXX`.
fn begins_escape(behind: &[u8]) -> bool {
    match behind {
        [b'u' | b'U', ..] => true,
        [high, low, ..] => high.is_ascii_hexdigit() && low.is_ascii_hexdigit(),
        _ => false,
    }
}

/// Whether an escaped percent sign (`%25`) and what follows it in a path would be decoded
/// by a parser that decodes twice. `behind` is as sent.
pub fn is_escaped_twice(behind: &[u8]) -> bool {
    let next: Vec<u8> = percent_decode(behind).take(2).collect();
    begins_escape(&next)
}

/// The user that the last segment of a path names, decoded once; None: not UTF-8. A `+`
/// is a plus: only forms write spaces so.
pub fn name_in_path(path: &str) -> Option<String> {
    let last = path.trim_end_matches('/').rsplit('/').next()?;
    let name = percent_decode_str(last).decode_utf8().ok()?;
    Some(name.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_every_parser_reads_in_the_same_way_are_allowed() {
        for good in [
            "100%sure",
            "100%",
            "50% off",
            "a b c",
            "größe",
            "名前名前",
            "a+b+c",
            "a;b=c",
            "....",
            "...;",
            ".abc",
            "a?b#c",
            "a@b.example",
        ] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("abc", BadName::Length),
            ("with:colon", BadName::Character),
            ("with/slash", BadName::Character),
            ("with\\backslash", BadName::Character),
            ("line\nend", BadName::Character),
            ("next\u{85}line", BadName::Character),
            ("100%25sure", BadName::Escape),
            ("50%af", BadName::Escape),
            (" admin", BadName::Invisible),
            ("admin ", BadName::Invisible),
            ("ab\u{2028}cd", BadName::Invisible),
            ("a\u{202e}evil", BadName::Invisible),
            ("50%u0041", BadName::Escape),
            ("..;users", BadName::Folder),
            (".;users", BadName::Folder),
        ] {
            assert_eq!(check_name(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn a_path_names_a_user_by_one_decoding() {
        for (path, name) in [
            ("/v1/users/anna", "anna"),
            ("/v1/users/anna/", "anna"),
            ("/v1/users/100%25sure", "100%sure"),
            ("/v1/users/a+b%20c", "a+b c"),
            ("/v1/users/gr%C3%B6%C3%9Fe", "größe"),
            ("/v1/users/%2541", "%41"),
        ] {
            assert_eq!(name_in_path(path).as_deref(), Some(name), "{path}");
        }
        assert_eq!(name_in_path("/v1/users/%ff"), None);
    }

    #[test]
    fn a_percent_sign_is_escaped_twice_only_where_more_would_be_decoded() {
        for behind in ["2f", "41", "%32f", "%32%66", "u002f", "%75002f"] {
            assert!(is_escaped_twice(behind.as_bytes()), "{behind}");
        }
        for behind in ["", "sure", "2", "2g", "/2f", "%20"] {
            assert!(!is_escaped_twice(behind.as_bytes()), "{behind}");
        }
    }
}
