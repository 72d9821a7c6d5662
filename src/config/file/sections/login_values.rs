//! Values that the keys of a login share.

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, HeaderValue};
use serde_json::Value;
use toml::de::DeValue;

use crate::config::file::config_table::ConfigValue;
use crate::config::file::value_readers::text;
use crate::profiles::Template;

/// Fields of the connection, and `Cookie`, which is the client's.
const NOT_OURS: [HeaderName; 7] = [
    HOST,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    CONNECTION,
    TE,
    UPGRADE,
    COOKIE,
];

/// None: the connection needs it, or it is no name of a header.
pub(super) fn settable_header(name: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    (!NOT_OURS.contains(&name)).then_some(name)
}

/// `template`, if its own text can stand in a header.
pub(super) fn header_text(value: &ConfigValue<'_>, template: Template) -> Option<Template> {
    let as_it_is = |text: &str, into: &mut String| into.push_str(text);
    let example = template.fill(|_| "x", as_it_is);
    if HeaderValue::from_str(&example).is_err() {
        value.complain("cannot stand in a header", "");
        return None;
    }
    Some(template)
}

/// The name of a header that carries a token.
pub(super) fn header_name(value: &ConfigValue<'_>) -> Option<HeaderName> {
    let name = settable_header(&text(value)?);
    if name.is_none() {
        value.complain(
            "must be a header that the gate can set",
            "such as \"authorization\"",
        );
    }
    name
}

/// RFC 6901.
pub(super) fn json_pointer(value: &ConfigValue<'_>) -> Option<String> {
    let text = text(value)?;
    if !text.starts_with('/') {
        let reason = "must be a JSON pointer, which begins with /";
        value.complain(reason, "such as \"/access_token\", or \"/data/0/token\"");
        return None;
    }
    Some(text)
}

/// Text, number, true or false.
pub(super) fn json_value(value: &ConfigValue<'_>) -> Option<Value> {
    let found = match value.inner {
        DeValue::String(text) => Some(Value::String(text.to_string())),
        DeValue::Boolean(flag) => Some(Value::Bool(*flag)),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .map(Value::from),
        DeValue::Float(number) => number.as_str().parse::<f64>().ok().map(Value::from),
        _ => None,
    };
    if found.is_none() {
        value.complain("must be a text, a number, true or false", "");
    }
    found
}
