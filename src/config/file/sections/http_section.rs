//! `[http]`, and `allow_fields` wherever it may stand.

use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::value_readers::{flag, many, network, size, text};
use crate::config::problem::nearest;
use crate::config::request_rules::{METHOD_PARAMETER, OVERRIDE_FIELDS, override_field};
use crate::config::{AllowedFields, RequestRules};

/// Fields that the gateway itself writes: a client's values are never forwarded.
const WRITTEN_HERE: [&str; 3] = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];

pub(in crate::config::file) fn http(root: &ConfigTable<'_>) -> RequestRules {
    let mut http = RequestRules {
        trusted_proxies: Vec::new(),
        allow_underscores: false,
        allow_fields: AllowedFields::default(),
        min_body_rate: 500,
    };
    let Some(table) = root.section("http") else {
        return http;
    };
    http.trusted_proxies = table.or("trusted_proxies", many(network), http.trusted_proxies);
    if http
        .trusted_proxies
        .iter()
        .any(|network| network.prefix == 0)
    {
        let reason = "trusts every address: any client could choose the address it is known by";
        table.complain("trusted_proxies", reason, "name your proxies");
    }
    http.allow_underscores = table.or("allow_underscores", flag, http.allow_underscores);
    http.allow_fields = allow_fields(&table).unwrap_or(http.allow_fields);
    http.min_body_rate = table.or("min_body_rate", size(0..=1 << 30), http.min_body_rate);
    http
}

/// None: the table does not have the key.
pub(super) fn allow_fields(table: &ConfigTable<'_>) -> Option<AllowedFields> {
    table
        .read("allow_fields", many(override_name))
        .map(AllowedFields::new)
}

/// The name of a field that would be dropped, or `_method`.
fn override_name(value: &ConfigValue<'_>) -> Option<String> {
    let name = text(value)?.to_ascii_lowercase();
    if name == METHOD_PARAMETER {
        return Some(name);
    }
    let name = name.replace('_', "-");
    if WRITTEN_HERE.contains(&name.as_str()) {
        value.complain(
            "is a field that the gate itself writes",
            "name the proxy that may set it in trusted_proxies",
        );
        return None;
    }
    if override_field(&name).is_none() || name.parse::<http::HeaderName>().is_err() {
        let known = OVERRIDE_FIELDS.iter().copied().chain([METHOD_PARAMETER]);
        let meant = nearest(&name, known).map(|meant| format!("did you mean \"{meant}\"?"));
        value.complain(
            "is not a field that the gate drops by this rule",
            &meant.unwrap_or_else(|| "docs/FRAMING.md lists them".to_owned()),
        );
        return None;
    }
    Some(name)
}
