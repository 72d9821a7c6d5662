//! Login at the Webapp (protocol sheet, section 1.1).

use http::{Method, StatusCode};

use super::errors::ErrorCode;
use crate::profiles::login_description::{
    BodyCode, CredentialForm, ExpirySource, HeaderTemplate, LoginAcceptance, LoginContent,
    LoginDescription, TokenSource,
};
use crate::profiles::template::Template;

/// `POST /v1/users/login` with Basic credentials; token and expiry are in the body.
pub fn login_description() -> LoginDescription {
    LoginDescription {
        method: Method::POST,
        target: Template::of("/v1/users/login"),
        headers: Vec::new(),
        credential: CredentialForm::Basic,
        body: LoginContent::Empty,
        accepted: LoginAcceptance {
            statuses: vec![StatusCode::OK, StatusCode::CREATED],
            body: None,
        },
        refused: vec![StatusCode::UNAUTHORIZED],
        token: TokenSource::Pointer("/users/0/token".to_owned()),
        expiry: vec![ExpirySource::PointerDate(
            "/users/0/expires_after".to_owned(),
        )],
        inject: vec![HeaderTemplate::bearer()],
        password_change: Some(BodyCode {
            pointer: "/errors/0/code".to_owned(),
            code: ErrorCode::PasswordChangeRequired.number(),
        }),
    }
}
