//! Every kind of login that a description can express: over a socket through the whole session
//! where bytes matter, by value otherwise.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::prelude::{ProptestConfig, any, proptest};
use serde_json::{Value, json};

use super::UpstreamSetup;
use super::server::{Reply, Webapp};
use crate::profiles::{
    BodyValue, CredentialForm, ExpirySource, FormField, HeaderTemplate, JsonMember, JsonTemplate,
    LoginAcceptance, LoginContent, LoginDescription, Template, TokenSource,
};
use crate::secret::Secret;
use crate::upstream::login::description::{BadLoginResponse, LoginResponseParts};

const NOW: i64 = 1_627_203_048;

/// Token and lifetime in seconds that `description` reads from `body`.
fn read(
    description: &LoginDescription,
    headers: &HeaderMap,
    body: &str,
) -> Result<(String, u64), BadLoginResponse> {
    let response = LoginResponseParts {
        headers,
        body: body.as_bytes(),
        upstream_now: NOW,
    };
    let found = description.read(response)?;
    Ok((found.token.expose().to_owned(), found.life.as_secs()))
}

fn with(token: TokenSource, expiry: Vec<ExpirySource>) -> LoginDescription {
    LoginDescription {
        token,
        expiry,
        ..crate::profiles::whatsapp::login_description()
    }
}

fn pointer(text: &str) -> TokenSource {
    TokenSource::Pointer(text.to_owned())
}

fn jwt(claims: &Value) -> String {
    let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
    format!("eyJhbGciOiJIUzI1NiJ9.{claims}.c2ln")
}

#[test]
fn tokens_are_read_from_pointer_header_or_whole_body() {
    let none = HeaderMap::new();
    let hour = || vec![ExpirySource::Fixed(Duration::from_secs(3600))];
    let vault = with(pointer("/auth/client_token"), hour());
    let body = r#"{"auth":{"client_token":"hvs.x"}}"#;
    assert_eq!(read(&vault, &none, body), Ok(("hvs.x".to_owned(), 3600)));

    let name = HeaderName::from_static("x-subject-token");
    let keystone = with(TokenSource::Header(name.clone()), hour());
    assert_eq!(read(&keystone, &none, "{}"), Err(BadLoginResponse::NoToken));
    let headers = HeaderMap::from_iter([(name, HeaderValue::from_static("gAAA"))]);
    assert_eq!(
        read(&keystone, &headers, "{}"),
        Ok(("gAAA".to_owned(), 3600))
    );

    let vcenter = with(TokenSource::WholeBody, hour());
    for good in ["\"abc\"", "abc", " abc\n"] {
        assert_eq!(read(&vcenter, &none, good), Ok(("abc".to_owned(), 3600)));
    }
    for bad in ["", "null", "{}", "[\"abc\"]", "\"\""] {
        assert_eq!(
            read(&vcenter, &none, bad),
            Err(BadLoginResponse::NoToken),
            "{bad}"
        );
    }
    for bad in ["<html>", "Bad Gateway", &"x".repeat(9000)] {
        assert_eq!(read(&vcenter, &none, bad), Err(BadLoginResponse::BadToken));
    }
}

#[test]
fn the_first_expiry_found_counts() {
    use BadLoginResponse::{BadExpiry, Past, TooFar};
    let none = HeaderMap::new();
    let description = with(
        pointer("/t"),
        vec![
            ExpirySource::PointerDate("/date".to_owned()),
            ExpirySource::PointerSeconds("/s".to_owned()),
            ExpirySource::PointerMillis("/ms".to_owned()),
            ExpirySource::JwtExp,
            ExpirySource::Fixed(Duration::from_secs(60)),
        ],
    );
    let life = |extra: Value, token: &str| {
        let mut body = json!({ "t": token });
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        read(&description, &none, &body.to_string()).map(|(_, life)| life)
    };
    let day = json!({ "date": "2021-07-26 08:50:48+00:00", "s": 5 });
    assert_eq!(life(day, "t"), Ok(86_400));
    assert_eq!(
        life(json!({ "date": "2021-07-25T08:51:48.5Z" }), "t"),
        Ok(60)
    );
    assert_eq!(life(json!({ "date": null, "s": 5 }), "t"), Ok(5));
    assert_eq!(life(json!({ "s": "5" }), "t"), Ok(5));
    assert_eq!(life(json!({ "s": 5.9 }), "t"), Ok(5));
    assert_eq!(life(json!({ "ms": 900_000 }), "t"), Ok(900));
    assert_eq!(life(json!({}), &jwt(&json!({ "exp": NOW + 7 }))), Ok(7));
    assert_eq!(life(json!({}), &jwt(&json!({ "sub": "x" }))), Ok(60));
    assert_eq!(life(json!({}), "opaque.but.dotted"), Ok(60));

    assert_eq!(life(json!({ "date": 5 }), "t"), Err(BadExpiry));
    assert_eq!(life(json!({ "s": -1 }), "t"), Err(BadExpiry));
    assert_eq!(life(json!({ "s": "soon" }), "t"), Err(BadExpiry));
    assert_eq!(life(json!({ "s": 0 }), "t"), Err(Past));
    assert_eq!(life(json!({ "s": 1e300 }), "t"), Err(TooFar));
    assert_eq!(life(json!({ "s": 40_000_000 }), "t"), Err(TooFar));
    let past = jwt(&json!({ "exp": NOW - 1 }));
    assert_eq!(life(json!({}), &past), Err(Past));
    let odd = jwt(&json!({ "exp": "never" }));
    assert_eq!(life(json!({}), &odd), Err(BadExpiry));

    let silent = with(pointer("/t"), vec![ExpirySource::JwtExp]);
    assert_eq!(
        read(&silent, &none, r#"{"t":"x"}"#),
        Err(BadLoginResponse::NoExpiry)
    );
}

fn template(value: &Value) -> JsonTemplate {
    match value {
        Value::String(text) => JsonTemplate::Text(Template::of(text)),
        Value::Array(items) => JsonTemplate::List(items.iter().map(template).collect()),
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| JsonMember {
                name: name.clone(),
                value: template(value),
            };
            JsonTemplate::Object(members.iter().map(member).collect())
        }
        other => JsonTemplate::Other(other.clone()),
    }
}

/// What cannot be told apart from the form's own signs, and what must not be expanded.
const ODD: &str = "p\"{username}&=%+\\:$\u{20ac} b";

#[test]
fn a_secret_arrives_as_it_is_in_every_place() {
    let password = Secret::new(ODD);
    let login = LoginDescription {
        credential: CredentialForm::InTemplates,
        ..crate::profiles::whatsapp::login_description()
    };
    let json = LoginDescription {
        body: LoginContent::Json(template(&json!({
            "auth": [{ "user": "{username}", "password": "{password}" }], "ttl": 5,
        }))),
        ..login.clone()
    };
    let question = json.question("me", &password).unwrap();
    let sent: Value = serde_json::from_slice(&question.body).unwrap();
    assert_eq!(sent["auth"][0]["user"], "me");
    assert_eq!(sent["auth"][0]["password"], ODD);
    assert_eq!(sent["ttl"], 5);

    let field = |name: &str, value: &str| FormField {
        name: name.to_owned(),
        value: Template::of(value),
    };
    let form = LoginDescription {
        body: LoginContent::Form(vec![
            field("grant_type", "password"),
            field("user name", "{username}@pam"),
            field("password", "{password}"),
        ]),
        ..login.clone()
    };
    let encoded = "p%22%7Busername%7D%26%3D%25%2B%5C%3A%24%E2%82%AC+b";
    let question = form.question("me", &password).unwrap();
    assert_eq!(
        std::str::from_utf8(&question.body).unwrap(),
        format!("grant_type=password&user+name=me%40pam&password={encoded}")
    );

    let path = LoginDescription {
        target: Template::of("/login/{password}?u={username}"),
        ..login.clone()
    };
    let question = path.question("a b/\u{fc}", &password).unwrap();
    let in_path = encoded.replace('+', "%20");
    assert_eq!(
        question.target,
        *format!("/login/{in_path}?u=a%20b%2F%C3%BC")
    );

    // RFC 6749, 2.3.1: form-encoded before they are joined.
    let basic = LoginDescription {
        credential: CredentialForm::ClientSecretBasic,
        ..login
    };
    let question = basic.question("a b/\u{fc}", &password).unwrap();
    let sent = question.headers[0].1.to_str().unwrap();
    let sent = STANDARD.decode(sent.strip_prefix("Basic ").unwrap());
    let expected = format!("a+b%2F%C3%BC:{encoded}");
    assert_eq!(String::from_utf8(sent.unwrap()).unwrap(), expected);
    assert!(question.headers[0].1.is_sensitive());
}

#[test]
fn a_value_that_a_header_cannot_carry_is_named_and_not_shown() {
    let login = LoginDescription {
        headers: vec![HeaderTemplate {
            name: HeaderName::from_static("x-key"),
            value: Template::of("{password}"),
        }],
        ..crate::profiles::whatsapp::login_description()
    };
    let error = login
        .question("me", &Secret::new("sec\u{7f}ret"))
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("x-key") && !text.contains("sec"), "{text}");
}

/// Success is what the description says, and a token besides.
#[test]
fn a_success_without_the_expected_value_is_none() {
    let mut login = with(
        pointer("/t"),
        vec![ExpirySource::Fixed(Duration::from_secs(60))],
    );
    login.accepted.body = Some(BodyValue {
        pointer: "/ok".to_owned(),
        equals: json!(true),
    });
    let none = HeaderMap::new();
    for (body, expected) in [
        (r#"{"ok":true,"t":"x"}"#, Ok(("x".to_owned(), 60))),
        (
            r#"{"ok":true,"t":"x","error":null}"#,
            Ok(("x".to_owned(), 60)),
        ),
        (r#"{"ok":false,"t":"x"}"#, Err(BadLoginResponse::Denied)),
        (r#"{"ok":"true","t":"x"}"#, Err(BadLoginResponse::Denied)),
        (r#"{"t":"x"}"#, Err(BadLoginResponse::Denied)),
        (r#"{"ok":true,"t":""}"#, Err(BadLoginResponse::NoToken)),
        (r#"{"ok":true}"#, Err(BadLoginResponse::NoToken)),
    ] {
        assert_eq!(read(&login, &none, body), expected, "{body}");
    }
}

#[tokio::test]
async fn a_json_login_with_a_custom_header_works_end_to_end() {
    let webapp = Webapp::start(|call| {
        let sent: Value = serde_json::from_slice(&call.body).unwrap();
        assert_eq!(sent, json!({ "email": "gateway", "password": "right" }));
        assert!(call.has_line("content-type: application/json"));
        assert!(call.has_line("PUT /auth/login?mode=json HTTP/1.1"));
        Reply::with(
            202,
            "",
            r#"{"data":{"access_token":"dtok","expires":900000}}"#,
        )
    })
    .await;
    let setup = UpstreamSetup::of(webapp.address);
    let session = setup.session_with(LoginDescription {
        method: http::Method::PUT,
        target: Template::of("/auth/login?mode=json"),
        headers: Vec::new(),
        credential: CredentialForm::InTemplates,
        body: LoginContent::Json(template(&json!({
            "email": "{username}", "password": "{password}",
        }))),
        accepted: LoginAcceptance {
            statuses: vec![StatusCode::ACCEPTED],
            body: None,
        },
        refused: Vec::new(),
        token: pointer("/data/access_token"),
        expiry: vec![ExpirySource::PointerMillis("/data/expires".to_owned())],
        inject: vec![
            HeaderTemplate {
                name: HeaderName::from_static("x-auth-token"),
                value: Template::of("{token}"),
            },
            HeaderTemplate {
                name: HeaderName::from_static("x-app"),
                value: Template::of("gate"),
            },
        ],
        password_change: None,
    });
    let lease = session.lease().await.unwrap();
    assert_eq!(lease.headers()[0].0, "x-auth-token");
    assert_eq!(lease.headers()[0].1, "dtok");
    assert_eq!(lease.headers()[1].1, "gate");
    assert!(lease.ends().left() > Duration::from_secs(890));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_login_response_causes_a_panic(body in any::<Vec<u8>>(), now in any::<i64>()) {
        for token in [pointer("/users/0/token"), TokenSource::WholeBody] {
            let description = with(token, vec![
                ExpirySource::PointerDate(String::new()),
                ExpirySource::JwtExp,
                ExpirySource::Fixed(Duration::from_secs(1)),
            ]);
            let headers = HeaderMap::new();
            let response = LoginResponseParts { headers: &headers, body: &body, upstream_now: now };
            let _ = description.read(response);
            description.wants_password_change(&body);
        }
    }
}
