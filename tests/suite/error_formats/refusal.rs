//! A gateway with either profile and the same routes, and the expected responses.

use reqwest::Response;
use serde_json::Value;

use crate::harness::login_upstream::{KEY, LoginUpstream};
use crate::harness::{Gateway, sha256};

pub(super) const PROBLEM: &str = "application/problem+json";
pub(super) const ENVELOPE: &str = "application/json";

pub(super) fn config(profile: &str, url: &str) -> String {
    let own_users = [
        ("login", "login", "open"),
        ("create", "create", "admin"),
        ("show/{name}", "show", "admin"),
    ];
    let own_users: String = own_users
        .iter()
        .map(|(path, call, access)| {
            format!(
                "[[route]]\nname = \"my.{call}\"\npath = \"/my/{path}\"\naccess = \"{access}\"\ntarget = \"users.{call}\"\n"
            )
        })
        .collect();
    format!(
        r#"
profile = "{profile}"
workers = 1
close = "closed"

[[listener]]
address = "127.0.0.1:0"
tls = {{ certificates = [{{ certificate = "certs/server.pem", key = "certs/server.key" }}] }}
max_header_size = "8KiB"
header_timeout = "1s"

[operator]
address = "127.0.0.1:0"

[upstream.main]
url = "{url}"
login = {{ username = "admin", password = {{ file = "webapp-password" }} }}
probe = "none"
first_byte_timeout = "1s"

[users]
first_admin = {{ username = "admin", password = {{ file = "webapp-password" }} }}
max_tokens_per_user = 3
at_token_cap = "refuse"

{own_users}
[[route]]
name = "closed"
path = "/closed"

[[route]]
name = "open"
path = "/open/*"
access = "open"
methods = ["GET", "POST"]
max_body = "1KiB"

[[route]]
name = "limited"
path = "/limited"
access = "open"
class = "limited"

[[route]]
name = "all"
path = "/all/*"
access = ["token", "api_key"]

[[api_key]]
name = "caller"
sha256 = "{digest}"
paths = "/all/*"
methods = "GET"

[[limit]]
name = "limited"
key = "peer"
classes = "limited"
rate = "1/h"

[store]
path = "memory"

[drain]
wait = "0s"
deadline = "20s"
"#,
        digest = sha256(KEY)
    )
}

pub(super) async fn gate(profile: &str, upstream: &LoginUpstream) -> Gateway {
    Gateway::of_text(&config(profile, &upstream.url())).await
}

/// The upstream's response to `path`.
pub(super) async fn upstream() -> LoginUpstream {
    LoginUpstream::start(|request| match request.path.as_str() {
        "/all/refused" => 401,
        _ => 200,
    })
    .await
}

/// Status, relevant headers and body of a response.
#[derive(Debug)]
pub(super) struct Refusal {
    status: u16,
    kind: String,
    request_id: String,
    pub(super) challenge: Option<String>,
    body: String,
}

impl Refusal {
    pub(super) async fn of(response: Response) -> Self {
        let text = |name: &str| {
            let value = response.headers().get(name);
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        Self {
            status: response.status().as_u16(),
            kind: text("content-type").unwrap_or_default(),
            request_id: text("x-request-id").unwrap_or_default(),
            challenge: text("www-authenticate"),
            body: response.text().await.unwrap(),
        }
    }

    pub(super) fn of_text(response: &str) -> Self {
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response, ""));
        let field = |wanted: &str| {
            let mut fields = head.lines().filter_map(|line| line.split_once(": "));
            let found = fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.to_owned())
        };
        Self {
            status: head
                .split(' ')
                .nth(1)
                .unwrap_or_else(|| panic!("no status: {response}"))
                .parse()
                .unwrap(),
            kind: field("content-type").unwrap_or_default(),
            request_id: field("x-request-id").unwrap_or_default(),
            challenge: field("www-authenticate"),
            body: body.to_owned(),
        }
    }

    /// `code`: the Webapp's, for the profile that has it.
    pub(super) fn check(&self, profile: &str, what: &str, status: u16, code: u64) {
        assert_eq!(self.status, status, "{profile} {what}: {self:?}");
        let body: Value = serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{profile} {what}: {error} {self:?}"));
        let members: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(self.request_id.len(), 32, "{profile} {what}: {self:?}");
        if profile == "none" {
            assert_eq!(self.kind, PROBLEM, "{what}");
            let wanted = ["type", "title", "status", "detail", "instance"];
            assert_eq!(members, wanted, "{what}");
            assert_eq!(body["type"], "about:blank", "{what}");
            assert_eq!(body["status"], status, "{what}");
            assert_eq!(body["instance"], *self.request_id, "{what}");
            for text in ["title", "detail"] {
                assert_ne!(body[text].as_str().unwrap(), "", "{what}");
            }
            assert!(!self.body.contains("Webapp"), "{what}: {}", self.body);
        } else {
            assert_eq!(self.kind, ENVELOPE, "{what}");
            assert_eq!(members, ["errors", "meta"], "{what}");
            let error = body["errors"][0].as_object().unwrap();
            let members: Vec<&String> = error.keys().collect();
            assert_eq!(members, ["code", "title", "details"], "{what}");
            assert_eq!(error["code"], code, "{what}");
        }
    }
}
