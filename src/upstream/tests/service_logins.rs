//! The logins of known services, on answers written from the services' documents: what is sent, which token
//! is found, for how long, and which header carries it.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::profiles::{LoginDescription, SERVICE_LOGINS};
use crate::secret::Secret;
use crate::upstream::login::description::LoginResponseParts;

const NOW: i64 = 1_750_000_000;
const PASSWORD: &str = "p&w";

fn described(service: &str) -> Arc<LoginDescription> {
    let text = format!(
        "profile = \"none\"\n[[listener]]\naddress = \"127.0.0.1:1\"\n[upstream.main]\n\
         url = \"https://service.internal\"\n[upstream.main.login]\nprofile = \"{service}\"\n\
         username = \"gate\"\npassword = {{ env = \"HOME\" }}\n{}",
        match service {
            "keystone" => "project = \"tele phone\"",
            "keycloak" => "realm = \"a/b\"",
            "oauth2" | "oauth2_post" => "scope = \"read write\"",
            _ => "",
        }
    );
    let loaded = crate::config::parse(&text, Path::new(""));
    let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}"));
    Arc::clone(&loaded.config.upstreams[0].login_description)
}

fn jwt(life: i64) -> String {
    let claims = URL_SAFE_NO_PAD.encode(json!({ "exp": NOW + life }).to_string());
    format!("eyJhbGciOiJIUzI1NiJ9.{claims}.c2ln")
}

/// What a service's documents say about one login.
#[derive(Deserialize)]
struct Documented {
    service: String,
    target: String,
    /// JSON, or the text of a form, or `Basic` and user and password.
    sent: Value,
    /// `{ "jwt": 5 }` stands for a JWT that lives five seconds.
    answer: Value,
    life: u64,
    /// The header that carries the token.
    carried: String,
}

fn with_jwts(answer: Value) -> Value {
    match answer {
        Value::Object(members) => match members.get("jwt").and_then(Value::as_i64) {
            Some(life) => Value::String(jwt(life)),
            None => members
                .into_iter()
                .map(|(name, value)| (name, with_jwts(value)))
                .collect(),
        },
        other => other,
    }
}

/// The content of the request, or what Basic says.
fn sent(login: &LoginDescription, target: &str) -> Value {
    let parts = login.question("gate", &Secret::new(PASSWORD)).unwrap();
    assert_eq!(parts.target, *target);
    let text = String::from_utf8(parts.body.to_vec()).unwrap();
    if text.is_empty() {
        let basic = parts.headers.iter().find(|(name, _)| name == AUTHORIZATION);
        let basic = basic.unwrap().1.to_str().unwrap();
        let basic = STANDARD.decode(basic.strip_prefix("Basic ").unwrap());
        let basic = String::from_utf8(basic.unwrap()).unwrap();
        return Value::String(format!("Basic {basic}"));
    }
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

#[test]
fn every_service_is_spoken_with_as_its_documents_say() {
    let all: Vec<Documented> = serde_json::from_str(include_str!("service_answers.json")).unwrap();
    for service in SERVICE_LOGINS {
        let mut answers = all.iter();
        let is_there = answers.any(|one| one.service == service.name);
        assert!(is_there, "{} has no answer here", service.name);
    }
    for case in all {
        let login = described(&case.service);
        assert_eq!(sent(&login, &case.target), case.sent, "{}", case.service);
        // Keystone's token is here; that of the others is in the body.
        let token = HeaderValue::from_static("subject");
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-subject-token"), token)]);
        let found = login.read(LoginResponseParts {
            headers: &headers,
            body: with_jwts(case.answer).to_string().as_bytes(),
            upstream_now: NOW,
        });
        let found = found.unwrap_or_else(|error| panic!("{}: {error}", case.service));
        assert_eq!(found.life.as_secs(), case.life, "{}", case.service);
        let [(name, value)] = found.headers.as_slice() else {
            panic!("{}", case.service);
        };
        let carried = format!("{name}: {}", value.to_str().unwrap());
        let expected = format!("{}{}", case.carried, found.token.expose());
        assert_eq!(carried, expected, "{}", case.service);
    }
}
