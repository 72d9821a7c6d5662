//! 401 for an unknown credential and 403 for one without the right, on every route; for a
//! malformed credential, `details` says what is wrong.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::harness::client::verdict;
use crate::harness::{
    ADMIN, ADMIN_PASSWORD, Client, Gateway, NO_LIMITS, Setup, WEBAPP_PASSWORD, emulator, sha256,
};

const USER_KEY: &str = "tgk_abcdefghijklmnopqrstuvwxyz0123456789abcdefg";
const ADMIN_KEY: &str = "tgk_0000000000000000000000000000000000000000000";
const PASSWORD: &str = "User:Passw0rd:1";

fn keys() -> String {
    format!(
        r#"{NO_LIMITS}
[[api_key]]
name = "service"
sha256 = ["{}"]
paths = ["/*"]

[[api_key]]
name = "provisioning"
sha256 = ["{}"]
role = "admin"
paths = ["/v1/users/*"]

[[route]]
name = "for-keys"
path = "/v1/stickerpacks"
access = ["api_key"]
"#,
        sha256(USER_KEY),
        sha256(ADMIN_KEY)
    )
}

async fn with_key(client: &Client, key: &str, method: Method, path: &str, body: &str) -> Response {
    let request = client.request(method, path).header("x-api-key", key);
    request.body(body.to_owned()).send().await.unwrap()
}

/// The status. Checks that 401 and no other status has a challenge (RFC 9110, 11.6.1).
fn status(response: &Response) -> u16 {
    let status = response.status().as_u16();
    let has_challenge = response.headers().contains_key("www-authenticate");
    assert_eq!(has_challenge, status == 401, "{status}");
    status
}

async fn whole_life(client: &Client, key: &str) {
    let made = json!({ "username": "worker", "password": PASSWORD }).to_string();
    let new = json!({ "password": "New:Passw0rd:2" }).to_string();
    for (method, path, body, wanted) in [
        (Method::POST, "/v1/users", made.as_str(), 201),
        (Method::GET, "/v1/users/worker", "", 200),
        (Method::PUT, "/v1/users/worker", &new, 200),
        (Method::DELETE, "/v1/users/worker", "", 200),
        (Method::GET, "/v1/users/worker", "", 404),
    ] {
        let response = with_key(client, key, method.clone(), path, body).await;
        assert_eq!(status(&response), wanted, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_client_without_the_right_gets_403_and_an_unknown_one_401() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(&keys())).await;
    let admin = gateway.admin().await;
    let body = json!({ "username": "worker", "password": PASSWORD });
    assert_eq!(admin.post("/v1/users", &body).await.status(), 201);
    let worker = gateway.client().logged_in("worker", PASSWORD).await;
    let anonymous = gateway.client();
    let nodes = [
        (Method::POST, "/v1/users"),
        (Method::GET, "/v1/users/admin"),
        (Method::PUT, "/v1/users/admin"),
        (Method::DELETE, "/v1/users/admin"),
        (Method::GET, "/v1/certificates/external/ca"),
        (Method::GET, "/v1/stickerpacks"),
    ];
    for (method, path) in nodes {
        let name = format!("{method} {path}");
        let for_keys = path == "/v1/stickerpacks";
        let request = || anonymous.request(method.clone(), path);
        let plain = request().send().await.unwrap();
        assert_eq!(status(&plain), 401, "no credential: {name}");
        let made_up = "tgk_made-up-by-a-stranger";
        let unknown = with_key(&anonymous, made_up, method.clone(), path, "").await;
        assert_eq!(status(&unknown), 401, "unknown key: {name}");
        let unknown = request().bearer_auth("tg_made-up").send().await.unwrap();
        assert_eq!(status(&unknown), 401, "unknown token: {name}");
        let user = worker.request(method.clone(), path).send().await.unwrap();
        assert_eq!(status(&user), 403, "a user without the right: {name}");
        if !for_keys {
            let key = with_key(&anonymous, USER_KEY, method, path, "").await;
            assert_eq!(status(&key), 403, "a key without the right: {name}");
        }
    }
    let out = with_key(&anonymous, ADMIN_KEY, Method::POST, "/v1/users/logout", "").await;
    assert_eq!(status(&out), 403, "a key has no session to log out of");
    let key = with_key(&anonymous, USER_KEY, Method::GET, "/v1/stickerpacks", "").await;
    assert_ne!(status(&key), 403);
    assert_eq!(status(&worker.get("/v1/users/worker").await), 200);
    let deleted = admin
        .request(Method::DELETE, "/v1/users/worker")
        .send()
        .await;
    assert_eq!(deleted.unwrap().status(), 200);
    assert_eq!(
        status(&worker.get("/v1/users/worker").await),
        401,
        "the token is removed"
    );
    whole_life(&anonymous, ADMIN_KEY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_keys_have_the_same_rights_where_the_webapp_owns_the_users() {
    let webapp = emulator().await;
    let setup = Setup::default()
        .users("directory = \"webapp\"")
        .rest(&keys());
    let gateway = Gateway::with(&webapp, setup).await;
    let anonymous = gateway.client();
    for (method, path) in [
        (Method::POST, "/v1/users"),
        (Method::GET, "/v1/users/admin"),
        (Method::DELETE, "/v1/users/admin"),
        (Method::POST, "/v1/users/logout"),
    ] {
        let key = with_key(&anonymous, USER_KEY, method.clone(), path, "").await;
        assert_eq!(status(&key), 403, "{method} {path}");
        let key = with_key(&anonymous, "tgk_made-up-by-a-stranger", method, path, "").await;
        assert_eq!(status(&key), 401, "{path}");
    }
    whole_life(&anonymous, ADMIN_KEY).await;
    assert_eq!(webapp.login_count(), 1, "by the gate's own login");
}

async fn details(response: Response) -> String {
    assert_eq!(status(&response), 401);
    let response: Value = response.json().await.unwrap();
    response["errors"][0]["details"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_credentials_are_refused_with_that_reason_and_never_shown() {
    let webapp = emulator().await;
    for directory in ["gateway", "webapp"] {
        let users = match directory {
            "webapp" => "directory = \"webapp\"",
            _ => "",
        };
        let setup = Setup::default().users(users).rest(&keys());
        let gateway = Gateway::with(&webapp, setup).await;
        let password = if directory == "webapp" {
            WEBAPP_PASSWORD
        } else {
            ADMIN_PASSWORD
        };
        let admin = gateway.client().logged_in(ADMIN, password).await;
        let anonymous = gateway.client();
        let bearer = format!("Bearer {}", admin.token.as_ref().unwrap());
        for fields in [
            [("authorization", bearer.as_str()), ("x-api-key", USER_KEY)],
            [("authorization", &bearer), ("x-api-key", "")],
            [("authorization", &bearer), ("authorization", &bearer)],
            [
                ("authorization", &bearer),
                ("authorization", "Basic YWRtaW46eA=="),
            ],
            [("x-api-key", USER_KEY), ("x-api-key", "canary")],
        ] {
            let mut request = anonymous.request(Method::GET, "/v1/support");
            for (name, value) in fields {
                request = request.header(name, value);
            }
            let response = request.send().await.unwrap();
            let challenge = response.headers()["www-authenticate"].to_str().unwrap();
            assert!(challenge.contains("invalid_request"), "{challenge}");
            let text = details(response).await;
            assert!(text.contains("More than one credential"), "{text}");
            assert!(!text.contains("tg") && !text.contains("canary"), "{text}");
        }
        let twice = anonymous.request(Method::POST, "/v1/users/login");
        let twice = twice.header("authorization", "Basic YWRtaW46eA==");
        let twice = twice.header("authorization", &bearer).send().await.unwrap();
        assert!(
            twice.headers()["www-authenticate"]
                .to_str()
                .unwrap()
                .starts_with("Basic")
        );
        assert!(details(twice).await.contains("More than one credential"));
        // An API key on every request does not prevent a login.
        let login = anonymous.request(Method::POST, "/v1/users/login");
        let login = login
            .basic_auth(ADMIN, Some(password))
            .header("x-api-key", USER_KEY);
        assert_eq!(login.send().await.unwrap().status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_latin_1_login_is_refused_with_the_reason_and_a_utf_8_one_works() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(&keys())).await;
    let admin = gateway.admin().await;
    let body = json!({ "username": "größe", "password": PASSWORD });
    assert_eq!(admin.post("/v1/users", &body).await.status(), 201);
    let login = async |bytes: &[u8]| {
        let field = format!("Basic {}", STANDARD.encode(bytes));
        let request = gateway.client().request(Method::POST, "/v1/users/login");
        request.header("authorization", field).send().await.unwrap()
    };
    let latin = [b"gr\xf6\xdfe:", PASSWORD.as_bytes()].concat();
    let refused = login(&latin).await;
    let challenge = refused.headers()["www-authenticate"].clone();
    assert_eq!(challenge, "Basic realm=\"Secured\", charset=\"UTF-8\"");
    assert!(details(refused).await.contains("UTF-8"));
    let utf_8 = format!("größe:{PASSWORD}");
    assert_eq!(login(utf_8.as_bytes()).await.status(), 200);
    let wrong = login("größe:Wrong:Passw0rd".as_bytes()).await;
    assert_eq!(
        details(wrong).await,
        "Invalid credentials",
        "no more than before"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_read_whatever_the_parameters_of_its_media_type() {
    let webapp = emulator().await;
    for users in ["", "directory = \"webapp\""] {
        let setup = Setup::default().users(users).rest(&keys());
        let gateway = Gateway::with(&webapp, setup).await;
        let password = if users.is_empty() {
            ADMIN_PASSWORD
        } else {
            WEBAPP_PASSWORD
        };
        let admin = gateway.client().logged_in(ADMIN, password).await;
        for (number, kind) in [
            "application/json; charset=utf-8",
            "Application/JSON;charset=\"UTF-8\"",
            "text/json; charset=us-ascii; q=1",
        ]
        .into_iter()
        .enumerate()
        {
            let body = json!({ "username": format!("worker{number}"), "password": PASSWORD });
            let request = admin
                .request(Method::POST, "/v1/users")
                .header("content-type", kind);
            let made = request.body(body.to_string()).send().await.unwrap();
            assert_eq!(made.status(), 201, "{kind}");
            let login = gateway.client().request(Method::POST, "/v1/users/login");
            let login = login.basic_auth(format!("worker{number}"), Some(PASSWORD));
            let login = login
                .header("content-type", kind)
                .body("{}")
                .send()
                .await
                .unwrap();
            assert_eq!(login.status(), 200, "{kind}");
        }
        let duplicate = admin
            .request(Method::POST, "/v1/users")
            .body(&b"{\"username\":\"gr\xf6\"}"[..]);
        assert_eq!(verdict(duplicate.send().await.unwrap()).await.0, 400);
    }
}
