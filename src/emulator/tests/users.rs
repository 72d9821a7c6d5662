use super::*;
use crate::emulator::LogoutScope;
use crate::profiles::parse_expiry;

#[tokio::test]
async fn the_response_to_a_login_is_as_captured() {
    let fixture = TestEmulator::start().await;
    let response = fixture.admin_log_in().await;
    assert_eq!(response.status, StatusCode::OK);
    assert_eq!(response.header("content-type"), "application/json");
    assert_eq!(response.header("cache-control"), "no-cache, private");
    assert_eq!(response.header("server"), "Server");
    assert_eq!(response.header("x-request-id").len(), 32);
    assert_eq!(response.header("x-internal-request-ids"), "");
    let reply = response.json();
    assert_eq!(reply["users"][0]["token"].as_str().unwrap().len(), 212);
    assert!(reply["meta"]["version"].as_str().unwrap().starts_with('v'));
    let date = httpdate::parse_http_date(response.header("date")).unwrap();
    let date = date
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let ends = parse_expiry(reply["users"][0]["expires_after"].as_str().unwrap()).unwrap();
    let life = ends - i64::try_from(date).unwrap();
    assert!((604_799..=604_801).contains(&life), "{life}");
}

#[tokio::test]
async fn each_login_mints_another_token_and_ends_none() {
    let fixture = TestEmulator::start().await;
    let (one, two) = (fixture.bearer().await, fixture.bearer().await);
    assert_ne!(one, two);
    assert_eq!(fixture.get("/v1/support", &one).await.status, 200);
    assert_eq!(fixture.get("/v1/support", &two).await.status, 200);
    assert_eq!(fixture.emulator.login_count(), 2);
}

#[tokio::test]
async fn a_factory_password_must_be_changed_at_the_first_login() {
    let fixture = TestEmulator::with(Settings {
        first_login: true,
        password: Secret::new("secret"),
        ..Settings::for_tests()
    })
    .await;
    for (password, body, status_and_code) in [
        ("secret", "", (401, 1024)),
        ("secret", "null", (401, 1024)),
        ("secret", "{}", (401, 1024)),
        ("secret", "{\"other\":1}", (401, 1024)),
        ("secret", "{", (400, 1025)),
        ("secret", "{\"new_password\":\"weak\"}", (400, 1009)),
        ("wrong", "{\"new_password\":\"Str0ng-enough\"}", (401, 1005)),
    ] {
        let response = fixture.log_in("admin", password, body).await;
        assert_eq!(
            response.status_and_code(),
            status_and_code,
            "{password} {body}"
        );
    }
    let body = "{\"new_password\":\"Str0ng:enough:\"}";
    assert_eq!(fixture.log_in("admin", "secret", body).await.status, 200);
    assert_eq!(
        fixture
            .log_in("admin", "secret", "")
            .await
            .status_and_code(),
        (401, 1005)
    );
    let again = fixture.log_in("admin", "Str0ng:enough:", "null").await;
    assert_eq!(again.status, 200);
}

#[tokio::test]
async fn a_refused_login_carries_the_challenge() {
    let fixture = TestEmulator::start().await;
    for credential in ["", "Basic !!", "Bearer x", "Basic YWRtaW46d3Jvbmc="] {
        let response = fixture
            .call("POST", "/v1/users/login", credential, "")
            .await;
        assert_eq!(response.status_and_code(), (401, 1005), "{credential}");
        assert_eq!(
            response.header("www-authenticate"),
            "Basic realm=\"Secured\"",
            "{credential}"
        );
    }
}

#[tokio::test]
async fn a_bad_bearer_is_refused_everywhere() {
    let fixture = TestEmulator::start().await;
    let good = fixture.bearer().await;
    let mut changed = good.clone();
    changed.pop();
    for credential in ["", "Bearer", "Bearer x", "Basic x", &changed] {
        for path in ["/v1/support", "/v1/health", "/v1/users/admin"] {
            let response = fixture.get(path, credential).await;
            assert_eq!(
                response.status_and_code(),
                (401, 1005),
                "{path} {credential}"
            );
        }
    }
    assert_eq!(fixture.get("/v1/support", &good).await.status, 200);
}

#[tokio::test]
async fn a_logout_ends_one_token_or_all_of_them() {
    let fixture = TestEmulator::start().await;
    let (one, two) = (fixture.bearer().await, fixture.bearer().await);
    let logout = |token: String| {
        let fixture = &fixture;
        async move { fixture.call("POST", "/v1/users/logout/", &token, "").await }
    };
    let response = logout(one.clone()).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.json().as_object().unwrap().len(), 1);
    assert_eq!(logout(one).await.status, 401);
    assert_eq!(fixture.get("/v1/support", &two).await.status, 200);
    fixture
        .emulator
        .change(|to| to.logout_scope = LogoutScope::User);
    let three = fixture.bearer().await;
    assert_eq!(logout(two).await.status, 200);
    assert_eq!(fixture.get("/v1/support", &three).await.status, 401);
}

#[tokio::test]
async fn users_are_created_shown_changed_and_deleted() {
    let fixture = TestEmulator::start().await;
    let admin = fixture.bearer().await;
    let create = |name: &str, password: &str| {
        let body = format!("{{\"username\":\"{name}\",\"password\":\"{password}\"}}");
        let (fixture, admin) = (&fixture, &admin);
        async move { fixture.call("POST", "/v1/users", admin, &body).await }
    };
    assert_eq!(
        create("abc", "Passw0rd!").await.status_and_code(),
        (400, 1009)
    );
    assert_eq!(create("alice", "weak").await.status_and_code(), (400, 1009));
    let created = create("alice", "Passw0rd!").await;
    assert_eq!(created.status, 201);
    assert_eq!(created.json()["users"][0]["username"], "alice");
    let twice = create("alice", "Passw0rd!").await;
    assert_eq!(twice.status_and_code(), (500, 1014));
    assert_eq!(
        twice.json()["errors"][0]["details"],
        "Unable to create user. Already exist?"
    );

    let shown = fixture.get("/v1/users/alice", &admin).await;
    assert_eq!(shown.json()["users"][0]["ROLES"], "ROLE_USER");
    let path = "/v1/users/alice";
    let new = "{\"password\":\"Passw0rd?\"}";
    assert_eq!(fixture.call("PUT", path, &admin, new).await.status, 200);
    assert_eq!(fixture.log_in("alice", "Passw0rd!", "").await.status, 401);
    let alice = bearer(&fixture.log_in("alice", "Passw0rd?", "").await);
    assert_eq!(fixture.get("/v1/support", &alice).await.status, 200);

    for (method, path) in [
        ("POST", "/v1/users"),
        ("DELETE", path),
        ("POST", "/v1/certificates/webhooks/ca"),
        ("GET", "/v1/settings/profile/about"),
    ] {
        let response = fixture.call(method, path, &alice, "{}").await;
        assert_eq!(response.status_and_code(), (403, 1005), "{method} {path}");
    }
    assert_eq!(fixture.call("DELETE", path, &admin, "").await.status, 200);
    assert_eq!(fixture.get("/v1/support", &alice).await.status, 401);
    assert_eq!(
        fixture.get(path, &admin).await.status_and_code(),
        (404, 1006)
    );
    let first = fixture.call("DELETE", "/v1/users/admin", &admin, "").await;
    assert_eq!(first.status_and_code(), (403, 1005));
}

#[tokio::test]
async fn the_api_key_opens_the_monitoring_nodes_only() {
    let fixture = TestEmulator::start().await;
    let key = "Apikey webapp-api-key-for-tests";
    for path in [
        "/v1/health",
        "/v1/health/",
        "/metrics",
        "/v1/stats/app",
        "/v1/stats/db",
    ] {
        assert_eq!(fixture.get(path, key).await.status, 200, "{path}");
        assert_eq!(fixture.get(path, "Apikey wrong-key").await.status, 401);
    }
    for path in ["/v1/support", "/v1/users/admin", "/v1/settings/application"] {
        assert_eq!(
            fixture.get(path, key).await.status_and_code(),
            (401, 1005),
            "{path}"
        );
    }
}

#[tokio::test]
async fn in_single_token_mode_a_login_ends_the_previous_token() {
    let fixture = TestEmulator::start().await;
    fixture.emulator.single_token(true);
    let (one, two) = (fixture.bearer().await, fixture.bearer().await);
    assert_eq!(fixture.get("/v1/support", &one).await.status, 401);
    assert_eq!(fixture.get("/v1/support", &two).await.status, 200);
}

#[tokio::test]
async fn tokens_can_be_expired_forgotten_and_revoked() {
    let fixture = TestEmulator::start().await;
    let one = fixture.bearer().await;
    assert_eq!(fixture.emulator.expire_all_tokens(), 1);
    assert_eq!(fixture.get("/v1/support", &one).await.status, 401);
    assert_eq!(
        fixture.emulator.webapp.state.tokens.count(),
        0,
        "an expired token is removed when found"
    );
    let (two, three) = (fixture.bearer().await, fixture.bearer().await);
    assert!(
        fixture
            .emulator
            .revoke(two.strip_prefix("Bearer ").unwrap())
    );
    assert_eq!(fixture.get("/v1/support", &two).await.status, 401);
    assert_eq!(fixture.get("/v1/support", &three).await.status, 200);
    assert_eq!(fixture.emulator.forget_all_tokens(), 1);
    assert_eq!(fixture.get("/v1/support", &three).await.status, 401);
}

#[tokio::test]
async fn a_rotated_password_refuses_the_old_one_and_keeps_the_tokens() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    fixture.emulator.rotate_password(Secret::new("An0ther-one"));
    assert_eq!(fixture.admin_log_in().await.status_and_code(), (401, 1005));
    assert_eq!(fixture.log_in("admin", "An0ther-one", "").await.status, 200);
    assert_eq!(fixture.get("/v1/support", &token).await.status, 200);
}
