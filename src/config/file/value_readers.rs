//! Readers: from one value of the file to one checked value. Each reports its own problem, without
//! repeating a text that could be a secret under the wrong key.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use toml::de::DeValue;

use super::config_table::ConfigValue;
use super::units::{parse_hex, parse_network, parse_quota, parse_size, parse_span};
use crate::config::problem::nearest;
use crate::config::{AddressBlock, PathPattern, Quota};
use crate::secret::SecretSource;

pub(super) fn text(value: &ConfigValue<'_>) -> Option<String> {
    match value.inner {
        DeValue::String(text) if !text.trim().is_empty() => Some(text.to_string()),
        DeValue::String(_) => {
            value.complain("is empty", "");
            None
        }
        _ => {
            value.complain("must be a text in quotes", "");
            None
        }
    }
}

pub(super) fn flag(value: &ConfigValue<'_>) -> Option<bool> {
    let DeValue::Boolean(flag) = value.inner else {
        value.complain("must be true or false, without quotes", "");
        return None;
    };
    Some(*flag)
}

/// A whole number within a range.
pub(super) fn number<N>(range: RangeInclusive<N>) -> impl Fn(&ConfigValue<'_>) -> Option<N>
where
    N: TryFrom<u64> + PartialOrd + std::fmt::Display,
{
    move |value| {
        let number = match value.inner {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        let number = number.and_then(|number| N::try_from(number).ok());
        let found = number.filter(|number| range.contains(number));
        if found.is_none() {
            let (low, high) = (range.start(), range.end());
            value.complain(&format!("must be a whole number, {low} to {high}"), "");
        }
        found
    }
}

/// A fraction within a range.
pub(super) fn share(range: RangeInclusive<f64>) -> impl Fn(&ConfigValue<'_>) -> Option<f64> {
    move |value| {
        let number: Option<f64> = match value.inner {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) => number.as_str().parse().ok(),
            _ => None,
        };
        let found = number.filter(|number| range.contains(number));
        if found.is_none() {
            let (low, high) = (range.start(), range.end());
            value.complain(&format!("must be a number, {low} to {high}"), "");
        }
        found
    }
}

/// A time such as `"30s"`, longer than 0.
pub(super) fn span(value: &ConfigValue<'_>) -> Option<Duration> {
    let span = span_or_none(value)?;
    if span.is_zero() {
        value.complain("must be longer than 0", "such as \"30s\"");
        return None;
    }
    Some(span)
}

/// A time such as `"30s"`; `"0s"` is allowed.
pub(super) fn span_or_none(value: &ConfigValue<'_>) -> Option<Duration> {
    let parsed = match value.inner {
        DeValue::String(text) => parse_span(text),
        _ => None,
    };
    if parsed.is_none() {
        value.complain(
            "must be a time in quotes, of at most ten years",
            "such as \"250ms\", \"30s\", \"5m\", \"12h\" or \"7d\"",
        );
    }
    parsed
}

/// Bytes: `"64KiB"`, `"110MB"`, or a plain number.
pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(&ConfigValue<'_>) -> Option<u64> {
    move |value| {
        let bytes = match value.inner {
            DeValue::String(text) => parse_size(text),
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        let found = bytes.filter(|bytes| range.contains(bytes));
        if found.is_none() {
            let (low, high) = (range.start(), range.end());
            value.complain(
                &format!("must be a size, {low} to {high} bytes"),
                "such as \"64KiB\" or \"110MB\"",
            );
        }
        found
    }
}

/// `"10/s"` or `"10/m burst 5"`; without a burst, as many as the rate names.
pub(super) fn quota(value: &ConfigValue<'_>) -> Option<Quota> {
    let parsed = match value.inner {
        DeValue::String(text) => parse_quota(text),
        _ => None,
    };
    if parsed.is_none() {
        value.complain(
            "must be a rate in quotes",
            "such as \"50/s\" or \"10/m burst 5\"",
        );
    }
    parsed
}

/// One of a few words.
pub(super) fn word<T: Copy>(
    words: &'static [(&'static str, T)],
) -> impl Fn(&ConfigValue<'_>) -> Option<T> {
    move |value| {
        let names = || words.iter().map(|(name, _)| *name);
        let DeValue::String(text) = value.inner else {
            let all: Vec<_> = names().collect();
            value.complain(&format!("must be one of {}, in quotes", all.join(", ")), "");
            return None;
        };
        let found = words.iter().find(|(name, _)| *name == text.as_ref());
        if found.is_none() {
            let all: Vec<_> = names().collect();
            let meant = nearest(text, names()).map(|meant| format!("did you mean \"{meant}\"?"));
            let suggestion = meant.unwrap_or_default();
            value.complain(&format!("must be one of {}", all.join(", ")), &suggestion);
        }
        found.map(|(_, meaning)| *meaning)
    }
}

/// A list, or one value that stands for a list of one. Its good elements.
pub(super) fn many<'a, T>(
    reader: impl Fn(&ConfigValue<'a>) -> Option<T>,
) -> impl Fn(&ConfigValue<'a>) -> Option<Vec<T>> {
    move |value| {
        if matches!(value.inner, DeValue::String(_)) {
            return Some(vec![reader(value)?]);
        }
        Some(value.items()?.iter().filter_map(&reader).collect())
    }
}

/// Like `many`, with at least one element.
pub(super) fn some<'a, T>(
    reader: impl Fn(&ConfigValue<'a>) -> Option<T>,
) -> impl Fn(&ConfigValue<'a>) -> Option<Vec<T>> {
    let many = many(reader);
    move |value| {
        if matches!(value.inner, DeValue::Array(list) if list.is_empty()) {
            value.complain("must not be empty", "leave the key out for its default");
            return None;
        }
        many(value)
    }
}

/// A file or folder; relative ones start at the config file's folder.
pub(super) fn path(value: &ConfigValue<'_>) -> Option<PathBuf> {
    text(value).map(|text| value.report.folder.join(text))
}

/// `address:port`.
pub(super) fn address(value: &ConfigValue<'_>) -> Option<std::net::SocketAddr> {
    let parsed: Option<std::net::SocketAddr> = text(value)?.parse().ok();
    if parsed.is_none() {
        value.complain(
            "must be an IP address with a port below 65536",
            "such as \"127.0.0.1:8443\" or \"[::]:8443\"",
        );
    }
    if parsed.is_some_and(|address| address.port() == 0) {
        value.warn("has port 0: any free port, another at each start", "");
    }
    parsed
}

/// SHA-256 in 64 hexadecimal digits.
pub(super) fn digest(value: &ConfigValue<'_>) -> Option<[u8; 32]> {
    let digest = text(value).and_then(|text| parse_hex(&text));
    if digest.is_none() && matches!(value.inner, DeValue::String(_)) {
        value.complain(
            "must be a SHA-256 in 64 hexadecimal digits, never the thing itself",
            "tollgate new-key prints a key with its digest",
        );
    }
    digest
}

/// Where a secret is kept: `{ file = "..." }` or `{ env = "..." }`.
pub(super) fn secret(value: &ConfigValue<'_>) -> Option<SecretSource> {
    const PLACES: &str = "write { file = \"/run/secrets/...\" } or { env = \"NAME\" }";
    if !matches!(value.inner, DeValue::Table(_)) {
        value.complain("must name the place of the secret, not the secret", PLACES);
        return None;
    }
    let place = value.table()?;
    let file = place.read("file", path);
    let env = place.read("env", variable);
    match (place.has("file"), place.has("env")) {
        (true, false) => file.map(SecretSource::File),
        (false, true) => env.map(SecretSource::Env),
        (true, true) => {
            value.complain("names two places", "keep file or env");
            None
        }
        (false, false) => {
            value.complain("names no place", PLACES);
            None
        }
    }
}

/// The name of an environment variable. A secret put here by mistake is not repeated.
fn variable(value: &ConfigValue<'_>) -> Option<String> {
    let name = text(value)?;
    let good = name
        .bytes()
        .all(|letter| letter.is_ascii_alphanumeric() || letter == b'_')
        && !name.starts_with(|letter: char| letter.is_ascii_digit());
    if !good {
        value.complain(
            "must be the name of an environment variable: letters, digits and _",
            "",
        );
        return None;
    }
    Some(name)
}

/// RFC 7617, 2: a user name with a colon cannot be sent.
pub(super) fn username(value: &ConfigValue<'_>) -> Option<String> {
    let name = text(value)?;
    if name.contains(':') || name.chars().any(char::is_control) {
        value.complain("must not have colons or control characters", "");
        return None;
    }
    Some(name)
}

/// A name that may stand in a metrics label: letters, digits, `.`, `-`, `_`.
pub(super) fn name(value: &ConfigValue<'_>) -> Option<String> {
    let name = text(value)?;
    if !is_name(&name) {
        value.complain("must have 1 to 64 letters, digits, dots, - or _", "");
        return None;
    }
    Some(name)
}

/// Whether a text may name a route, a key, a limit or an upstream.
pub fn is_name(name: &str) -> bool {
    let letter = |letter: u8| letter.is_ascii_alphanumeric() || b"._-".contains(&letter);
    (1..=64).contains(&name.len()) && name.bytes().all(letter)
}

pub(super) fn method(value: &ConfigValue<'_>) -> Option<Method> {
    let name = text(value)?;
    let method = Method::from_bytes(name.as_bytes()).ok();
    match method {
        Some(Method::TRACE) => {
            // RFC 9110 9.3.8: it would show the credential that the gate puts in.
            value.complain(
                "is never passed on: the response repeats the whole request",
                "",
            );
            None
        }
        Some(method) if !name.bytes().any(|letter| letter.is_ascii_lowercase()) => Some(method),
        _ => {
            let upper = name.to_ascii_uppercase();
            let known = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
            let meant = nearest(&upper, known).map(|meant| format!("did you mean \"{meant}\"?"));
            value.complain(
                "must be a method in capital letters",
                &meant.unwrap_or_default(),
            );
            None
        }
    }
}

pub(super) fn pattern(value: &ConfigValue<'_>) -> Option<PathPattern> {
    match PathPattern::parse(&text(value)?) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            value.complain(
                &error.to_string(),
                "such as \"/media/{id}\" or \"/groups/*\"",
            );
            None
        }
    }
}

/// `10.0.0.0/8`, or one address.
pub(super) fn network(value: &ConfigValue<'_>) -> Option<AddressBlock> {
    let network = parse_network(&text(value)?);
    if network.is_none() {
        value.complain(
            "must be an address block without host bits",
            "such as \"10.0.0.0/8\" or \"fd00::/8\"",
        );
    }
    network
}

/// Seconds since 1970 of an RFC 3339 time, quoted or not.
pub(super) fn moment(value: &ConfigValue<'_>) -> Option<i64> {
    let text = match value.inner {
        DeValue::String(text) => text.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        _ => String::new(),
    };
    let parsed: Option<jiff::Timestamp> = text.parse().ok();
    if parsed.is_none() {
        value.complain(
            "must be a time with its zone (RFC 3339)",
            "such as \"2027-01-31T00:00:00Z\"",
        );
    }
    parsed.map(jiff::Timestamp::as_second)
}
