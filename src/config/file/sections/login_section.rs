//! `login` of `[upstream.NAME]`: who logs in, when, and, where the profile does not say it, how.

use std::sync::Arc;
use std::time::Duration;

use super::login_names::LoginNames;
use super::login_request_keys::login_request;
use super::login_response_keys::{expiry_sources, token_source};
use super::login_values::header_name;
use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::named_files::secret;
use crate::config::file::value_readers::{
    flag, number, share, some, span, span_or_none, text, username,
};
use crate::config::{AddressResolution, Login};
use crate::profiles::{
    ExpirySource, HeaderTemplate, LoginDescription, Profile, TemplateName, TokenSource,
};
use crate::secret::SecretSource;

/// The pairs of keys that say who logs in: OAuth2 calls them otherwise (RFC 6749, 2.3.1).
const NAMES: [&str; 2] = ["username", "client_id"];
const SECRETS: [&str; 2] = ["password", "client_secret"];
/// Of a login that the file describes and that does not say when its token ends.
const DEFAULT_LIFE: Duration = Duration::from_secs(3600);

/// The login of one upstream.
pub(super) struct LoginSection {
    pub(super) login: Option<Login>,
    pub(super) description: Arc<LoginDescription>,
}

/// `has_several`: the upstream has endpoints that the file names.
pub(super) fn login_section(
    table: &ConfigTable<'_>,
    profile: &Profile,
    has_several: bool,
    resolution: AddressResolution,
) -> LoginSection {
    let who = table.section("login");
    let username = who.as_ref().and_then(user_name);
    let password = who.as_ref().and_then(password);
    let description = match &who {
        Some(who) => described(who, profile),
        None => Some((profile.login)()),
    };
    // Read with and without a login, so that each is a known key.
    let renew_at = table.or("renew_at", share(0.1..=0.95), 0.8);
    let renew_floor = table.or("renew_floor", span_or_none, Duration::from_secs(300));
    let min_login_interval = table.or("min_login_interval", span, Duration::from_secs(1));
    let logins_per_hour = table.or("logins_per_hour", number(1..=36_000), 120);
    let timeout = table.or("login_timeout", span, Duration::from_secs(30));
    let single_active_token = table.or("single_active_token", flag, false);
    let per_endpoint = login_per_endpoint(table, has_several, resolution);
    let login = username.zip(password).map(|(username, password)| Login {
        username,
        password,
        renew_at,
        renew_floor,
        min_login_interval,
        logins_per_hour,
        timeout,
        single_active_token,
        per_endpoint,
    });
    LoginSection {
        login: login.filter(|_| description.is_some()),
        description: Arc::new(description.unwrap_or_else(profile.login)),
    }
}

/// The one of two keys that is given.
fn given(who: &ConfigTable<'_>, keys: [&'static str; 2]) -> &'static str {
    let [plain, oauth] = keys;
    match (who.has(plain), who.has(oauth)) {
        (true, true) => {
            who.complain(
                oauth,
                &format!("means the same as {plain}"),
                "keep one of the two",
            );
            plain
        }
        (false, true) => oauth,
        _ => plain,
    }
}

fn user_name(who: &ConfigTable<'_>) -> Option<String> {
    match given(who, NAMES) {
        "client_id" => who.required("client_id", text, "\"gateway\""),
        key => who.required(key, username, "\"gateway\""),
    }
}

fn password(who: &ConfigTable<'_>) -> Option<SecretSource> {
    let place = "{ file = \"/run/secrets/password\" }";
    who.required(given(who, SECRETS), secret, place)
}

/// The profile's login with what the file says otherwise. None: something is wrong.
fn described(who: &ConfigTable<'_>, profile: &Profile) -> Option<LoginDescription> {
    let is_described = who.has("request");
    let names = LoginNames::new(given(who, NAMES), given(who, SECRETS));
    let token = who.read("token", token_source);
    let expiry = who.read("expires", expiry_sources);
    let inject_value = who.value("inject");
    let request_value = who.value("request");
    let names = match is_described {
        true => names.with_values(who),
        false => names,
    };
    let inject = inject_value.map(|value| injected(&value, &names));
    let request = request_value.map(|value| login_request(&value, &names));
    let has_failed = (who.has("token") && token.is_none())
        || (who.has("expires") && expiry.is_none())
        || matches!(inject, Some(None))
        || matches!(request, Some(None));
    if has_failed {
        return None;
    }
    let shipped = (profile.login)();
    let Some(request) = request.flatten() else {
        return Some(LoginDescription {
            token: token.unwrap_or(shipped.token),
            expiry: expiry.unwrap_or(shipped.expiry),
            inject: inject.flatten().unwrap_or(shipped.inject),
            ..shipped
        });
    };
    let oauth = || {
        vec![
            ExpirySource::PointerSeconds("/expires_in".to_owned()),
            ExpirySource::JwtExp,
            ExpirySource::Fixed(DEFAULT_LIFE),
        ]
    };
    let description = LoginDescription {
        method: request.method,
        target: request.target,
        headers: request.headers,
        credential: request.credential,
        body: request.body,
        accepted: request.accepted,
        refused: request.refused,
        token: token.unwrap_or_else(|| TokenSource::Pointer("/access_token".to_owned())),
        expiry: expiry.unwrap_or_else(oauth),
        inject: inject
            .flatten()
            .unwrap_or_else(|| vec![HeaderTemplate::bearer()]),
        password_change: None,
    };
    names.report_unused(who);
    Some(description)
}

/// One table with `header` and `value`, or a list of them.
fn injected(value: &ConfigValue<'_>, names: &LoginNames) -> Option<Vec<HeaderTemplate>> {
    let one = |value: &ConfigValue<'_>| {
        let table = value.table()?;
        let name = table.required("header", header_name, "\"authorization\"");
        let template = |value: &ConfigValue<'_>| names.template(value, &[TemplateName::Token]);
        let template = table.required("value", template, "\"Bearer {token}\"");
        Some(HeaderTemplate {
            name: name?,
            value: template?,
        })
    };
    let all = match value.inner {
        toml::de::DeValue::Array(_) => some(one)(value)?,
        _ => vec![one(value)?],
    };
    if !all.iter().any(|field| field.value.has(TemplateName::Token)) {
        value.complain(
            "does not have {token}",
            "such as value = \"Bearer {token}\"",
        );
        return None;
    }
    Some(all)
}

fn login_per_endpoint(
    table: &ConfigTable<'_>,
    has_several: bool,
    resolution: AddressResolution,
) -> bool {
    let key = "login_per_endpoint";
    let is_wanted = table.or(key, flag, false);
    if !is_wanted {
        return false;
    }
    if resolution == AddressResolution::All {
        let reason = "cannot be true with resolve = \"all\": its addresses come and go";
        table.complain(
            key,
            reason,
            "name them: endpoints = [\"https://a:443\", ..]",
        );
    } else if !has_several {
        let suggestion = "give endpoints = [..], or remove it";
        table.warn(key, "has no effect with one endpoint", suggestion);
    }
    if !table.has("login") {
        let suggestion = "add login = { username, password }, or remove it";
        table.complain(key, "needs a login", suggestion);
    }
    has_several
}
