//! Logins that the file describes.

use http::StatusCode;

use super::*;
use crate::profiles::{CredentialForm, ExpirySource, LoginContent, TokenSource};

const PASSWORD: &str = "password = { env = \"HOME\" }";

/// `[upstream.main]` with this content of its `login`.
fn login(lines: &str) -> Result<LoadedConfig, Problems> {
    let text = format!(
        "profile = \"none\"\n[[listener]]\naddress = \"127.0.0.1:1\"\n\
         [upstream.main]\nurl = \"http://127.0.0.1:2\"\n[upstream.main.login]\n{lines}\n"
    );
    parse(&text, Path::new(""))
}

fn described(lines: &str) -> crate::profiles::LoginDescription {
    let loaded = login(lines).unwrap_or_else(|problems| panic!("{problems}"));
    (*loaded.config.upstreams[0].login_description).clone()
}

fn refusal(lines: &str) -> String {
    match login(lines) {
        Err(problems) => problems.to_string(),
        Ok(_) => panic!("accepted: {lines}"),
    }
}

#[test]
fn oauth2_client_credentials_are_four_lines() {
    let login = described(
        r#"
client_id = "gate"
client_secret = { env = "HOME" }
request = { path = "/token", auth = "client_secret_basic", form = { grant_type = "client_credentials" } }
"#,
    );
    assert_eq!(login.credential, CredentialForm::ClientSecretBasic);
    assert_eq!(
        login.token,
        TokenSource::Pointer("/access_token".to_owned())
    );
    let hour = ExpirySource::Fixed(Duration::from_secs(3600));
    assert_eq!(login.expiry.last(), Some(&hour), "it always ends");
    let LoginContent::Form(fields) = &login.body else {
        panic!("{:?}", login.body);
    };
    assert_eq!(fields[0].name, "grant_type");
    assert!(
        login.refused.contains(&StatusCode::BAD_REQUEST),
        "invalid_client"
    );
    assert!(!login.refused.contains(&StatusCode::TOO_MANY_REQUESTS));
}

#[test]
fn any_named_text_can_stand_in_a_template() {
    let login = described(&format!(
        r#"
username = "admin"
{PASSWORD}
project = "tele phone"
request.path = "/v3/auth/tokens"
request.query = {{ p = "{{project}}&", nocatalog = "" }}
request.status = 201
request.headers = {{ X-Project = "{{project}}" }}
request.json.auth.identity.password.user = {{ name = "{{username}}", password = "{{password}}", retries = 2, list = [true] }}
token = {{ header = "X-Subject-Token" }}
expires = [{{ date = "/token/expires_at" }}, "jwt", "30m"]
inject = [{{ header = "X-Auth-Token", value = "{{token}}" }}, {{ header = "X-Project", value = "{{project}}" }}]
"#
    ).replace(", nocatalog = \"\"", "").replace("request.status = 201", "request.status = [201]"));
    let encode = |text: &str, into: &mut String| {
        into.push_str(&text.replace(' ', "%20").replace('&', "%26"))
    };
    let target = login.target.fill(|_| "", encode);
    assert_eq!(&**target, "/v3/auth/tokens?p=tele%20phone%26");
    assert_eq!(login.accepted.statuses, [StatusCode::CREATED]);
    assert_eq!(login.inject.len(), 2);
    assert_eq!(login.expiry.len(), 3);
}

/// Lines beside user name and password, and a part of what is told about them.
const BAD_REQUESTS: &[(&str, &str)] = &[
    ("request = { auth = 'basic' }", "login.request.path"),
    ("request = { path = 'x', auth = 'basic' }", "must be a path"),
    ("request = { path = '/x' }", "does not send the password"),
    (
        "request = { path = '/x', form = { p = '{pasword}' } }",
        "did you mean {password}?",
    ),
    (
        "request = { path = '/x', form = { p = '{password' } }",
        "written twice",
    ),
    (
        "request = { path = '/x', form = { p = '{password}' }, json = { p = '{password}' } }",
        "beside form",
    ),
    (
        "request = { path = '/x', auth = 'basic', headers = { Cookie = 'a' } }",
        "no header that a login can set",
    ),
    (
        "request = { path = '/x', auth = 'basic', status = [200], refused = [200] }",
        "means success",
    ),
    ("project = 'x'", "project"),
];

/// The same beside a good request.
const BAD_LINES: &[(&str, &str)] = &[
    ("project = 'p'", "is in no template of this login"),
    ("expire = '1h'", "did you mean expires?"),
    ("expires = 'soon'", "is no end of a token"),
    ("expires = { seconds = 'expires_in' }", "JSON pointer"),
    (
        "expires = { seconds = '/a', date = '/b' }",
        "several places",
    ),
    ("token = 'access_token'", "begins with /"),
    (
        "inject = { header = 'Host', value = '{token}' }",
        "login.inject.header",
    ),
    (
        "inject = { header = 'X-T', value = 'x' }",
        "does not have {token}",
    ),
    (
        "inject = { header = 'X-T', value = '{password}' }",
        "no such value",
    ),
    ("client_id = 'x'", "means the same as username"),
    ("profil = 'x'", "did you mean profile?"),
    (
        "app = \"a\\nb\"\ninject = [{ header = 'X-T', value = '{token}' }, { header = 'X-A', value = '{app}' }]",
        "cannot stand in a header",
    ),
];

#[test]
fn a_mistake_is_told_with_its_key_and_what_to_write() {
    let who = format!("username = \"admin\"\n{PASSWORD}");
    let good = format!("{who}\nrequest = {{ path = '/x', auth = 'basic' }}");
    let all = BAD_REQUESTS.iter().map(|case| (&who, case));
    for (before, (line, expected)) in all.chain(BAD_LINES.iter().map(|case| (&good, case))) {
        let refusal = refusal(&format!("{before}\n{line}"));
        assert!(refusal.contains(expected), "{line}\n{refusal}");
        assert!(refusal.contains("upstream.main.login"), "{refusal}");
        let numbers = ["  7  ", "  9  ", "  10  ", "  11  "];
        let has_line = numbers.iter().any(|number| refusal.contains(number));
        assert!(has_line, "{refusal}");
    }
}
