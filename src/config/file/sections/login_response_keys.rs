//! `login.token` and `login.expires`: where the response has the token and its end.

use toml::de::DeValue;

use super::login_values::{header_name, json_pointer};
use crate::config::file::config_table::ConfigValue;
use crate::config::file::units::parse_span;
use crate::config::file::value_readers::{some, text};
use crate::profiles::{ExpirySource, TokenSource};

/// A JSON pointer, `"body"`, or `{ header = ".." }`.
pub(super) fn token_source(value: &ConfigValue<'_>) -> Option<TokenSource> {
    if let DeValue::Table(_) = value.inner {
        let table = value.table()?;
        let name = table.required("header", header_name, "\"x-subject-token\"")?;
        return Some(TokenSource::Header(name));
    }
    match text(value)?.as_str() {
        "body" => Some(TokenSource::WholeBody),
        _ => json_pointer(value).map(TokenSource::Pointer),
    }
}

/// One source, or a list: the first that the response has counts.
pub(super) fn expiry_sources(value: &ConfigValue<'_>) -> Option<Vec<ExpirySource>> {
    match value.inner {
        DeValue::Array(_) => some(expiry_source)(value),
        _ => Some(vec![expiry_source(value)?]),
    }
}

fn expiry_source(value: &ConfigValue<'_>) -> Option<ExpirySource> {
    let suggestion = "such as { seconds = \"/expires_in\" }, { milliseconds = \"/expires\" }, \
                      { date = \"/expires_at\" }, \"jwt\" or \"1h\"";
    if let DeValue::Table(_) = value.inner {
        let table = value.table()?;
        let found = [
            table
                .read("seconds", json_pointer)
                .map(ExpirySource::PointerSeconds),
            table
                .read("milliseconds", json_pointer)
                .map(ExpirySource::PointerMillis),
            table
                .read("date", json_pointer)
                .map(ExpirySource::PointerDate),
        ];
        let mut found = found.into_iter().flatten();
        return match (found.next(), found.next()) {
            (Some(source), None) => Some(source),
            (Some(_), Some(_)) => {
                value.complain("has several places", "write each in braces of its own");
                None
            }
            (None, _) => {
                let is_told = ["seconds", "milliseconds", "date"]
                    .iter()
                    .any(|key| table.has_problem(key));
                if !is_told {
                    value.complain("does not say where the end is", suggestion);
                }
                None
            }
        };
    }
    let text = text(value)?;
    let fixed = parse_span(&text).filter(|life| !life.is_zero());
    match text.as_str() {
        "jwt" => Some(ExpirySource::JwtExp),
        _ if fixed.is_some() => fixed.map(ExpirySource::Fixed),
        _ => {
            value.complain("is no end of a token", suggestion);
            None
        }
    }
}
