//! `[limits]` and `[[limit]]`: rate limits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::value_readers::{flag, many, name, number, quota, word};
use crate::config::problem::nearest;
use crate::config::shipped::shipped_limits;
use crate::config::{DirectoryKind, Limit, LimitKey, Limits, Quota, Route};
use crate::profiles::Profile;

const KEYS: &[(&str, LimitKey)] = &[
    ("client", LimitKey::Client),
    ("peer", LimitKey::Peer),
    ("class", LimitKey::Class),
    ("upstream", LimitKey::Upstream),
];

fn per(seconds: u64, requests: u32, burst: u32) -> Quota {
    Quota {
        requests,
        per: Duration::from_secs(seconds),
        burst,
    }
}

pub(in crate::config::file) fn limits(
    root: &ConfigTable<'_>,
    profile: &Profile,
    routes: &[Route],
    directory: DirectoryKind,
) -> Limits {
    let shipped = shipped_limits(profile, routes, directory);
    let mut limits = Limits {
        policies: policies(root, shipped, routes),
        logins_by_peer: per(60, 60, 20),
        logins_by_name: per(60, 30, 10),
        unknown_tokens: per(1, 5, 20),
        unknown_tokens_by_peer: per(1, 1, 5),
        max_keys: 100_000,
        max_in_flight: 4096,
    };
    let Some(table) = root.section("limits") else {
        return limits;
    };
    limits.logins_by_peer = table.or("logins_by_peer", quota, limits.logins_by_peer);
    limits.logins_by_name = table.or("logins_by_name", quota, limits.logins_by_name);
    limits.unknown_tokens = table.or("unknown_tokens", quota, limits.unknown_tokens);
    limits.unknown_tokens_by_peer = table.or(
        "unknown_tokens_by_peer",
        quota,
        limits.unknown_tokens_by_peer,
    );
    limits.max_keys = table.or("max_keys", number(100..=100_000_000), limits.max_keys);
    limits.max_in_flight = table.or("max_in_flight", number(1..=1_000_000), limits.max_in_flight);
    limits
}

fn policies(root: &ConfigTable<'_>, shipped: Vec<Limit>, routes: &[Route]) -> Vec<Limit> {
    let classes: BTreeSet<&str> = routes.iter().map(|route| route.class.as_ref()).collect();
    let mut policies = shipped;
    let mut seen: Vec<String> = Vec::new();
    for table in root.sections("limit") {
        let Some(name) = table.required("name", name, "\"per-client\"") else {
            table.leave_unread();
            continue;
        };
        if seen.contains(&name) {
            table.complain("name", &format!("\"{name}\" is taken by a limit above"), "");
        }
        let place = policies.iter().position(|limit| *limit.name == *name);
        let before = place.map(|place| policies[place].clone());
        seen.push(name.clone());
        let Some(limit) = policy(&table, &name, before, &classes) else {
            continue;
        };
        match place {
            Some(place) => policies[place] = limit,
            None => policies.push(limit),
        }
    }
    policies
}

/// A limit; one with the name of a profile's limit overrides the keys that it has.
fn policy(
    table: &ConfigTable<'_>,
    name: &str,
    before: Option<Limit>,
    classes: &BTreeSet<&str>,
) -> Option<Limit> {
    let class = |value: &ConfigValue<'_>| class(value, classes);
    let burst = table.read("burst", number(1..=10_000_000));
    let listed = table.read("classes", many(class));
    let dry_run = table.read("dry_run", flag);
    let (key, rate) = match &before {
        Some(before) => (
            Some(table.or("key", word(KEYS), before.key)),
            table.read("rate", quota).or(Some(before.quota)),
        ),
        None => (
            table.required("key", word(KEYS), "\"client\""),
            table.required("rate", quota, "\"50/s\""),
        ),
    };
    let quota = rate.map(|rate| Quota {
        burst: burst.unwrap_or(rate.burst),
        ..rate
    });
    let before = before.map(|limit| (limit.classes, limit.dry_run));
    let (classes, ran_dry) = before.unwrap_or_default();
    Some(Limit {
        name: Arc::from(name),
        key: key?,
        classes: listed.unwrap_or(classes),
        quota: quota?,
        dry_run: dry_run.unwrap_or(ran_dry),
    })
}

fn class(value: &ConfigValue<'_>, classes: &BTreeSet<&str>) -> Option<Arc<str>> {
    let name = name(value)?;
    if !classes.contains(name.as_str()) {
        let meant = nearest(&name, classes.iter().copied());
        let suggestion = match meant {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!(
                "there are {}",
                Vec::from_iter(classes.iter().copied()).join(", ")
            ),
        };
        value.complain("is not the class of any route", &suggestion);
        return None;
    }
    Some(Arc::from(name))
}
