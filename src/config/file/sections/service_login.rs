//! The login of a known service, with the values that the file gives.

use std::path::Path;

use http::uri::PathAndQuery;
use toml::de::DeTable;

use super::login_keys::LoginKeys;
use super::login_names::LoginNames;
use crate::config::file::config_table::ConfigTable;
use crate::config::file::parse_report::ParseReport;
use crate::config::file::value_readers::{flag, number, text};
use crate::profiles::{LoginDescription, ServiceLogin};

/// What holds for a service unless the file says otherwise.
#[derive(Clone, Debug)]
pub(super) struct ServiceDefaults {
    pub(super) probe: Option<PathAndQuery>,
    pub(super) logins_per_hour: u32,
    pub(super) single_active_token: bool,
}

impl Default for ServiceDefaults {
    fn default() -> Self {
        Self {
            probe: None,
            logins_per_hour: 120,
            single_active_token: false,
        }
    }
}

/// The login of a service as it was read.
pub(super) struct ReadService {
    pub(super) defaults: ServiceDefaults,
    /// None: a value is missing, see `names`.
    pub(super) description: Option<LoginDescription>,
    /// Those of the file, and those that the service has for the rest.
    pub(super) names: LoginNames,
}

pub(super) fn read_service(service: &ServiceLogin, names: LoginNames) -> ReadService {
    let (table, errors) = DeTable::parse_recoverable(service.text);
    let report = ParseReport::new(service.text, table.get_ref(), Path::new(""), &errors);
    let root = ConfigTable::root(&report);
    let plain = ServiceDefaults::default();
    let defaults = ServiceDefaults {
        probe: root.read("probe", |value| text(value)?.parse().ok()),
        logins_per_hour: root.or("logins_per_hour", number(1..=36_000), plain.logins_per_hour),
        single_active_token: root.or("single_active_token", flag, plain.single_active_token),
    };
    let Some(login) = root.section("login") else {
        return ReadService {
            defaults,
            description: None,
            names,
        };
    };
    LoginKeys::reserve(&login);
    let names = names.with_values(&login);
    let keys = LoginKeys::read(&login, &names, None);
    ReadService {
        defaults,
        description: keys.map(LoginKeys::into_description),
        names,
    }
}
