//! `[upstream.NAME]`: the service behind the gateway, and the login there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::uri::PathAndQuery;

use super::endpoint_keys::{addresses, endpoint_policy};
use super::login_section::login_section;
use super::profile_routing::UpstreamNames;
use super::proxy_keys::proxy;
use super::upstream_address_keys::{
    client_certificate, host_field, http2, require_privacy, server_name, warn_of_auto,
    warn_without_tls,
};
use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::named_files::{public_file, secret_that};
use crate::config::file::units::parse_hex;
use crate::config::file::value_readers::text;
use crate::config::file::value_readers::{flag, is_name, number, size, some, span, span_or_none};
use crate::config::{Trust, UpstreamConfig};
use crate::profiles::{API_KEY_LENGTH, Profile};

/// The settings of each upstream, and what routes need to know of them all. None: an upstream is
/// missing or wrong; the report has that problem.
pub(in crate::config::file) fn upstreams(
    root: &ConfigTable<'_>,
    profile: &Profile,
) -> (Option<Vec<UpstreamConfig>>, UpstreamNames) {
    let mut names = UpstreamNames::default();
    let Some(all) = root.section("upstream") else {
        root.missing("upstream", "[upstream.main] with a url");
        return (None, names);
    };
    let tables = all.named();
    if tables.is_empty() {
        let example = "[upstream.main] with a url";
        all.complain("", "names no upstream", &format!("add {example}"));
        return (None, names);
    }
    let mut upstreams = Vec::new();
    for (name, table) in &tables {
        names.read(name, table, profile, tables.len() == 1);
        upstreams.push(one(name, table, profile));
    }
    (upstreams.into_iter().collect(), names)
}

fn one(name: &str, table: &ConfigTable<'_>, profile: &Profile) -> Option<UpstreamConfig> {
    if !is_name(name) {
        table.complain(
            "",
            "its name must have 1 to 64 letters, digits, dots, - or _",
            "",
        );
    }
    let addresses = addresses(table);
    let proxy = proxy(table, addresses.as_ref().map(|addresses| &addresses[0]));
    require_privacy(table, addresses.as_deref(), proxy.as_ref());
    let endpoint_policy = endpoint_policy(table, addresses.as_deref(), proxy.as_ref());
    let concurrency = table.or("concurrency", number(1..=100_000), 64);
    let stalled_streams = table.or("stalled_streams", number(0..=1_000_000), concurrency * 4);
    let replay_limit = table.or("replay_limit", size(0..=16 << 20), 64 << 10);
    let has_several = addresses.as_ref().is_some_and(|all| all.len() > 1);
    let mut addresses = addresses.unwrap_or_default().into_iter();
    let first = addresses.next();
    let login = login_section(table, profile, has_several, endpoint_policy.resolution);
    let upstream = UpstreamConfig {
        name: Arc::from(name),
        trust: trust(table),
        host: table.read("host", host_field),
        server_name: table.read("server_name", server_name),
        http2: http2(table),
        client_certificate: client_certificate(table),
        proxy,
        login: login.login,
        login_description: login.description,
        api_key: table.read(
            "api_key",
            secret_that(is_key_long, "must have 12 to 128 characters"),
        ),
        concurrency,
        stalled_streams,
        queue_timeout: table.or("queue_timeout", span_or_none, Duration::from_secs(10)),
        idle_timeout: table.or("idle_timeout", span, Duration::from_secs(4)),
        connect_timeout: table.or("connect_timeout", span, Duration::from_secs(5)),
        first_byte_timeout: table.or("first_byte_timeout", span, Duration::from_secs(30)),
        body_idle_timeout: table.or("body_idle_timeout", span, Duration::from_secs(30)),
        replay_limit: usize::try_from(replay_limit).unwrap_or(usize::MAX),
        probe: table
            .read("probe", probe)
            .unwrap_or_else(|| login.probe.or(profile.probe.map(PathAndQuery::from_static))),
        required: table.or("required", flag, true),
        more_endpoints: addresses.collect(),
        endpoint_policy,
        base: first?,
    };
    warn_without_tls(table, &upstream.base);
    warn_of_auto(table, &upstream);
    Some(upstream)
}

fn is_key_long(key: &crate::secret::Secret) -> bool {
    API_KEY_LENGTH.contains(&key.expose().chars().count())
}

fn trust(table: &ConfigTable<'_>) -> Trust {
    let authorities: Option<PathBuf> = table.read("ca", public_file);
    let pins = table.read("pins", some(pin));
    if table.has("ca") && table.has("pins") {
        let reason =
            "has no effect beside pins: a pinned key is trusted whatever authority signed it";
        table.complain("ca", reason, "keep one of the two");
    }
    match (authorities, pins) {
        (Some(path), _) => Trust::Authorities(path),
        (None, Some(pins)) => Trust::Pins(pins),
        (None, None) => Trust::PublicAuthorities,
    }
}

/// `sha256//` and base64, as curl and HPKP write it, or 64 hexadecimal digits.
fn pin(value: &ConfigValue<'_>) -> Option<[u8; 32]> {
    let text = text(value)?;
    let pin = match text.strip_prefix("sha256//") {
        Some(encoded) => STANDARD
            .decode(encoded)
            .ok()
            .and_then(|pin| pin.try_into().ok()),
        None => parse_hex(&text),
    };
    if pin.is_none() {
        let suggestion = "sha256// and its base64, or 64 hexadecimal digits";
        value.complain("must be the SHA-256 of a public key", suggestion);
    }
    pin
}

/// A path, or "none" (`Some(None)`); None: the value is wrong.
fn probe(value: &ConfigValue<'_>) -> Option<Option<PathAndQuery>> {
    let text = text(value)?;
    if text == "none" {
        return Some(None);
    }
    let is_plain = text.starts_with('/') && !text.contains('#');
    let path = text.parse().ok().filter(|_| is_plain);
    if path.is_none() {
        let suggestion = "such as \"/health\", or \"none\"";
        value.complain("must be the path of a GET", suggestion);
    }
    path.map(Some)
}
