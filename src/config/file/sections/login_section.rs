//! `login` of `[upstream.NAME]`: who logs in, when, and, where the profile does not say it, how.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;

use super::login_keys::LoginKeys;
use super::login_names::{LoginNames, PASSWORDS, USERNAMES};
use super::login_request_keys::LoginRequest;
use super::service_login::{ServiceDefaults, read_service};
use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::named_files::secret;
use crate::config::file::value_readers::{flag, number, share, span, span_or_none, text, username};
use crate::config::problem::nearest;
use crate::config::{AddressResolution, Login};
use crate::profiles::{LoginDescription, Profile, SERVICE_LOGINS, ServiceLogin};
use crate::secret::SecretSource;

/// The login of one upstream.
pub(super) struct LoginSection {
    pub(super) login: Option<Login>,
    /// Of the service that `login.profile` names.
    pub(super) probe: Option<PathAndQuery>,
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
    let described = match &who {
        Some(who) => described(who, profile),
        None => Some(DescribedLogin {
            description: (profile.login)(),
            defaults: ServiceDefaults::default(),
        }),
    };
    let defaults = described.as_ref().map(|login| login.defaults.clone());
    let defaults = defaults.unwrap_or_default();
    // Read with and without a login, so that each is a known key.
    let renew_at = table.or("renew_at", share(0.1..=0.95), 0.8);
    let renew_floor = table.or("renew_floor", span_or_none, Duration::from_secs(300));
    let min_login_interval = table.or("min_login_interval", span, Duration::from_secs(1));
    let logins_per_hour = table.or(
        "logins_per_hour",
        number(1..=36_000),
        defaults.logins_per_hour,
    );
    let timeout = table.or("login_timeout", span, Duration::from_secs(30));
    let single_active_token = table.or("single_active_token", flag, defaults.single_active_token);
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
        login: login.filter(|_| described.is_some()),
        probe: defaults.probe,
        description: Arc::new(match described {
            Some(described) => described.description,
            None => (profile.login)(),
        }),
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
    match given(who, USERNAMES) {
        "client_id" => who.required("client_id", text, "\"gateway\""),
        key => who.required(key, username, "\"gateway\""),
    }
}

fn password(who: &ConfigTable<'_>) -> Option<SecretSource> {
    let place = "{ file = \"/run/secrets/password\" }";
    who.required(given(who, PASSWORDS), secret, place)
}

/// A login as it is described, and what holds for it unless the file says otherwise.
struct DescribedLogin {
    description: LoginDescription,
    defaults: ServiceDefaults,
}

/// None: something is wrong.
fn described(who: &ConfigTable<'_>, profile: &Profile) -> Option<DescribedLogin> {
    let service = who.read("profile", service);
    if who.has("profile") && service.is_none() {
        return None;
    }
    LoginKeys::reserve(who);
    let mut names = LoginNames::new(given(who, USERNAMES), given(who, PASSWORDS));
    if service.is_some() || who.has("request") {
        names = names.with_values(who);
    }
    let mut defaults = ServiceDefaults::default();
    let base = match service {
        None => (profile.login)(),
        Some(service) => {
            let read = read_service(service, names);
            names = read.names;
            if let Some(missing) = names.missing().first() {
                let reason = format!("\"{}\" needs {missing}", service.name);
                let suggestion = format!("add {missing} = \"..\" to the login");
                who.complain("profile", &reason, &suggestion);
                return None;
            }
            defaults = read.defaults;
            read.description?
        }
    };
    let before = service.map(|_| LoginRequest::of(&base));
    let keys = LoginKeys::read(who, &names, before)?;
    if service.is_some() || who.has("request") {
        names.report_unused(who);
    }
    let description = match (service, keys.request.is_some()) {
        (None, true) => keys.into_description(),
        _ => keys.applied_to(base),
    };
    Some(DescribedLogin {
        description,
        defaults,
    })
}

fn service(value: &ConfigValue<'_>) -> Option<&'static ServiceLogin> {
    let name = text(value)?;
    let found = ServiceLogin::named(&name);
    if found.is_none() {
        let names = SERVICE_LOGINS.iter().map(|service| service.name);
        let suggestion = match nearest(&name, names) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "tollgate profiles lists them".to_owned(),
        };
        value.complain("is not the name of a login that is known", &suggestion);
    }
    found
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
