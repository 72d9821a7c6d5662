//! Services that call with an API key.

use reqwest::Method;

use crate::harness::client::verdict;
use crate::harness::{Client, Gateway, NO_LIMITS, Setup, emulator, sha256};

const KEY: &str = "tgk_abcdefghijklmnopqrstuvwxyz0123456789abcdefg";
const OLD_KEY: &str = "tgk_0000000000000000000000000000000000000000000";
const DEAD_KEY: &str = "tgk_1111111111111111111111111111111111111111111";
const MONITOR_KEY: &str = "tgk_2222222222222222222222222222222222222222222";

fn keys() -> String {
    format!(
        r#"{NO_LIMITS}
[[api_key]]
name = "billing"
sha256 = ["{}", "{}"]
paths = ["/v1/messages", "/v1/support", "/v1/media/*"]
methods = ["GET", "POST"]

[[api_key]]
name = "gone"
sha256 = ["{}"]
expires = "2020-01-01T00:00:00Z"

[[api_key]]
name = "prometheus"
sha256 = ["{}"]
limit = "1/m burst 3"
"#,
        sha256(KEY),
        sha256(OLD_KEY),
        sha256(DEAD_KEY),
        sha256(MONITOR_KEY)
    )
}

async fn call(client: &Client, method: Method, path: &str, field: (&str, &str)) -> (u16, u64) {
    let request = client.request(method, path).header(field.0, field.1);
    verdict(request.send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_reaches_its_paths_and_methods_and_nothing_else() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(&keys())).await;
    let client = gateway.client();
    let apikey = format!("Apikey {KEY}");
    for scheme in [
        apikey.clone(),
        format!("APIKEY {KEY}"),
        format!("apikey  {KEY}"),
    ] {
        assert_eq!(
            call(
                &client,
                Method::GET,
                "/v1/support",
                ("authorization", &scheme)
            )
            .await
            .0,
            200
        );
    }
    assert_eq!(
        call(&client, Method::GET, "/v1/support", ("x-api-key", KEY))
            .await
            .0,
        200
    );
    assert_eq!(
        call(&client, Method::GET, "/v1/support/", ("x-api-key", OLD_KEY))
            .await
            .0,
        200
    );
    let refused = [
        (Method::GET, "/v1/health", (403, 1005)),
        (Method::PUT, "/v1/messages/gBGG1", (403, 1005)),
        (Method::GET, "/v1/certificates/external/ca", (403, 1005)),
        (Method::POST, "/v1/users", (403, 1005)),
        (Method::POST, "/v1/users/logout", (403, 1005)),
    ];
    for (method, path, expected) in refused {
        assert_eq!(
            call(&client, method, path, ("authorization", &apikey)).await,
            expected,
            "{path}"
        );
    }
    for bad in [DEAD_KEY, "tgk_wrong", "short", &"x".repeat(400)] {
        let response = call(&client, Method::GET, "/v1/health", ("x-api-key", bad)).await;
        assert_eq!(response, (401, 1005), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_paths_covers_the_monitoring_routes_only_and_has_its_own_limit() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(&keys())).await;
    let client = gateway.client();
    let key = ("x-api-key", MONITOR_KEY);
    for path in ["/v1/health", "/metrics", "/v1/stats/app"] {
        assert_eq!(call(&client, Method::GET, path, key).await.0, 200, "{path}");
    }
    let response = client
        .request(Method::GET, "/v1/health")
        .header(key.0, key.1)
        .send()
        .await
        .unwrap();
    let wait: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&wait));
    assert_eq!(verdict(response).await, (429, 1015));
    assert_eq!(
        call(&client, Method::GET, "/v1/support", key).await,
        (403, 1005)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn monitoring_requests_carry_the_upstreams_key_and_all_others_the_sessions_token() {
    let webapp_key = "webapp-key-0123456789";
    let webapp = crate::harness::emulator_with(tollgate::emulator::Settings {
        api_key: Some(tollgate::secret::Secret::new(webapp_key)),
        ..tollgate::emulator::Settings::for_tests()
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    crate::harness::prepare(folder.path(), &webapp);
    crate::harness::secret(&folder.path().join("webapp-key"), webapp_key);
    let setup = Setup::default()
        .upstream("api_key = { file = \"webapp-key\" }")
        .rest(NO_LIMITS);
    let file = folder.path().join("config.toml");
    let text = crate::harness::text(&setup, &format!("https://{}", webapp.address()));
    std::fs::write(&file, text).unwrap();
    let gateway = Gateway::from_file(folder, file).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/health").await.status(), 200);
    assert_eq!(client.get("/v1/support").await.status(), 200);
    use tollgate::metrics::SentCredential;
    assert_eq!(
        gateway
            .metrics
            .upstream("main")
            .upstream_requests
            .value(SentCredential::ApiKey),
        1
    );
    assert_eq!(
        gateway
            .metrics
            .upstream("main")
            .upstream_requests
            .value(SentCredential::Session),
        1
    );
}
