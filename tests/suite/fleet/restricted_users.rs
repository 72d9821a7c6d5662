//! Users for some upstreams only, and API keys made at run time for some: what counts is where a request
//! ends.

use reqwest::Method;
use serde_json::{Value, json};

use super::{LOGIN, common, echo};
use crate::harness::upstream::Upstream;
use crate::harness::{ADMIN, ADMIN_PASSWORD, Client, Gateway, eventually, secret};
use tollgate::metrics::ReloadResult;

const PASSWORD: &str = "a-Passw0rd!";
const TOKEN: &str = "operators-token-of-the-fleet";

fn text(north: &Upstream, south: &Upstream, sections: &str) -> String {
    let operator = "[operator]\ntoken = { file = \"operator-token\" }\n";
    let memory = "path = \"memory\"";
    let kept = "path = \"data\"";
    common(&format!(
        r#"
[upstream.north]
url = "http://{north}"
{LOGIN}
path_prefix = "/"
[upstream.south]
url = "http://{south}"
{LOGIN}
path_prefix = "/south"
[users]
first_admin = {{ username = "{ADMIN}", password = {{ file = "gate-password" }} }}
{sections}
"#,
        north = north.address,
        south = south.address,
    ))
    .replace("[operator]\n", operator)
    .replace(memory, kept)
}

async fn gate(text: &str) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    tollgate::emulator::certificates::make(&folder.path().join("certs")).unwrap();
    for (name, content) in [
        ("webapp-password", "a-password"),
        ("gate-password", ADMIN_PASSWORD),
        ("operator-token", TOKEN),
    ] {
        secret(&folder.path().join(name), content);
    }
    let file = folder.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    Gateway::from_file(folder, file).await
}

async fn reload(gateway: &Gateway, text: &str) {
    let reloads = &gateway.metrics.reloads;
    let before = reloads.value(ReloadResult::Applied);
    std::fs::write(gateway.config_file(), text).unwrap();
    gateway.steering.hup.notify_one();
    eventually("the reload", async || {
        reloads.value(ReloadResult::Applied) > before
    })
    .await;
}

async fn status(client: &Client, method: &str, path: &str) -> u16 {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = client.request(method, path).body("{}");
    request.send().await.unwrap().status().as_u16()
}

/// A user of the gate, logged in.
async fn user(gateway: &Gateway, name: &str) -> Client {
    let admin = gateway.admin().await;
    let new = json!({"username": name, "password": PASSWORD});
    assert_eq!(admin.post("/v1/users", &new).await.status(), 201);
    gateway.client().logged_in(name, PASSWORD).await
}

const PATH: &str = "/v1/groups";

#[tokio::test(flavor = "multi_thread")]
async fn a_user_for_one_upstream_reaches_no_other_from_the_reload_on() {
    let (north, south) = (echo("north").await, echo("south").await);
    let free = text(&north, &south, "");
    let gateway = gate(&free).await;
    let (worker, other) = (
        user(&gateway, "worker").await,
        user(&gateway, "other").await,
    );
    for client in [&worker, &other] {
        assert_eq!(status(client, "GET", &format!("/south{PATH}")).await, 200);
    }
    let rule = "[[user]]\nname = \"Worker\"\nupstreams = [\"north\"]";
    reload(&gateway, &text(&north, &south, rule)).await;
    for method in ["GET", "HEAD", "POST"] {
        let refused = status(&worker, method, &format!("/south{PATH}")).await;
        assert_eq!(refused, 403, "{method}");
    }
    assert_eq!(
        status(&worker, "GET", &format!("/%73outh{PATH}")).await,
        403
    );
    assert_eq!(status(&worker, "GET", PATH).await, 200);
    assert_eq!(status(&other, "GET", &format!("/south{PATH}")).await, 200);
    // What the gate answers itself goes on, by either prefix.
    assert_eq!(status(&worker, "GET", "/south/v1/users/worker").await, 200);
    let again = gateway.client().logged_in("worker", PASSWORD).await;
    assert_eq!(status(&again, "POST", "/v1/users/logout").await, 200);
    reload(&gateway, &free).await;
    let again = gateway.client().logged_in("worker", PASSWORD).await;
    assert_eq!(status(&again, "GET", &format!("/south{PATH}")).await, 200);
}

/// Otherwise it could make a user that is not restricted.
#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_admin_manages_no_users() {
    let (north, south) = (echo("north").await, echo("south").await);
    let gateway = gate(&text(&north, &south, "")).await;
    let worker = user(&gateway, "worker").await;
    let admin = gateway.admin().await;
    let rule = format!("[[user]]\nname = \"{ADMIN}\"\nupstreams = [\"north\"]");
    reload(&gateway, &text(&north, &south, &rule)).await;
    let new = json!({"username": "another", "password": PASSWORD});
    for prefix in ["", "/south"] {
        let made = admin.post(&format!("{prefix}/v1/users"), &new).await;
        assert_eq!(made.status(), 403);
        let deleted = status(&admin, "DELETE", &format!("{prefix}/v1/users/worker")).await;
        assert_eq!(deleted, 403);
    }
    assert_eq!(status(&admin, "GET", PATH).await, 200);
    assert_eq!(status(&worker, "GET", &format!("/south{PATH}")).await, 200);
}

/// `[users] upstreams` is for all that have no rule of their own.
#[tokio::test(flavor = "multi_thread")]
async fn the_default_of_all_users_and_an_exception() {
    let (north, south) = (echo("north").await, echo("south").await);
    let both = format!(
        "upstreams = [\"north\"]\n[[user]]\nname = \"{ADMIN}\"\nupstreams = [\"north\", \"south\"]"
    );
    let gateway = gate(&text(&north, &south, "")).await;
    let (worker, admin) = (user(&gateway, "worker").await, gateway.admin().await);
    reload(&gateway, &text(&north, &south, &both)).await;
    assert_eq!(status(&worker, "GET", &format!("/south{PATH}")).await, 403);
    assert_eq!(status(&worker, "GET", PATH).await, 200);
    assert_eq!(status(&admin, "GET", &format!("/south{PATH}")).await, 200);
}

async fn operator(gateway: &Gateway, method: Method, body: Option<Value>) -> (u16, Value) {
    let request = reqwest::Client::new().request(method, gateway.operator_url("/keys"));
    let request = request.bearer_auth(TOKEN);
    let request = match body {
        Some(body) => request.body(body.to_string()),
        None => request,
    };
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_made_at_run_time_for_one_upstream_stays_so_over_a_restart() {
    let (north, south) = (echo("north").await, echo("south").await);
    let gateway = gate(&text(&north, &south, "")).await;
    let wanted = |upstreams: &[&str]| json!({"name": "bot", "paths": ["/*"], "role": "admin", "upstreams": upstreams});
    let (refused, told) = operator(&gateway, Method::POST, Some(wanted(&["nroth"]))).await;
    assert_eq!(refused, 400);
    assert!(told["error"].as_str().unwrap().contains("nroth"), "{told}");
    assert!(told["error"].as_str().unwrap().contains("north"), "{told}");
    let (made, key) = operator(&gateway, Method::POST, Some(wanted(&["north"]))).await;
    assert_eq!(made, 201);
    let key = key["key"].as_str().unwrap().to_owned();
    let judge = async |gateway: &Gateway| {
        let mut statuses = Vec::new();
        for path in [PATH, &format!("/south{PATH}"), "/v1/users/admin"] {
            let request = gateway.client().request(Method::GET, path);
            let response = request.header("x-api-key", &key).send().await.unwrap();
            statuses.push(response.status().as_u16());
        }
        statuses
    };
    assert_eq!(judge(&gateway).await, [200, 403, 403]);
    let gateway = gateway.restart().await;
    assert_eq!(judge(&gateway).await, [200, 403, 403]);
    let (_, listed) = operator(&gateway, Method::GET, None).await;
    let listed = listed["keys"].as_array().unwrap();
    let bot = listed.iter().find(|key| key["name"] == "bot").unwrap();
    assert_eq!(bot["upstreams"], json!(["north"]));
    // The upstream is gone: the key leads nowhere, not everywhere.
    let renamed = text(&north, &south, "").replace("[upstream.north]", "[upstream.west]");
    reload(&gateway, &renamed).await;
    assert_eq!(judge(&gateway).await, [403, 403, 403]);
}
