//! The keys of one login: its call, where the response has token and end, what carries the token.

use std::time::Duration;

use toml::de::DeValue;

use super::login_names::LoginNames;
use super::login_request_keys::{LoginRequest, login_request};
use super::login_response_keys::{expiry_sources, token_source};
use super::login_values::{header_name, header_text};
use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::value_readers::some;
use crate::profiles::{ExpirySource, HeaderTemplate, LoginDescription, TemplateName, TokenSource};

/// Of a login that does not say when its token ends.
const DEFAULT_LIFE: Duration = Duration::from_secs(3600);

/// None: the key is not there.
pub(super) struct LoginKeys {
    pub(super) request: Option<LoginRequest>,
    token: Option<TokenSource>,
    expiry: Option<Vec<ExpirySource>>,
    inject: Option<Vec<HeaderTemplate>>,
}

impl LoginKeys {
    /// Marks the keys as known: all others are values.
    pub(super) fn reserve(table: &ConfigTable<'_>) {
        for key in ["request", "token", "expires", "inject"] {
            table.has(key);
        }
    }

    /// `base`: the call of which `request` changes some keys. None: something is wrong.
    pub(super) fn read(
        table: &ConfigTable<'_>,
        names: &LoginNames,
        base: Option<LoginRequest>,
    ) -> Option<Self> {
        let token = table.read("token", token_source);
        let expiry = table.read("expires", expiry_sources);
        let inject = table.read("inject", |value| injected(value, names));
        let request = table.value("request");
        let request = request.and_then(|value| login_request(&value, names, base));
        let is_wrong = (table.has("token") && token.is_none())
            || (table.has("expires") && expiry.is_none())
            || (table.has("inject") && inject.is_none())
            || (table.has("request") && request.is_none());
        (!is_wrong).then_some(Self {
            request,
            token,
            expiry,
            inject,
        })
    }

    /// The login that has nothing but these keys. What it does not say is as OAuth2 has it (RFC 6749, 5.1).
    pub(super) fn into_description(self) -> LoginDescription {
        let request = self.request.unwrap_or_else(LoginRequest::without_path);
        let oauth = || {
            vec![
                ExpirySource::PointerSeconds("/expires_in".to_owned()),
                ExpirySource::JwtExp,
                ExpirySource::Fixed(DEFAULT_LIFE),
            ]
        };
        let token = || TokenSource::Pointer("/access_token".to_owned());
        LoginDescription {
            method: request.method,
            target: request.target,
            headers: request.headers,
            credential: request.credential,
            body: request.body,
            accepted: request.accepted,
            refused: request.refused,
            token: self.token.unwrap_or_else(token),
            expiry: self.expiry.unwrap_or_else(oauth),
            inject: self
                .inject
                .unwrap_or_else(|| vec![HeaderTemplate::bearer()]),
            password_change: None,
        }
    }

    /// `base` with these keys.
    pub(super) fn applied_to(self, base: LoginDescription) -> LoginDescription {
        let request = match self.request {
            Some(request) => request,
            None => LoginRequest::of(&base),
        };
        LoginDescription {
            method: request.method,
            target: request.target,
            headers: request.headers,
            credential: request.credential,
            body: request.body,
            accepted: request.accepted,
            refused: request.refused,
            token: self.token.unwrap_or(base.token),
            expiry: self.expiry.unwrap_or(base.expiry),
            inject: self.inject.unwrap_or(base.inject),
            password_change: base.password_change,
        }
    }
}

/// One table with `header` and `value`, or a list of them.
fn injected(value: &ConfigValue<'_>, names: &LoginNames) -> Option<Vec<HeaderTemplate>> {
    let one = |value: &ConfigValue<'_>| {
        let table = value.table()?;
        let name = table.required("header", header_name, "\"authorization\"");
        let template = |value: &ConfigValue<'_>| {
            let template = names.template(value, &[TemplateName::Token])?;
            header_text(value, template)
        };
        let template = table.required("value", template, "\"Bearer {token}\"");
        Some(HeaderTemplate {
            name: name?,
            value: template?,
        })
    };
    let all = match value.inner {
        DeValue::Array(_) => some(one)(value)?,
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
