//! What `fuzz/` calls to parse the response of a login.

use http::HeaderMap;

use super::login::description::LoginResponseParts;
use crate::profiles::Profile;

/// What is accepted has an end in the future, and can be put on a request.
pub fn login_response(body: &[u8]) {
    let description = (Profile::DEFAULT.login)();
    let _ = description.wants_password_change(body);
    let response = LoginResponseParts {
        headers: &HeaderMap::new(),
        body,
        upstream_now: 1_800_000_000,
    };
    if let Ok(found) = description.read(response) {
        assert!(!found.life.is_zero());
        assert!(!found.token.expose().is_empty());
        assert!(found.headers.iter().all(|(_, value)| value.is_sensitive()));
    }
}
