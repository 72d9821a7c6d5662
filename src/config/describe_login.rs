//! How the gateway logs in at an upstream, in words, for `check`.

use super::display::{DurationText, listed};
use crate::profiles::{CredentialForm, ExpirySource, LoginContent, LoginDescription, TokenSource};

/// The call, and then where its response has token and end, and what carries the token.
pub(super) fn login_lines(login: &LoginDescription) -> [String; 2] {
    let credential = match (login.credential, &login.body) {
        (CredentialForm::Basic, _) => " with Basic",
        (CredentialForm::ClientSecretBasic, _) => " with the client secret as Basic",
        (CredentialForm::InTemplates, LoginContent::Empty) => "",
        (CredentialForm::InTemplates, LoginContent::Json(_)) => " with JSON",
        (CredentialForm::InTemplates, LoginContent::Form(_)) => " with a form",
    };
    let statuses = login.accepted.statuses.iter();
    let statuses: Vec<_> = statuses.map(|status| status.as_u16()).collect();
    let success = match &login.accepted.body {
        None => String::new(),
        Some(wanted) => format!(" and {} = {}", wanted.pointer, wanted.equals),
    };
    let call = format!(
        "logs in by {} {}{credential}; {}{success} means success",
        login.method,
        login.target,
        listed(&statuses)
    );
    let token = match &login.token {
        TokenSource::Pointer(pointer) => pointer.clone(),
        TokenSource::Header(name) => format!("header {name}"),
        TokenSource::WholeBody => "the whole body".to_owned(),
    };
    let ends: Vec<_> = login.expiry.iter().map(end).collect();
    let names: Vec<_> = login.inject.iter().map(|field| &field.name).collect();
    let response = format!(
        "its token: {token}; its end: {}; sent as {}",
        ends.join(", else "),
        listed(&names)
    );
    [call, response]
}

fn end(source: &ExpirySource) -> String {
    match source {
        ExpirySource::PointerDate(pointer) => format!("date {pointer}"),
        ExpirySource::PointerSeconds(pointer) => format!("seconds {pointer}"),
        ExpirySource::PointerMillis(pointer) => format!("milliseconds {pointer}"),
        ExpirySource::JwtExp => "the JWT's exp".to_owned(),
        ExpirySource::Fixed(life) => format!("after {}", DurationText(*life)),
    }
}
