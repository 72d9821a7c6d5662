//! Text with places for values, such as `Bearer {token}`. Pure.

use std::fmt;

use zeroize::Zeroizing;

/// A value that is known only when a request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateName {
    Username,
    Password,
    Token,
}

/// A text in which values are replaced once: what a value contains is never expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<TemplatePart>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TemplatePart {
    /// As it was written.
    Text(String),
    /// A value of the file, escaped as its place demands.
    Value(String),
    Name(TemplateName),
}

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateFault {
    #[error("has {{{0}}}, and there is no such value")]
    Unknown(String),
    #[error("has a {{ without }}; a brace of the text itself is written twice")]
    Unclosed,
}

impl Template {
    /// `known`: what a name in braces stands for. Braces that belong to the text are written twice.
    pub fn parse(
        text: &str,
        known: impl Fn(&str) -> Option<TemplateValue>,
    ) -> Result<Self, TemplateFault> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            rest = &rest[at..];
            let brace = &rest[..1];
            if rest[1..].starts_with(brace) {
                plain.push_str(brace);
                rest = &rest[2..];
                continue;
            }
            let name = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let (name, after) = name.ok_or(TemplateFault::Unclosed)?;
            let value = known(name).ok_or_else(|| TemplateFault::Unknown(name.to_owned()))?;
            if !plain.is_empty() {
                parts.push(TemplatePart::Text(std::mem::take(&mut plain)));
            }
            parts.push(match value {
                TemplateValue::Given(value) => TemplatePart::Value(value),
                TemplateValue::Later(name) => TemplatePart::Name(name),
            });
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(TemplatePart::Text(plain));
        }
        Ok(Self { parts })
    }

    /// A template of the program itself, without values of a file.
    pub fn of(text: &str) -> Self {
        let known = |name: &str| TemplateName::of(name).map(TemplateValue::Later);
        Self::parse(text, known).unwrap_or_else(|_| Self {
            parts: vec![TemplatePart::Text(text.to_owned())],
        })
    }

    /// Appends text as it is.
    pub fn push_text(&mut self, text: &str) {
        self.parts.push(TemplatePart::Text(text.to_owned()));
    }

    /// Appends a text that is escaped as its place demands.
    pub fn push_value(&mut self, text: String) {
        self.parts.push(TemplatePart::Value(text));
    }

    /// Appends `other`, its own text escaped as its place demands.
    pub fn push_escaped(&mut self, other: Self) {
        let escaped = other.parts.into_iter().map(|part| match part {
            TemplatePart::Text(text) => TemplatePart::Value(text),
            other => other,
        });
        self.parts.extend(escaped);
    }

    /// Whether it is empty whatever the values that are known later.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| match part {
            TemplatePart::Text(text) | TemplatePart::Value(text) => text.is_empty(),
            TemplatePart::Name(_) => false,
        })
    }

    /// Whether it has this value.
    pub fn has(&self, name: TemplateName) -> bool {
        self.parts.contains(&TemplatePart::Name(name))
    }

    /// The text with its values. `escape` appends a value as its place demands.
    pub fn fill<'a>(
        &self,
        value: impl Fn(TemplateName) -> &'a str,
        escape: impl Fn(&str, &mut String),
    ) -> Zeroizing<String> {
        let length = |part: &TemplatePart| match part {
            TemplatePart::Text(text) | TemplatePart::Value(text) => text.len(),
            TemplatePart::Name(name) => value(*name).len(),
        };
        // Enough for every escape: a text that grows leaves copies in memory.
        let capacity = self.parts.iter().map(length).sum::<usize>() * 3;
        let mut filled = Zeroizing::new(String::with_capacity(capacity));
        for part in &self.parts {
            match part {
                TemplatePart::Text(text) => filled.push_str(text),
                TemplatePart::Value(text) => escape(text, &mut filled),
                TemplatePart::Name(name) => escape(value(*name), &mut filled),
            }
        }
        filled
    }
}

impl fmt::Display for Template {
    /// With the names of what is known only later.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                TemplatePart::Text(text) | TemplatePart::Value(text) => f.write_str(text)?,
                TemplatePart::Name(name) => write!(f, "{{{}}}", name.text())?,
            }
        }
        Ok(())
    }
}

/// What a name in a template stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateValue {
    Given(String),
    Later(TemplateName),
}

impl TemplateName {
    fn text(self) -> &'static str {
        match self {
            Self::Username => "username",
            Self::Password => "password",
            Self::Token => "token",
        }
    }

    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "username" => Self::Username,
            "password" => Self::Password,
            "token" => Self::Token,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, TemplateFault> {
        let known = |name: &str| match name {
            "project" => Some(TemplateValue::Given("{token}".to_owned())),
            name => TemplateName::of(name).map(TemplateValue::Later),
        };
        let template = Template::parse(text, known)?;
        let value = |name| match name {
            TemplateName::Username => "{password}",
            TemplateName::Password => "p&w",
            TemplateName::Token => "t",
        };
        let escape = |text: &str, into: &mut String| into.push_str(&text.replace('&', "%26"));
        Ok(template.fill(value, escape).to_string())
    }

    #[test]
    fn values_are_replaced_once_and_escaped() {
        assert_eq!(filled("Bearer {token}").unwrap(), "Bearer t");
        assert_eq!(
            filled("a&{username}={password}").unwrap(),
            "a&{password}=p%26w"
        );
        assert_eq!(filled("{project}").unwrap(), "{token}");
        assert_eq!(filled("").unwrap(), "");
        assert_eq!(filled("{{token}} }}").unwrap(), "{token} }");
    }

    #[test]
    fn a_bad_template_is_explained() {
        let unknown = filled("a {passwort}").unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "has {passwort}, and there is no such value"
        );
        for text in ["{token", "token}", "{", "a}b"] {
            assert_eq!(filled(text), Err(TemplateFault::Unclosed), "{text}");
        }
    }
}
