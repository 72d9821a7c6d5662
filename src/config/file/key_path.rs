//! How keys of the file are written in problems, and where they stand.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::DeValue;

/// `section.key`; the key alone at the top of the file.
pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("{section}.{key}")
    }
}

/// `listener.address` for `listener[0].address`.
pub(super) fn without_positions(key: &str) -> String {
    let mut text = String::with_capacity(key.len());
    let mut inside = false;
    for letter in key.chars() {
        match letter {
            '[' => inside = true,
            ']' => inside = false,
            other if !inside => text.push(other),
            _ => {}
        }
    }
    text
}

/// Where a key stands: for a table its header, which says more than the first mention of its name.
pub(super) fn line_offset(name: &Spanned<Cow<'_, str>>, value: &Spanned<DeValue<'_>>) -> usize {
    match value.get_ref() {
        DeValue::Table(_) => value.span().start.max(name.span().start),
        _ => name.span().start,
    }
}
