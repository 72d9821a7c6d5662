//! The values that templates of one login can name.

use std::cell::RefCell;

use toml::de::DeValue;

use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::value_readers::text;
use crate::config::problem::nearest;
use crate::profiles::{Template, TemplateFault, TemplateName, TemplateValue};

/// The keys that say who logs in; OAuth2 calls them otherwise (RFC 6749, 2.3.1).
pub(super) const USERNAMES: [&str; 2] = ["username", "client_id"];
pub(super) const PASSWORDS: [&str; 2] = ["password", "client_secret"];

/// User name, password, and the texts that the operator gave a name.
pub(super) struct LoginNames {
    /// The keys by which user name and password were given.
    username: &'static str,
    password: &'static str,
    values: Vec<LoginValue>,
    /// Names of values that a template has.
    used: RefCell<Vec<String>>,
    /// Names that a template has and that are no values.
    missing: RefCell<Vec<String>>,
}

struct LoginValue {
    name: String,
    text: String,
}

impl LoginNames {
    pub(super) fn new(username: &'static str, password: &'static str) -> Self {
        Self {
            username,
            password,
            values: Vec::new(),
            used: RefCell::default(),
            missing: RefCell::default(),
        }
    }

    /// Also the other keys of the login's table.
    pub(super) fn with_values(mut self, who: &ConfigTable<'_>) -> Self {
        for (name, value) in who.others() {
            let is_new = self.values.iter().all(|known| known.name != name);
            if let Some(text) = text_or_empty(&value).filter(|_| is_new) {
                self.values.push(LoginValue { name, text });
            }
        }
        self
    }

    /// Names in templates for which there is no value.
    pub(super) fn missing(&self) -> Vec<String> {
        self.missing.borrow().clone()
    }

    /// A template that can have the values of the file, and `later`.
    pub(super) fn template(
        &self,
        value: &ConfigValue<'_>,
        later: &[TemplateName],
    ) -> Option<Template> {
        let text = text(value)?;
        let known = |name: &str| {
            let mut values = self.values.iter();
            if let Some(found) = values.find(|value| value.name == name) {
                self.used.borrow_mut().push(name.to_owned());
                return Some(TemplateValue::Given(found.text.clone()));
            }
            let found = later.iter().find(|one| keys(**one).contains(&name));
            found.map(|name| TemplateValue::Later(*name))
        };
        match Template::parse(&text, known) {
            Ok(template) => Some(template),
            Err(fault) => {
                if let TemplateFault::Unknown(name) = &fault {
                    self.missing.borrow_mut().push(name.clone());
                }
                value.complain(&fault.to_string(), &self.suggestion(&fault, later));
                None
            }
        }
    }

    /// A template of the login request.
    pub(super) fn in_request(&self, value: &ConfigValue<'_>) -> Option<Template> {
        self.template(value, &[TemplateName::Username, TemplateName::Password])
    }

    /// The password's name in braces.
    pub(super) fn password(&self) -> String {
        format!("{{{}}}", self.password)
    }

    fn key(&self, name: TemplateName) -> &'static str {
        match name {
            TemplateName::Username => self.username,
            TemplateName::Password => self.password,
            TemplateName::Token => "token",
        }
    }

    fn suggestion(&self, fault: &TemplateFault, later: &[TemplateName]) -> String {
        let TemplateFault::Unknown(name) = fault else {
            return "such as {username}".to_owned();
        };
        let values = self.values.iter().map(|value| value.name.as_str());
        let known = values.chain(later.iter().map(|name| self.key(*name)));
        match nearest(name, known) {
            Some(near) => format!("did you mean {{{near}}}?"),
            None => format!("add {name} = \"..\" to the login"),
        }
    }

    /// A value that no template has is a mistake, most likely in its name.
    pub(super) fn report_unused(&self, who: &ConfigTable<'_>) {
        let used = self.used.borrow();
        for value in self
            .values
            .iter()
            .filter(|value| !used.contains(&value.name))
        {
            let known = [
                "username", "password", "profile", "request", "token", "expires", "inject",
            ];
            let suggestion = match nearest(&value.name, known) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("write {{{}}} where it belongs, or remove it", value.name),
            };
            who.complain(&value.name, "is in no template of this login", &suggestion);
        }
    }
}

fn keys(name: TemplateName) -> &'static [&'static str] {
    match name {
        TemplateName::Username => &USERNAMES,
        TemplateName::Password => &PASSWORDS,
        TemplateName::Token => &["token"],
    }
}

/// A value may be empty: a form field with nothing else is left out.
fn text_or_empty(value: &ConfigValue<'_>) -> Option<String> {
    match value.inner {
        DeValue::String(text) if text.is_empty() => Some(String::new()),
        _ => text(value),
    }
}
