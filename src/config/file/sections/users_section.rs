//! `[users]` and `[[api_key]]`: who may call.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;

use super::route_values::upstream;
use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::named_files::secret_that;
use crate::config::file::value_readers::{
    digest, flag, many, method, moment, name, number, pattern, quota,
};
use crate::config::file::value_readers::{some, span, text, word};
use crate::config::{
    ApiKey, AtTokenCap, DirectoryKind, FirstAdmin, FirstPassword, OnPasswordChange, UnknownTokens,
    UserRule, UsersConfig,
};
use crate::profiles::{Role, check_name, check_password};

const ROLES: &[(&str, Role)] = &[("user", Role::User), ("admin", Role::Admin)];

/// `upstreams`: the names of all. Also returns the position of the one that has the users.
pub(in crate::config::file) fn users(
    root: &ConfigTable<'_>,
    upstreams: &[Arc<str>],
) -> (UsersConfig, usize) {
    const DIRECTORIES: &[(&str, DirectoryKind)] = &[
        ("gateway", DirectoryKind::Gateway),
        ("webapp", DirectoryKind::Upstream),
    ];
    const UNKNOWN: &[(&str, UnknownTokens)] = &[
        ("reject", UnknownTokens::Reject),
        ("ask", UnknownTokens::Ask),
    ];
    const AT_CAP: &[(&str, AtTokenCap)] = &[
        ("end_oldest", AtTokenCap::EndOldest),
        ("refuse", AtTokenCap::Refuse),
    ];
    const ON_CHANGE: &[(&str, OnPasswordChange)] = &[
        ("end_others", OnPasswordChange::EndOthers),
        ("end_all", OnPasswordChange::EndAll),
    ];
    let mut users = UsersConfig::default();
    let Some(table) = root.section("users") else {
        users.rules = user_rules(root, upstreams, None);
        return (users, 0);
    };
    users.directory = table.or("directory", word(DIRECTORIES), users.directory);
    users.unknown_tokens = table.or("unknown_tokens", word(UNKNOWN), users.unknown_tokens);
    users.token_lifetime = table.or("token_lifetime", span, users.token_lifetime);
    let cap = number(1..=100_000_000);
    users.max_tokens_per_user = table.or("max_tokens_per_user", &cap, users.max_tokens_per_user);
    users.max_tokens = table.or("max_tokens", &cap, users.max_tokens);
    users.at_token_cap = table.or("at_token_cap", word(AT_CAP), users.at_token_cap);
    let on_change = word(ON_CHANGE);
    users.on_password_change = table.or("on_password_change", on_change, users.on_password_change);
    users.first_admin = table
        .section("first_admin")
        .and_then(|table| first_admin(&table));
    users.hashing_slots = table.or("hashing_slots", number(1..=64), users.hashing_slots);
    users.upstreams = table.or("upstreams", many(named_upstream(upstreams)), Vec::new());
    check(&table, &users);
    users.max_tokens_per_user = users.max_tokens_per_user.min(largest_share(&users));
    let upstream = users_upstream(&table, users.directory, upstreams);
    let own = upstreams.get(upstream);
    let own = own.filter(|_| users.directory == DirectoryKind::Upstream);
    check_own_upstream(&table, &users.upstreams, own);
    users.rules = user_rules(root, upstreams, own);
    (users, upstream)
}

/// `[[user]]`, sorted by name. `own`: the upstream that has the users; None: the gate has them.
fn user_rules(
    root: &ConfigTable<'_>,
    upstreams: &[Arc<str>],
    own: Option<&Arc<str>>,
) -> Vec<UserRule> {
    let mut rules: Vec<UserRule> = Vec::new();
    for table in root.sections("user") {
        let name = table.required("name", username, "\"worker\"");
        let name = name.map(|name| name.to_lowercase());
        let allowed = some(named_upstream(upstreams));
        let allowed = table.required("upstreams", allowed, "[\"main\"]");
        let (Some(name), Some(upstreams)) = (name, allowed) else {
            continue;
        };
        check_own_upstream(&table, &upstreams, own);
        match rules.binary_search_by(|rule| (*rule.name).cmp(&name)) {
            Ok(_) => table.complain("name", &format!("\"{name}\" has a rule above"), ""),
            Err(position) => {
                let name = Arc::from(name);
                rules.insert(position, UserRule { name, upstreams });
            }
        }
    }
    rules
}

/// The name of an upstream. `upstreams`: the names of all.
fn named_upstream<'a, 'v>(
    upstreams: &'a [Arc<str>],
) -> impl Fn(&ConfigValue<'v>) -> Option<Arc<str>> + use<'a, 'v> {
    |value| {
        let position = upstream(value, upstreams)?;
        Some(Arc::clone(&upstreams[position]))
    }
}

/// With `directory = "webapp"` a user that may not call the upstream of the users could not log out.
fn check_own_upstream(table: &ConfigTable<'_>, allowed: &[Arc<str>], own: Option<&Arc<str>>) {
    if let Some(own) = own.filter(|own| !allowed.is_empty() && !allowed.contains(own)) {
        let reason = format!("lacks \"{own}\", which has the users: they could not log out");
        table.complain("upstreams", &reason, "add it");
    }
}

/// Position of the upstream that has the users with `directory = "webapp"`.
fn users_upstream(
    table: &ConfigTable<'_>,
    directory: DirectoryKind,
    upstreams: &[Arc<str>],
) -> usize {
    let position = table.read("upstream", |value| upstream(value, upstreams));
    match (directory, table.has("upstream")) {
        (DirectoryKind::Gateway, true) => {
            let reason = "has no effect with directory = \"gateway\": the gate has the users";
            table.warn("upstream", reason, "");
        }
        (DirectoryKind::Upstream, false) if upstreams.len() > 1 => {
            let reason = "is missing: there are several upstreams, and one has the users";
            table.complain("upstream", reason, &format!("such as \"{}\"", upstreams[0]));
        }
        _ => {}
    }
    position.unwrap_or(0)
}

/// A user may have a quarter of all tokens: no single user can use them up.
fn largest_share(users: &UsersConfig) -> usize {
    (users.max_tokens / 4).max(1)
}

fn check(table: &ConfigTable<'_>, users: &UsersConfig) {
    if users.directory == DirectoryKind::Gateway && users.unknown_tokens == UnknownTokens::Ask {
        let reason = "\"ask\" is for directory = \"webapp\": the gate knows all tokens it minted";
        table.complain(
            "unknown_tokens",
            reason,
            "set directory = \"webapp\" or \"reject\"",
        );
    }
    if users.directory == DirectoryKind::Upstream && users.first_admin.is_some() {
        let reason = "has no effect with directory = \"webapp\": the upstream has the users";
        table.warn("first_admin", reason, "");
    }
    let is_own = table.has("max_tokens_per_user");
    if is_own && users.max_tokens_per_user > users.max_tokens {
        let reason = format!("is more than max_tokens, {}", users.max_tokens);
        table.complain(
            "max_tokens_per_user",
            &reason,
            "one user could never have that many",
        );
    } else if is_own && users.max_tokens_per_user > largest_share(users) {
        let share = largest_share(users);
        let reason = format!("is more than a quarter of max_tokens: {share} will be used");
        table.warn("max_tokens_per_user", &reason, "or raise max_tokens");
    }
    if users.token_lifetime < Duration::from_secs(1) {
        let reason = "must be at least a second: expiry is in whole seconds";
        table.complain("token_lifetime", reason, "");
    }
}

fn first_admin(table: &ConfigTable<'_>) -> Option<FirstAdmin> {
    let username = table.required("username", username, "\"admin\"");
    let must_change = table.or("must_change", flag, false);
    // A password that must be changed at the first login may break the rule.
    let keeps = if must_change {
        |_: &crate::secret::Secret| true
    } else {
        |password: &crate::secret::Secret| check_password(password).is_ok()
    };
    let rule = "must have 8 to 64 characters: a digit, an upper, a lower and a special one";
    let plain = table.read("password", secret_that(keeps, rule));
    let hash = table.read("password_hash", password_hash);
    let password = match (table.has("password"), table.has("password_hash")) {
        (true, true) => {
            table.complain(
                "password_hash",
                "is a second password",
                "keep one of the two",
            );
            None
        }
        (false, false) => {
            table.missing("password", "{ file = \"...\" }, or a password_hash");
            None
        }
        _ => plain
            .map(FirstPassword::Plain)
            .or(hash.map(FirstPassword::Hash)),
    };
    Some(FirstAdmin {
        username: username?,
        password: password?,
        must_change,
    })
}

fn username(value: &ConfigValue<'_>) -> Option<String> {
    let name = text(value)?;
    if let Err(rule) = check_name(&name) {
        value.complain(&format!("cannot be a user: {rule}"), "");
        return None;
    }
    Some(name)
}

/// Messages do not repeat the text: it may be a password.
fn password_hash(value: &ConfigValue<'_>) -> Option<String> {
    let text = text(value)?;
    let good = PasswordHash::new(&text).is_ok_and(|hash| {
        hash.algorithm.as_str() == "argon2id"
            && hash.salt.is_some()
            && hash.hash.is_some()
            && argon2::Params::try_from(&hash).is_ok()
    });
    if !good {
        let reason = "must be a whole $argon2id$ hash, never the password";
        value.complain(reason, "tollgate hash-password makes one");
        return None;
    }
    Some(text)
}

/// `upstreams`: the names of all.
pub(in crate::config::file) fn api_keys(
    root: &ConfigTable<'_>,
    upstreams: &[Arc<str>],
) -> Vec<ApiKey> {
    let mut keys: Vec<ApiKey> = Vec::new();
    for table in root.sections("api_key") {
        let Some(key) = api_key(&table, upstreams) else {
            continue;
        };
        if keys.iter().any(|other| other.name == key.name) {
            table.complain(
                "name",
                &format!("\"{}\" is taken by a key above", key.name),
                "",
            );
        }
        let is_taken = |digest| keys.iter().any(|other| other.digests.contains(digest));
        if key.digests.iter().any(is_taken) {
            let reason = "is also another client's: the two could not be told apart";
            table.complain("sha256", reason, "give each client its own key");
        }
        keys.push(key);
    }
    keys
}

fn api_key(table: &ConfigTable<'_>, upstreams: &[Arc<str>]) -> Option<ApiKey> {
    let name = table.required("name", name, "\"prometheus\"");
    let digests = table.required("sha256", some(digest), "[\"...\"] from tollgate new-key");
    let expires = table.read("expires", moment);
    if expires.is_some_and(|moment| moment <= crate::clock::unix_seconds()) {
        table.warn("expires", "has passed: this key is not valid any more", "");
    }
    Some(ApiKey {
        upstreams: table.or("upstreams", some(named_upstream(upstreams)), Vec::new()),
        expires,
        role: table.or("role", word(ROLES), Role::User),
        paths: table.or("paths", many(pattern), Vec::new()),
        methods: table.or("methods", many(method), Vec::new()),
        limit: table.read("limit", quota),
        name: Arc::from(name?),
        digests: digests?,
    })
}
