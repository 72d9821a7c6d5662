//! `login.request`: the login call, and what its status and body mean.

use http::{Method, StatusCode};
use serde_json::Value;
use toml::de::DeValue;

use super::login_names::LoginNames;
use super::login_values::{header_text, json_pointer, json_value, settable_header};
use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::value_readers::{method, number, some, word};
use crate::profiles::{
    BodyValue, CredentialForm, FormField, HeaderTemplate, JsonMember, JsonTemplate,
    LoginAcceptance, LoginContent, LoginDescription, Template, TemplateName,
};

/// Of a refusal of user name or password, where the file names none: with 429 and 5xx the login is
/// tried again soon, and a wrong password must not be.
const REFUSED: [StatusCode; 5] = [
    StatusCode::BAD_REQUEST,
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::UNPROCESSABLE_ENTITY,
];

/// The call of a login.
pub(super) struct LoginRequest {
    pub(super) method: Method,
    pub(super) target: Template,
    pub(super) headers: Vec<HeaderTemplate>,
    pub(super) credential: CredentialForm,
    pub(super) body: LoginContent,
    pub(super) accepted: LoginAcceptance,
    pub(super) refused: Vec<StatusCode>,
}

/// `base`: the call of a service, of which the file changes some keys.
pub(super) fn login_request(
    value: &ConfigValue<'_>,
    names: &LoginNames,
    base: Option<LoginRequest>,
) -> Option<LoginRequest> {
    let table = value.table()?;
    let is_whole = base.is_none();
    let base = base.unwrap_or_else(LoginRequest::without_path);
    let method = table.or("method", method, base.method);
    let path = |value: &ConfigValue<'_>| path(value, names);
    let target = match is_whole {
        true => table.required("path", path, "\"/auth/login\"")?,
        false => optional(&table, "path", path)?.unwrap_or(base.target),
    };
    let fields = |value: &ConfigValue<'_>| fields(&value.table()?, names);
    let query = optional(&table, "query", fields)?.unwrap_or_default();
    let headers = |value: &ConfigValue<'_>| headers(&value.table()?, names);
    let headers = optional(&table, "headers", headers)?.unwrap_or(base.headers);
    let body = match table.has("form") || table.has("json") {
        true => body(&table, names)?,
        false => base.body,
    };
    let forms = word(&[
        ("basic", CredentialForm::Basic),
        ("client_secret_basic", CredentialForm::ClientSecretBasic),
    ]);
    let success = |value: &ConfigValue<'_>| success(&value.table()?);
    let request = LoginRequest {
        method,
        target: with_query(target, query),
        headers,
        credential: table.or("auth", forms, base.credential),
        body,
        accepted: LoginAcceptance {
            statuses: table.or("status", some(status), base.accepted.statuses),
            body: optional(&table, "success", success)?.or(base.accepted.body),
        },
        refused: table.or("refused", some(status), base.refused),
    };
    let mut refused = request.refused.iter();
    if let Some(both) = refused.find(|status| request.accepted.statuses.contains(status)) {
        let reason = format!("has {}, which status says means success", both.as_u16());
        table.complain("refused", &reason, "");
    }
    complain_without_password(&table, &request, names);
    Some(request)
}

/// `Some(None)`: the key is not there; None: its value is wrong.
#[expect(clippy::option_option, reason = "missing and wrong are told apart")]
fn optional<'a, T>(
    table: &ConfigTable<'a>,
    key: &'static str,
    reader: impl Fn(&ConfigValue<'a>) -> Option<T>,
) -> Option<Option<T>> {
    match table.value(key) {
        None => Some(None),
        Some(value) => reader(&value).map(Some),
    }
}

impl LoginRequest {
    /// The call of this login.
    pub(super) fn of(login: &LoginDescription) -> Self {
        Self {
            method: login.method.clone(),
            target: login.target.clone(),
            headers: login.headers.clone(),
            credential: login.credential,
            body: login.body.clone(),
            accepted: login.accepted.clone(),
            refused: login.refused.clone(),
        }
    }

    /// What holds where the file says nothing.
    pub(super) fn without_path() -> Self {
        Self {
            method: Method::POST,
            target: Template::of("/"),
            headers: Vec::new(),
            credential: CredentialForm::InTemplates,
            body: LoginContent::Empty,
            accepted: LoginAcceptance {
                statuses: vec![StatusCode::OK, StatusCode::CREATED],
                body: None,
            },
            refused: REFUSED.to_vec(),
        }
    }
}

fn complain_without_password(table: &ConfigTable<'_>, request: &LoginRequest, names: &LoginNames) {
    let templates = request_templates(&request.target, &request.headers, &request.body);
    let is_sent = request.credential != CredentialForm::InTemplates
        || templates.iter().any(|one| one.has(TemplateName::Password));
    if !is_sent {
        let name = names.password();
        let suggestion = format!("add auth = \"basic\", or {name} in form, json, headers or path");
        table.complain("", "does not send the password", &suggestion);
    }
}

fn request_templates<'a>(
    target: &'a Template,
    headers: &'a [HeaderTemplate],
    body: &'a LoginContent,
) -> Vec<&'a Template> {
    let mut all = vec![target];
    all.extend(headers.iter().map(|field| &field.value));
    match body {
        LoginContent::Empty => {}
        LoginContent::Json(json) => json.collect_templates(&mut all),
        LoginContent::Form(fields) => all.extend(fields.iter().map(|field| &field.value)),
    }
    all
}

/// Path and query; the query may also be a table.
fn path(value: &ConfigValue<'_>, names: &LoginNames) -> Option<Template> {
    let template = names.in_request(value)?;
    let example = template.fill(|_| "x", |_, into| into.push('x'));
    let is_path = example.starts_with('/') && !example.contains('#');
    let target = example.parse::<http::uri::PathAndQuery>();
    if !is_path || target.is_err() {
        value.complain("must be a path", "such as \"/auth/login\"");
        return None;
    }
    Some(template)
}

fn headers(table: &ConfigTable<'_>, names: &LoginNames) -> Option<Vec<HeaderTemplate>> {
    let field = |(name, value): (String, ConfigValue<'_>)| {
        let Some(known) = settable_header(&name) else {
            value.complain("is no header that a login can set", "");
            return None;
        };
        Some(HeaderTemplate {
            name: known,
            value: names
                .in_request(&value)
                .and_then(|text| header_text(&value, text))?,
        })
    };
    // All are read, so that each problem is told.
    let fields: Vec<_> = table.others().into_iter().map(field).collect();
    fields.into_iter().collect()
}

fn body(table: &ConfigTable<'_>, names: &LoginNames) -> Option<LoginContent> {
    match (table.value("form"), table.value("json")) {
        (None, None) => Some(LoginContent::Empty),
        (Some(_), Some(json)) => {
            json.complain("cannot stand beside form", "keep one of the two");
            None
        }
        (Some(form), None) => Some(LoginContent::Form(fields(&form.table()?, names)?)),
        (None, Some(json)) => Some(LoginContent::Json(json_template(&json, names)?)),
    }
}

fn fields(table: &ConfigTable<'_>, names: &LoginNames) -> Option<Vec<FormField>> {
    let field = |(name, value): (String, ConfigValue<'_>)| {
        let value = names.in_request(&value)?;
        Some(FormField { name, value })
    };
    let fields: Vec<_> = table.others().into_iter().map(field).collect();
    let fields: Option<Vec<FormField>> = fields.into_iter().collect();
    let is_sent = |field: &FormField| !field.value.is_empty();
    Some(fields?.into_iter().filter(is_sent).collect())
}

fn with_query(mut target: Template, query: Vec<FormField>) -> Template {
    let example = target.fill(|_| "x", |_, into| into.push('x'));
    let mut separator = if example.contains('?') { "&" } else { "?" };
    for field in query {
        target.push_text(separator);
        target.push_value(field.name);
        target.push_text("=");
        target.push_escaped(field.value);
        separator = "&";
    }
    target
}

fn json_template(value: &ConfigValue<'_>, names: &LoginNames) -> Option<JsonTemplate> {
    Some(match value.inner {
        DeValue::String(text) if text.is_empty() => {
            JsonTemplate::Other(Value::String(String::new()))
        }
        DeValue::String(_) => JsonTemplate::Text(names.in_request(value)?),
        DeValue::Table(_) => {
            let member = |(name, value): (String, ConfigValue<'_>)| {
                let value = json_template(&value, names)?;
                Some(JsonMember { name, value })
            };
            let members: Vec<_> = value.table()?.others().into_iter().map(member).collect();
            let members: Option<Vec<_>> = members.into_iter().collect();
            JsonTemplate::Object(members?)
        }
        DeValue::Array(_) => {
            let items = value.items()?;
            let items: Vec<_> = items
                .iter()
                .map(|item| json_template(item, names))
                .collect();
            let items: Option<Vec<_>> = items.into_iter().collect();
            JsonTemplate::List(items?)
        }
        _ => JsonTemplate::Other(json_value(value)?),
    })
}

fn status(value: &ConfigValue<'_>) -> Option<StatusCode> {
    let status = number(100..=599_u16)(value)?;
    StatusCode::from_u16(status).ok()
}

fn success(table: &ConfigTable<'_>) -> Option<BodyValue> {
    let pointer = table.required("pointer", json_pointer, "\"/ok\"");
    let equals = table.required("equals", json_value, "true");
    Some(BodyValue {
        pointer: pointer?,
        equals: equals?,
    })
}
