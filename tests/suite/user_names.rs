//! Every user that can be created can be shown, changed and deleted, in both directories of
//! users and with each kind of store; a name that no path can carry is refused.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde_json::json;
use tollgate::metrics::Metrics;
use tollgate::store::{Store, StoreChange, StoreContents};

use crate::harness::client::verdict;
use crate::harness::redis::RedisServer;
use crate::harness::{
    Client, Gateway, NO_LIMITS, Setup, WEBAPP_PASSWORD, emulator, prepare, secret, text,
};
use crate::shared::{brisk, gate, store};

pub(crate) const OPERATOR: &str = "operators-own-token-0123456789";
const PASSWORD: &str = "User:Passw0rd:1";
const NEW_PASSWORD: &str = "New:Passw0rd:2";

const NAMES: [&str; 10] = [
    "100%sure",
    "login",
    "a+b c",
    "größe",
    "名前です",
    "a;b=c",
    "....",
    "50% off",
    "a?b#c",
    "it's",
];

/// Escaped as clients do: everything but unreserved characters.
fn path(name: &str) -> String {
    let escaped = utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
    format!("/v1/users/{}", escaped.replace("%2E", "."))
}

async fn send(client: &Client, method: Method, path: &str, body: &str) -> u16 {
    let request = client.request(method, path).body(body.to_owned());
    request.send().await.unwrap().status().as_u16()
}

/// Creates a user at `first`, then shows, changes and deletes it at `second`.
async fn lives(name: &str, first: &Client, second: &Client) {
    let body = json!({ "username": name, "password": PASSWORD });
    let made = first.post("/v1/users", &body).await.status();
    assert_eq!(made, 201, "{name} is created");
    let shown = second.get(&path(name)).await;
    assert_eq!(shown.status(), 200, "{name} is shown");
    assert_eq!(
        shown.json::<serde_json::Value>().await.unwrap()["users"][0]["username"],
        name
    );
    let change = json!({ "password": NEW_PASSWORD }).to_string();
    let changed = send(second, Method::PUT, &path(name), &change).await;
    assert_eq!(changed, 200, "{name} is changed");
    assert_eq!(
        second.login(name, NEW_PASSWORD).await.status(),
        200,
        "{name} logs in"
    );
    let deleted = send(second, Method::DELETE, &path(name), "").await;
    assert_eq!(deleted, 200, "{name} is deleted");
    assert_eq!(
        second.get(&path(name)).await.status(),
        404,
        "{name} is removed"
    );
}

async fn is_refused(name: &str, client: &Client) {
    let body = json!({ "username": name, "password": PASSWORD });
    let refused = client.post("/v1/users", &body).await;
    assert_eq!(verdict(refused).await, (400, 1009), "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_created_at_the_gate_can_be_deleted() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let admin = gateway.admin().await;
    for name in NAMES {
        lives(name, &admin, &admin).await;
    }
    for name in [
        "100%25sure",
        "50%u0041",
        "a\\bcd",
        "..;abc",
        ".;abc",
        "line\nend",
    ] {
        is_refused(name, &admin).await;
    }
    // As sent by clients that escape only what they must escape.
    assert_eq!(admin.get("/v1/users/a;b=c+d").await.status(), 404);
    for odd in ["/v1/users/%252e%252e", "/v1/users/a%5cb", "/v1/users/100%"] {
        assert_eq!(admin.get(odd).await.status(), 400, "{odd}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_created_at_one_gate_can_be_deleted_at_another() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let one = gate(&webapp, brisk(), &store(&server.url(), "")).await;
    let two = gate(&webapp, brisk(), &store(&server.url(), "")).await;
    let (one, two) = (one.admin().await, two.admin().await);
    for name in NAMES {
        lives(name, &one, &two).await;
    }
    for name in ["100%25sure", "a\\bcd", "..;abc"] {
        is_refused(name, &two).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_created_at_the_webapp_through_the_gate_can_be_deleted() {
    let webapp = emulator().await;
    // Bodies are read for the name even on routes that buffer none for a replay.
    for lines in ["", "replay_limit = \"1KiB\""] {
        let setup = Setup::default()
            .users("directory = \"webapp\"")
            .upstream(lines);
        let gateway = Gateway::with(&webapp, setup.rest(NO_LIMITS)).await;
        let admin = gateway.client().logged_in("admin", WEBAPP_PASSWORD).await;
        // Two names are paths of the Webapp's own.
        for name in NAMES.into_iter().filter(|name| *name != "login") {
            lives(name, &admin, &admin).await;
        }
        let before = webapp.request_count("/v1/users");
        for name in ["100%25sure", "a\\bcd", "..;abc", "a/bcd"] {
            is_refused(name, &admin).await;
        }
        // The upstream could read a different name than the gate.
        for body in [
            format!("{{\"username\":\"okok\",\"username\":\"a/bcd\",\"password\":\"{PASSWORD}\"}}"),
            format!("\u{feff}{{\"username\":\"a/bcd\",\"password\":\"{PASSWORD}\"}}"),
            format!("{{\"username\":\"a/bcd\",\"password\":\"{PASSWORD}\"}} x"),
            format!("username=abcd&password={PASSWORD}"),
        ] {
            assert_eq!(send(&admin, Method::POST, "/v1/users", &body).await, 400);
        }
        assert_eq!(
            webapp.request_count("/v1/users"),
            before,
            "refused at the gate"
        );
        let padded = format!(
            "{{\"username\":\"padded\",\"password\":\"{PASSWORD}\"}}{}",
            " ".repeat(5000)
        );
        assert_eq!(send(&admin, Method::POST, "/v1/users", &padded).await, 201);
        assert_eq!(
            send(&admin, Method::DELETE, "/v1/users/padded", "").await,
            200
        );
    }
}

/// A gate with an operator token.
pub(crate) async fn operated(webapp: &tollgate::emulator::Emulator, setup: Setup) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), webapp);
    secret(&folder.path().join("operator-token"), OPERATOR);
    secret(&folder.path().join("store-key"), crate::shared::SEAL_KEY);
    let text = text(&setup, &format!("https://{}", webapp.address()));
    let lines = "[operator]\ntoken = { file = \"operator-token\" }\n";
    let file = folder.path().join("config.toml");
    std::fs::write(&file, text.replace("[operator]\n", lines)).unwrap();
    Gateway::from_file(folder, file).await
}

pub(crate) async fn send_to_operator(
    gateway: &Gateway,
    method: Method,
    path: &str,
) -> reqwest::Response {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.request(method, gateway.operator_url(path));
    request.bearer_auth(OPERATOR).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_can_delete_a_user_whose_name_is_no_longer_allowed() {
    let webapp = emulator().await;
    let gateway = operated(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let admin = gateway.admin().await;
    let body = json!({ "username": "earlier", "password": PASSWORD });
    assert_eq!(admin.post("/v1/users", &body).await.status(), 201);
    let file = gateway.config_file();
    let folder = gateway.into_folder().await;
    // A name from an imported file, which the rules no longer allow.
    let metrics = Metrics::new();
    let (opened, StoreContents { users, .. }) =
        Store::open(&folder.path().join("data/tollgate.redb"), &metrics).unwrap();
    let mut record = users
        .into_iter()
        .find(|user| &*user.name == "earlier")
        .unwrap();
    for name in ["a\\b%2f", "..;abc"] {
        record.name = name.into();
        opened
            .commit(StoreChange::PutUser(record.clone()))
            .await
            .unwrap();
    }
    opened.close().await;
    drop(opened);

    let gateway = Gateway::from_file(folder, file).await;
    for (name, at) in [
        ("a\\b%2f", "/users/a%5Cb%252f"),
        ("..;abc", "/users/..%3Babc"),
    ] {
        let user = gateway.client().logged_in(name, PASSWORD).await;
        assert_eq!(user.get("/v1/health").await.status(), 200);
        let deleted = send_to_operator(&gateway, Method::DELETE, at).await;
        assert_eq!(deleted.status(), 200, "{name}");
        let deleted: serde_json::Value = deleted.json().await.unwrap();
        assert_eq!(deleted, json!({ "deleted": name, "ended": 1 }));
        assert_eq!(user.get("/v1/health").await.status(), 401);
        assert_eq!(user.login(name, PASSWORD).await.status(), 401);
        let again = send_to_operator(&gateway, Method::DELETE, at).await;
        assert_eq!(again.status(), 404);
    }
    let first = send_to_operator(&gateway, Method::DELETE, "/users/admin").await;
    assert_eq!(first.status(), 409, "the first admin stays");
}
