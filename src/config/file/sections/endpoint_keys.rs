//! The keys of `[upstream.NAME]` that name several endpoints, and say how requests are spread over them.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::uri::PathAndQuery;
use toml::de::DeValue;

use super::upstream_address_keys::base;
use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::value_readers::{number, share, some, span, span_or_none, text, word};
use crate::config::{
    AcceptedStatus, AddressResolution, BaseAddress, EjectionRules, EndpointAffinity,
    EndpointPolicy, HealthCheckRules, ProxyConfig,
};

/// More are a mistake, or need a balancer.
const MAX_ENDPOINTS: usize = 64;
/// Keys that have no effect with one endpoint.
const OF_SEVERAL: [&str; 4] = ["affinity", "ejection", "slow_start", "retry_share"];

/// The addresses of an upstream, from `url` or `endpoints`; at least one.
pub(super) fn addresses(table: &ConfigTable<'_>) -> Option<Vec<BaseAddress>> {
    match (table.has("url"), table.has("endpoints")) {
        (true, true) => {
            let suggestion = "keep url for one endpoint, or endpoints for several";
            table.complain("endpoints", "cannot stand beside url", suggestion);
            table.value("url");
            table.value("endpoints");
            None
        }
        (false, true) => {
            let found = table.read("endpoints", some(base))?;
            check(table, &found).then_some(found)
        }
        _ => Some(vec![table.required(
            "url",
            base,
            "\"https://service.internal:443\"",
        )?]),
    }
}

fn check(table: &ConfigTable<'_>, found: &[BaseAddress]) -> bool {
    let before = |at: usize| &found[..at];
    let double = (0..found.len()).find(|at| before(*at).contains(&found[*at]));
    if let Some(double) = double {
        let reason = format!("names {} twice", found[double]);
        table.complain("endpoints", &reason, "keep one of the two");
    }
    let kind = |base: &BaseAddress| (base.tls, base.socket.is_some());
    let is_mixed = found.iter().any(|base| kind(base) != kind(&found[0]));
    if is_mixed {
        let reason = "must be reached in one way: all by https, all by http or all by unix";
        let suggestion = "make an upstream of each kind";
        table.complain("endpoints", reason, suggestion);
    }
    let is_too_long = found.len() > MAX_ENDPOINTS;
    if is_too_long {
        let reason = format!("has more than {MAX_ENDPOINTS} addresses");
        table.complain("endpoints", &reason, "");
    }
    double.is_none() && !is_mixed && !is_too_long
}

/// How requests are spread over the endpoints at `addresses`.
pub(super) fn endpoint_policy(
    table: &ConfigTable<'_>,
    addresses: Option<&[BaseAddress]>,
    proxy: Option<&ProxyConfig>,
) -> EndpointPolicy {
    let default = EndpointPolicy::default();
    let all = word(&[
        ("one", AddressResolution::One),
        ("all", AddressResolution::All),
    ]);
    let affinity = word(&[
        ("none", EndpointAffinity::LeastRequests),
        ("client", EndpointAffinity::Client),
    ]);
    let policy = EndpointPolicy {
        resolution: table.or("resolve", all, default.resolution),
        affinity: table.or("affinity", affinity, default.affinity),
        health_check: health_check(table),
        ejection: ejection(table),
        slow_start: table.or("slow_start", span_or_none, default.slow_start),
        retry_share: table.or("retry_share", share(0.0..=1.0), default.retry_share),
    };
    let Some(addresses) = addresses else {
        return policy;
    };
    if policy.resolution == AddressResolution::All {
        check_resolution(table, addresses, proxy);
    } else if addresses.len() == 1 {
        for key in OF_SEVERAL.into_iter().filter(|key| table.has(key)) {
            let suggestion = "give endpoints = [..], or resolve = \"all\"";
            table.warn(key, "has no effect with one endpoint", suggestion);
        }
    }
    policy
}

fn check_resolution(
    table: &ConfigTable<'_>,
    addresses: &[BaseAddress],
    proxy: Option<&ProxyConfig>,
) {
    let first = &addresses[0];
    let reason = if addresses.len() > 1 {
        "cannot be \"all\" beside endpoints: their names are looked up for each connection"
    } else if first.socket.is_some() {
        "cannot be \"all\" with a Unix socket"
    } else if first.host.parse::<std::net::IpAddr>().is_ok() {
        "cannot be \"all\": url has an address, no name"
    } else if proxy.is_some() {
        "cannot be \"all\" with a proxy: the proxy looks the name up"
    } else {
        return;
    };
    table.complain("resolve", reason, "remove it");
}

fn health_check(table: &ConfigTable<'_>) -> Option<HealthCheckRules> {
    let keys = table.section("health_check")?;
    let interval = keys.or("interval", span, Duration::from_secs(10));
    let timeout = keys.or("timeout", span, Duration::from_secs(2).min(interval));
    let rules = HealthCheckRules {
        path: keys.read("path", check_path),
        interval,
        timeout,
        unhealthy_after: keys.or("unhealthy_after", number(1..=100), 3),
        healthy_after: keys.or("healthy_after", number(1..=100), 2),
        accepted: AcceptedStatus(keys.or("status", some(statuses), AcceptedStatus::default().0)),
    };
    if keys.has("status") && !keys.has("path") {
        let suggestion = "add path = \"/health\", or remove status";
        keys.complain("status", "needs a path", suggestion);
    }
    if timeout > interval {
        let reason = "is longer than interval: checks would pile up";
        keys.complain("timeout", reason, "");
    }
    Some(rules)
}

fn check_path(value: &ConfigValue<'_>) -> Option<PathAndQuery> {
    let text = text(value)?;
    let is_plain = text.starts_with('/') && !text.contains('#');
    let path = text.parse().ok().filter(|_| is_plain);
    if path.is_none() {
        value.complain("must be the path of a GET", "such as \"/health\"");
    }
    path
}

/// `200`, or `"200-399"`.
fn statuses(value: &ConfigValue<'_>) -> Option<RangeInclusive<u16>> {
    let text = match value.inner {
        DeValue::Integer(number) => number.as_str(),
        DeValue::String(text) => text.as_ref(),
        _ => "",
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| text.trim().parse().ok().filter(|n| (100..600).contains(n));
    let range = status(first)
        .zip(status(last))
        .filter(|(first, last)| first <= last);
    if range.is_none() {
        let suggestion = "such as 200, or \"200-399\"";
        value.complain("must be a status, or two with - between", suggestion);
    }
    range.map(|(first, last)| first..=last)
}

/// `"none"`, or a table.
fn ejection(table: &ConfigTable<'_>) -> Option<EjectionRules> {
    let default = EjectionRules::default();
    let is_text = |value: &ConfigValue<'_>| Some(matches!(value.inner, DeValue::String(_)));
    if table.read("ejection", is_text) == Some(true) {
        return table.or("ejection", word(&[("none", None)]), Some(default));
    }
    let Some(keys) = table.section("ejection") else {
        return Some(default);
    };
    let rules = EjectionRules {
        failures: keys.or("failures", number(1..=1000), default.failures),
        first: keys.or("first", span, default.first),
        max: keys.or("max", span, default.max),
    };
    if rules.max < rules.first {
        keys.complain("max", "is shorter than first", "");
    }
    Some(rules)
}
