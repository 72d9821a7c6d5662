//! `directory = "webapp"` with several upstreams: one has the users. Their tokens go to that one only.

use super::{LOGIN, common, echo};
use crate::harness::upstream::Upstream;
use crate::harness::{Gateway, WEBAPP_PASSWORD, eventually};

/// The users are at `users`, which has all paths but those of `other`.
async fn relaying(users: &Upstream, other: &Upstream) -> Gateway {
    let text = common(&format!(
        r#"
[upstream.users]
url = "http://{users}"
{LOGIN}
path_prefix = "/"
[upstream.other]
url = "http://{other}"
{LOGIN}
path_prefix = "/other"
[users]
directory = "webapp"
upstream = "users"
"#,
        users = users.address,
        other = other.address
    ));
    Gateway::of_text(&text).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_token_goes_to_the_upstream_of_the_users_only() {
    let (users, other) = (echo("users").await, echo("other").await);
    let gateway = relaying(&users, &other).await;
    // A login at either address is one at the upstream of the users.
    for login in ["/v1/users/login", "/other/v1/users/login"] {
        let request = gateway.client().request(reqwest::Method::POST, login);
        let request = request.basic_auth("worker", Some(WEBAPP_PASSWORD));
        assert_eq!(request.send().await.unwrap().status(), 200, "{login}");
    }
    eventually("the gate's own logins", async || {
        users.count("POST /v1/users/login") == 3 && other.count("POST /v1/users/login") == 1
    })
    .await;
    let client = gateway.client().with_token("token-of-users");
    let own = client.get("/v1/support").await.text().await.unwrap();
    assert!(
        own.starts_with("users\n") && own.contains("Bearer token of users"),
        "{own}"
    );
    eventually("the gate's login at the other", async || {
        client.get("/other/v1/support").await.status() == 200
    })
    .await;
    let foreign = client.get("/other/v1/support").await.text().await.unwrap();
    assert!(
        foreign.starts_with("other\n") && foreign.contains("Bearer token of other"),
        "{foreign}"
    );
    assert!(!foreign.contains("of users"), "{foreign}");

    // The upstream of the users judges its own roles; elsewhere nobody is an admin.
    assert_eq!(client.get("/v1/settings/profile/about").await.status(), 200);
    let about = client.get("/other/v1/settings/profile/about").await;
    assert_eq!(about.status(), 403);
    assert_eq!(other.count("GET /v1/settings/profile/about"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_reload_sends_known_tokens_to_another_upstream() {
    let (users, other) = (echo("users").await, echo("other").await);
    let gateway = relaying(&users, &other).await;
    let login = gateway
        .client()
        .request(reqwest::Method::POST, "/v1/users/login");
    let login = login.basic_auth("worker", Some(WEBAPP_PASSWORD));
    assert_eq!(login.send().await.unwrap().status(), 200);
    let client = gateway.client().with_token("token-of-users");
    // Another upstream for known tokens: refused, and everything stays as it is.
    let file = gateway.config_file();
    let old = std::fs::read_to_string(&file).unwrap();
    let new = old.replace("upstream = \"users\"", "upstream = \"other\"");
    std::fs::write(&file, new).unwrap();
    eventually("the reload to be refused", async || {
        gateway.metrics.config_is_current.get() == 0
    })
    .await;
    let own = client.get("/v1/support").await.text().await.unwrap();
    assert!(own.starts_with("users\n"), "{own}");

    // The two exchange their addresses, and so do the services behind their names: the same.
    let swapped = old
        .replace(&users.address.to_string(), "ADDRESS")
        .replace(&other.address.to_string(), &users.address.to_string())
        .replace("ADDRESS", &other.address.to_string());
    let moved = old.replace(&users.address.to_string(), &other.address.to_string());
    let became = |current| {
        let metrics = &gateway.metrics;
        async move || metrics.config_is_current.get() == current
    };
    for refused in [swapped, moved] {
        std::fs::write(&file, &old).unwrap();
        eventually("the first one again", became(1)).await;
        std::fs::write(&file, refused).unwrap();
        eventually("the reload to be refused", became(0)).await;
        let own = client.get("/v1/support").await.text().await.unwrap();
        assert!(own.starts_with("users\n"), "{own}");
    }
}
