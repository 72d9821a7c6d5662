//! API keys for some upstreams only, and limits by upstream: what counts is where a request ends. Calls about
//! users end at the upstream that has the users, whichever address they came by.

use http::Request;

use super::{Echoed, LOGIN, common, echo};
use crate::harness::login_upstream::KEY;
use crate::harness::raw::connected;
use crate::harness::received::{exchange, exchange_http2};
use crate::harness::upstream::Upstream;
use crate::harness::{Gateway, sha256};

const USERS_KEY: &str = "admin-of-users-0123456789";
const OTHER_KEY: &str = "admin-of-other-0123456789";

/// Two upstreams, each with a key of an admin for it alone.
async fn gate_before(users: &Upstream, other: &Upstream, sections: &str) -> Gateway {
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
[[api_key]]
name = "admin.users"
sha256 = "{of_users}"
role = "admin"
paths = "/*"
upstreams = ["users"]
[[api_key]]
name = "admin.other"
sha256 = "{of_other}"
role = "admin"
paths = "/*"
upstreams = ["other"]
{sections}
"#,
        users = users.address,
        other = other.address,
        of_users = sha256(USERS_KEY),
        of_other = sha256(OTHER_KEY),
    ));
    Gateway::of_text(&text).await
}

const RELAY: &str = "[users]\ndirectory = \"webapp\"\nupstream = \"users\"";

async fn send(gateway: &Gateway, line: &str, key: &str) -> Echoed {
    let request = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {key}\r\nContent-Length: 2\r\n\
         Content-Type: application/json\r\n\r\n{{}}"
    );
    let tls = connected(gateway, &["http/1.1"]).await;
    Echoed::of(&exchange(tls, request.as_bytes(), false).await)
}

const USERS_CALLS: [&str; 5] = [
    "POST /other/v1/users",
    "GET /other/v1/users/admin",
    "PUT /other/v1/users/admin",
    "DELETE /other/v1/users/worker",
    "PUT /%6fther/v1/users/admin?x=1",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_one_upstream_manages_no_users_of_another_through_its_prefix() {
    let (users, other) = (echo("users").await, echo("other").await);
    let gateway = gate_before(&users, &other, RELAY).await;
    let about = "GET /other/v1/settings/profile/about";
    assert_eq!(send(&gateway, about, OTHER_KEY).await.name, "other");
    for line in USERS_CALLS {
        assert_eq!(send(&gateway, line, OTHER_KEY).await.status, 403, "{line}");
    }
    let request = Request::builder()
        .uri("https://localhost/other/v1/users/admin")
        .header("authorization", format!("Apikey {OTHER_KEY}"))
        .body(())
        .unwrap();
    assert_eq!(exchange_http2(&gateway, request).await.status, 403);
    assert_eq!(users.count("v1/users/admin"), 0);
    // The key for the upstream of the users may call it by either address.
    for line in ["GET /v1/users/admin", "GET /other/v1/users/admin"] {
        assert_eq!(
            send(&gateway, line, USERS_KEY).await.name,
            "users",
            "{line}"
        );
    }
    assert_eq!(send(&gateway, about, USERS_KEY).await.status, 403);
}

/// Users of the gate may call every upstream: a key for some of them must not make any.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_some_upstreams_manages_no_users_of_the_gate() {
    let (users, other) = (echo("users").await, echo("other").await);
    let everywhere = "everywhere-0123456789";
    let sections = format!(
        "[[api_key]]\nname = \"admin\"\nsha256 = \"{}\"\nrole = \"admin\"\npaths = \"/*\"",
        sha256(everywhere)
    );
    let gateway = gate_before(&users, &other, &sections).await;
    for key in [USERS_KEY, OTHER_KEY] {
        for line in USERS_CALLS.iter().chain(&["POST /v1/users"]) {
            assert_eq!(send(&gateway, line, key).await.status, 403, "{line}");
        }
    }
    let shown = send(&gateway, "GET /other/v1/users/admin", everywhere).await;
    assert_eq!(shown.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_by_upstream_counts_calls_about_users_where_they_end() {
    let (users, other) = (echo("users").await, echo("other").await);
    let limit = "[[limit]]\nname = \"whole\"\nkey = \"upstream\"\nrate = \"1/m burst 3\"";
    let gateway = gate_before(&users, &other, &format!("{RELAY}\n{limit}")).await;
    for _ in 0..3 {
        let shown = send(&gateway, "GET /other/v1/users/admin", KEY).await;
        assert_eq!(shown.status, 403, "no admin, and not counted");
        let shown = send(&gateway, "GET /other/v1/users/admin", USERS_KEY).await;
        assert_eq!(shown.status, 200);
    }
    let spent = send(&gateway, "GET /other/v1/users/admin", USERS_KEY).await;
    assert_eq!(spent.status, 429);
    assert_eq!(
        send(&gateway, "GET /v1/health", USERS_KEY).await.status,
        429
    );
    let health = send(&gateway, "GET /other/v1/health", OTHER_KEY).await;
    assert_eq!((health.status, &*health.name), (200, "other"));
}
