//! Login at the Webapp (protocol sheet, section 1.1).

use http::uri::PathAndQuery;
use http::{Method, StatusCode};

use super::errors::ErrorCode;
use crate::profiles::login_description::{
    BodyCode, CredentialForm, ExpirySource, LoginDescription, TokenInjection, TokenSource,
};

/// `POST /v1/users/login` with Basic credentials; token and expiry are in the body.
pub fn login_description() -> LoginDescription {
    LoginDescription {
        method: Method::POST,
        path: PathAndQuery::from_static("/v1/users/login"),
        credential: CredentialForm::Basic,
        accepted: vec![StatusCode::OK, StatusCode::CREATED],
        token: TokenSource::Pointer("/users/0/token".to_owned()),
        expiry: vec![ExpirySource::PointerDate(
            "/users/0/expires_after".to_owned(),
        )],
        inject: TokenInjection::bearer(),
        password_change: Some(BodyCode {
            pointer: "/errors/0/code".to_owned(),
            code: ErrorCode::PasswordChangeRequired.number(),
        }),
    }
}
