//! The shipped config.toml: accepted as it is and with every commented key enabled, and complete.

use std::collections::BTreeSet;

use super::switched_on::switched_on;
use super::{example, top};
use crate::config::file::parse_with_keys;
use crate::config::{load, parse};

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "the example has an [emulator]")]
fn the_example_is_accepted_as_shipped_and_with_every_commented_key_enabled() {
    let loaded = load(&top().join("config.toml")).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let texts = switched_on(&example());
    assert!(texts.len() >= 4, "the alternatives were not found");
    for text in texts {
        let loaded = parse(&text, top()).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        assert!(loaded.config.users.first_admin.is_some());
        assert_eq!(loaded.config.api_keys.len(), 1);
        assert_eq!(loaded.config.limits.policies.len(), 3);
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "the example has an [emulator]")]
fn the_example_shows_the_defaults() {
    let bare = r#"
        [[listener]]
        address = "127.0.0.1:8443"
        tls = { certificates = [{ certificate = "certs/server.pem", key = "certs/server.key" }] }
        [upstream.main]
        url = "https://127.0.0.1:9443"
        ca = "certs/webapp-ca.pem"
        login = { username = "admin", password = { file = "certs/webapp-password" } }
        api_key = { file = "certs/webapp-api-key" }
        [log]
        format = "text"
        [emulator]
    "#;
    let bare = parse(bare, top()).unwrap().config;
    let shipped = parse(&example(), top()).unwrap().config;
    assert_eq!(bare, shipped);
    let mut shown = parse(&switched_on(&example())[0], top()).unwrap().config;
    // Keys without a default are shown with an example value.
    shown.upstreams[0].server_name = None;
    shown.upstreams[0].host = None;
    shown.upstreams[0].client_certificate = None;
    shown.upstreams[0].proxy = None;
    shown.upstreams[0].endpoint_policy.health_check = None;
    shown.users.first_admin = None;
    shown.users.rules.clear();
    shown.api_keys.clear();
    shown.http.trusted_proxies.clear();
    (shown.store.key, shown.store.old_key) = (None, None);
    shown.operator.token = None;
    let media = shown
        .routes
        .iter()
        .find(|route| &*route.name == "media.upload")
        .cloned();
    shown.routes.clone_from(&bare.routes);
    shown.limits.policies.pop();
    let nodes = bare.limits.policies[1].clone();
    shown.limits.policies[1] = nodes;
    assert_eq!(
        shown, bare,
        "a key's default in config.toml is not the real one"
    );
    let shipped = bare
        .routes
        .iter()
        .find(|route| &*route.name == "media.upload");
    assert_eq!(media.as_ref(), shipped);
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "the example has an [emulator]")]
fn the_example_has_every_key_that_is_understood() {
    let mut known = BTreeSet::new();
    let mut shown = BTreeSet::new();
    for text in switched_on(&example()) {
        known.extend(parse_with_keys(&text, top()).1);
        let table = toml::de::DeTable::parse(&text).unwrap();
        walk(table.get_ref(), "", &mut shown);
    }
    // The keys of a login that the file describes are shown in examples of their own.
    for file in std::fs::read_dir(top().join("examples")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        if text.contains("[upstream.main.login]") {
            known.extend(parse_with_keys(&text, top()).1);
            let table = toml::de::DeTable::parse(&text).unwrap();
            walk(table.get_ref(), "", &mut shown);
        }
    }
    assert!(known.len() > 80, "only {} keys known", known.len());
    // Both sources of a secret, file and env, are shown once, at the login.
    let shown_once =
        |key: &&String| key.ends_with(".env") && shown.contains("upstream.main.login.password.env");
    let missing = known.difference(&shown).filter(|key| !shown_once(key));
    let missing: Vec<_> = missing.collect();
    assert!(missing.is_empty(), "not in config.toml: {missing:?}");
}

fn walk(table: &toml::de::DeTable<'_>, prefix: &str, keys: &mut BTreeSet<String>) {
    for (name, value) in table {
        let key = match prefix {
            "" => name.get_ref().to_string(),
            _ => format!("{prefix}.{}", name.get_ref()),
        };
        let tables = match value.get_ref() {
            toml::de::DeValue::Table(inner) => vec![inner],
            toml::de::DeValue::Array(list) => list
                .iter()
                .filter_map(|item| match item.get_ref() {
                    toml::de::DeValue::Table(inner) => Some(inner),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        for inner in tables {
            walk(inner, &key, keys);
        }
        keys.insert(key);
    }
}
