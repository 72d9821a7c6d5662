//! Login, logout and users calls as existing clients see them (`directory = "gateway"`).

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::client::verdict;
use crate::harness::{ADMIN, ADMIN_PASSWORD, Gateway, NO_LIMITS, Setup, emulator, secret};

const USER_PASSWORD: &str = "User:Passw0rd:1";

async fn open_gate() -> (tollgate::emulator::Emulator, Gateway) {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    (webapp, gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_login_response_is_byte_for_byte_the_webapps() {
    let (_webapp, gateway) = open_gate().await;
    for body in ["", "{}", "null", "{\"other\":1}"] {
        let response = gateway
            .client()
            .login_with(ADMIN, ADMIN_PASSWORD, body)
            .await;
        assert_eq!(response.status(), 200, "{body}");
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["cache-control"], "no-cache, private");
        assert_eq!(response.headers()["x-request-id"].len(), 32);
        let text = response.text().await.unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let token = value["users"][0]["token"].as_str().unwrap();
        let ends = value["users"][0]["expires_after"].as_str().unwrap();
        let expected = format!(
            r#"{{"users":[{{"token":"{token}","expires_after":"{ends}"}}],"meta":{{"version":"v2.53.0","api_status":"stable"}}}}"#
        );
        assert_eq!(text, expected);
        assert!(
            token.starts_with("tg_") && token.len() == 3 + 43,
            "256 random bits"
        );
        // The layout that a Go client parses: 2006-01-02 15:04:05-07:00.
        let shape: String = ends
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(shape, "0000-00-00 00:00:00+00:00");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_login_creates_another_token_and_ends_none() {
    let (_webapp, gateway) = open_gate().await;
    let first = gateway.admin().await;
    let second = gateway.admin().await;
    assert_ne!(first.token, second.token);
    assert_eq!(first.get("/v1/users/admin").await.status(), 200);
    assert_eq!(second.get("/v1/users/admin").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_all_tokens_of_the_user_and_of_no_other() {
    let (webapp, gateway) = open_gate().await;
    let admin = gateway.admin().await;
    let created = json!({ "username": "worker", "password": USER_PASSWORD });
    assert_eq!(admin.post("/v1/users", &created).await.status(), 201);
    let one = gateway.client().logged_in("worker", USER_PASSWORD).await;
    let two = gateway.client().logged_in("worker", USER_PASSWORD).await;

    let response = one
        .request(Method::POST, "/v1/users/logout")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.text().await.unwrap(),
        r#"{"meta":{"version":"v2.53.0","api_status":"stable"}}"#
    );
    for dead in [&one, &two] {
        assert_eq!(verdict(dead.get("/v1/health").await).await, (401, 1005));
    }
    assert_eq!(admin.get("/v1/health").await.status(), 200);
    assert_eq!(
        webapp.request_count("/v1/users/logout"),
        0,
        "the shared login is not touched"
    );
}

#[expect(clippy::too_many_lines, reason = "one user from creation to deletion")]
#[tokio::test(flavor = "multi_thread")]
async fn users_are_created_shown_changed_and_deleted_with_the_webapps_responses() {
    let (_webapp, gateway) = open_gate().await;
    let admin = gateway.admin().await;
    let meta = r#""meta":{"version":"v2.53.0","api_status":"stable"}"#;
    let created = json!({ "username": "jane.doe", "password": USER_PASSWORD });

    let response = admin.post("/v1/users/", &created).await;
    assert_eq!(response.status(), 201);
    assert_eq!(
        response.text().await.unwrap(),
        format!(r#"{{"users":[{{"username":"jane.doe"}}],{meta}}}"#)
    );

    let response = admin.post("/v1/users", &created).await;
    assert_eq!(response.status(), 500);
    assert_eq!(
        response.text().await.unwrap(),
        format!(
            r#"{{"errors":[{{"code":1014,"title":"Internal error","details":"Unable to create user. Already exist?"}}],{meta}}}"#
        )
    );

    let response = admin.get("/v1/users/jane.doe").await;
    assert_eq!(
        response.text().await.unwrap(),
        format!(r#"{{"users":[{{"ROLES":"ROLE_USER","username":"jane.doe"}}],{meta}}}"#)
    );

    let jane = gateway.client().logged_in("jane.doe", USER_PASSWORD).await;
    for (method, path) in [
        (Method::POST, "/v1/users"),
        (Method::DELETE, "/v1/users/admin"),
    ] {
        let response = jane
            .request(method, path)
            .body(created.to_string())
            .send()
            .await
            .unwrap();
        assert_eq!(verdict(response).await, (403, 1005), "{path}");
    }
    assert_eq!(
        verdict(jane.get("/v1/users/admin").await).await,
        (403, 1005)
    );
    assert_eq!(jane.get("/v1/users/jane.doe").await.status(), 200);

    let change = |text: &'static str| {
        admin
            .request(Method::PUT, "/v1/users/jane.doe")
            .body(text)
            .send()
    };
    assert_eq!(
        change(r#"{"password":"New:Passw0rd:2"}"#)
            .await
            .unwrap()
            .status(),
        200
    );
    assert_eq!(
        verdict(gateway.client().login("jane.doe", USER_PASSWORD).await).await,
        (401, 1005)
    );
    assert_eq!(
        verdict(change(r#"{"password":"weak"}"#).await.unwrap()).await,
        (400, 1009)
    );
    assert_eq!(verdict(change("{}").await.unwrap()).await, (400, 1008));
    assert_eq!(verdict(change("{").await.unwrap()).await, (400, 1025));

    let deleted = admin
        .request(Method::DELETE, "/v1/users/jane.doe")
        .send()
        .await
        .unwrap();
    assert_eq!(deleted.status(), 200);
    assert_eq!(
        verdict(jane.get("/v1/users/jane.doe").await).await,
        (401, 1005),
        "its tokens have ended"
    );
    assert_eq!(
        verdict(admin.get("/v1/users/jane.doe").await).await,
        (404, 1006)
    );
    let first = admin
        .request(Method::DELETE, "/v1/users/admin")
        .send()
        .await
        .unwrap();
    assert_eq!(verdict(first).await, (403, 1005), "the first admin stays");
    assert_eq!(
        admin.post("/v1/users", &created).await.status(),
        201,
        "the name is free again"
    );
    assert_eq!(
        verdict(jane.get("/v1/health").await).await,
        (401, 1005),
        "its old tokens stay revoked"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_passwords_that_break_the_rules_are_refused() {
    let (_webapp, gateway) = open_gate().await;
    let admin = gateway.admin().await;
    let long = "x".repeat(33);
    for name in ["abc", long.as_str(), "with:colon", "with/slash"] {
        let wanted = json!({ "username": name, "password": USER_PASSWORD });
        assert_eq!(
            verdict(admin.post("/v1/users", &wanted).await).await,
            (400, 1009),
            "{name}"
        );
    }
    let wanted = json!({ "username": "worker", "password": "password" });
    assert_eq!(
        verdict(admin.post("/v1/users", &wanted).await).await,
        (400, 1009)
    );
    assert_eq!(
        verdict(
            admin
                .post("/v1/users", &json!({ "username": "worker" }))
                .await
        )
        .await,
        (400, 1008)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_login_is_refused_until_the_password_is_changed() {
    let webapp = emulator().await;
    let setup = Setup::default()
        .users(&format!(
            "first_admin = {{ username = \"{ADMIN}\", password = {{ file = \"gate-password\" }}, must_change = true }}"
        ))
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.client();
    for body in ["", "{}", "{\"a\":1}"] {
        let response = client.login_with(ADMIN, ADMIN_PASSWORD, body).await;
        assert_eq!(verdict(response).await, (401, 1024), "{body}");
    }
    assert_eq!(
        verdict(client.login_with(ADMIN, ADMIN_PASSWORD, "{").await).await,
        (400, 1025)
    );
    let weak = client
        .login_with(ADMIN, ADMIN_PASSWORD, r#"{"new_password":"weak"}"#)
        .await;
    let (status, text) = (weak.status(), weak.text().await.unwrap());
    assert_eq!(status, 400);
    assert!(
        text.contains(r"Password doesn\u0027t meet complexity requirements"),
        "{text}"
    );
    let changed = client
        .login_with(
            ADMIN,
            ADMIN_PASSWORD,
            r#"{"new_password":"Other-Passw0rd!"}"#,
        )
        .await;
    assert_eq!(changed.status(), 200);
    assert_eq!(
        verdict(client.login(ADMIN, ADMIN_PASSWORD).await).await,
        (401, 1005)
    );
    assert_eq!(client.login(ADMIN, "Other-Passw0rd!").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_user_and_a_wrong_password_get_the_same_response_in_the_same_time() {
    let (_webapp, gateway) = open_gate().await;
    let client = gateway.client();
    let mut times = [Vec::new(), Vec::new()];
    let mut responses = Vec::new();
    for _ in 0..7 {
        for (index, name) in [ADMIN, "nobody"].into_iter().enumerate() {
            let begin = tokio::time::Instant::now();
            let response = client.login(name, "Wrong-Passw0rd!").await;
            times[index].push(begin.elapsed());
            assert_eq!(response.status(), 401);
            assert_eq!(
                response.headers()["www-authenticate"],
                "Basic realm=\"Secured\", charset=\"UTF-8\""
            );
            responses.push(response.text().await.unwrap());
        }
    }
    responses.dedup();
    assert_eq!(responses.len(), 1, "{responses:?}");
    let [wrong, unknown] = times.map(|mut all| {
        all.sort();
        all[all.len() / 2].as_secs_f64()
    });
    assert!(
        (0.5..2.0).contains(&(wrong / unknown)),
        "wrong {wrong:.3} s, unknown {unknown:.3} s"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_without_a_basic_credential_gets_the_challenge() {
    let (_webapp, gateway) = open_gate().await;
    let client = gateway.client();
    for field in [
        None,
        Some("Basic"),
        Some("Basic !!"),
        Some("Basic bm9jb2xvbg=="),
        Some("Bearer x"),
    ] {
        let mut request = client.request(Method::POST, "/v1/users/login");
        if let Some(field) = field {
            request = request.header("authorization", field);
        }
        let response = request.send().await.unwrap();
        assert_eq!(
            response.headers()["www-authenticate"],
            "Basic realm=\"Secured\", charset=\"UTF-8\""
        );
        assert_eq!(verdict(response).await, (401, 1005), "{field:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_configured_admin_one_is_created_and_its_password_shown_once() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    crate::harness::prepare(folder.path(), &webapp);
    let text = crate::harness::text(&Setup::default(), &format!("https://{}", webapp.address()));
    let text: String = text
        .lines()
        .filter(|l| !l.starts_with("first_admin"))
        .collect::<Vec<_>>()
        .join("\n");
    let file = folder.path().join("config.toml");
    secret(&file, &text);
    let config = tollgate::config::load(&file)
        .unwrap_or_else(|p| panic!("{p}"))
        .config;
    let mut bound = tollgate::app::bind(config.into(), None, &Default::default())
        .await
        .unwrap();
    let admin = match bound.take_first_admin() {
        Some(tollgate::identity::FirstAdminStatus::Generated(admin)) => admin,
        other => panic!("no generated password: {other:?}"),
    };
    assert!(bound.take_first_admin().is_none(), "once");
    tollgate::profiles::check_password(&admin.password).unwrap();
}
