//! Readers of values that say which requests a route or an upstream takes.

use std::sync::Arc;

use crate::config::PathPrefix;
use crate::config::file::config_table::ConfigValue;
use crate::config::file::value_readers::text;
use crate::config::problem::nearest;

/// A host name in lower case, without a final dot; `*.` may stand before it.
pub(super) fn host(value: &ConfigValue<'_>) -> Option<String> {
    let mut host = text(value)?.to_ascii_lowercase();
    if host.ends_with('.') {
        host.pop();
    }
    let name = host.strip_prefix("*.").unwrap_or(&host);
    let letter = |letter: u8| letter.is_ascii_alphanumeric() || b"-._:[]".contains(&letter);
    let has_empty_label = name.split('.').any(str::is_empty);
    let good = !has_empty_label && name.bytes().all(letter);
    // `*.example.org:8443` or `example.org:8443`; an IPv6 address keeps its brackets.
    let has_port = name
        .rsplit_once(':')
        .is_some_and(|(name, _)| !name.contains('['));
    if !good || has_port || name.is_empty() {
        value.complain(
            "must be a host name in ASCII, without port",
            "such as \"*.example.org\"; letters beyond ASCII as xn--",
        );
        return None;
    }
    Some(host)
}

/// A path of literal segments.
pub(super) fn prefix(value: &ConfigValue<'_>) -> Option<PathPrefix> {
    const EXAMPLE: &str = "such as \"/api\"";
    match PathPrefix::parse(&text(value)?) {
        Ok(Some(prefix)) => Some(prefix),
        Ok(None) => {
            value.complain("must not have * or {name}", EXAMPLE);
            None
        }
        Err(error) => {
            value.complain(&error.to_string(), EXAMPLE);
            None
        }
    }
}

/// The position of the upstream of this name.
pub(super) fn upstream(value: &ConfigValue<'_>, upstreams: &[Arc<str>]) -> Option<usize> {
    let name = text(value)?;
    let position = upstreams.iter().position(|other| **other == *name);
    if position.is_none() {
        let names = || upstreams.iter().map(AsRef::as_ref);
        let suggestion = match nearest(&name, names()) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("there are {}", Vec::from_iter(names().take(10)).join(", ")),
        };
        value.complain("is not the name of an upstream", &suggestion);
    }
    position
}
