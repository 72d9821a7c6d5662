//! What a restart keeps: users, passwords, tokens, revocations, the upstream's token.

use reqwest::Method;
use serde_json::json;
use tollgate::emulator::Emulator;

use crate::harness::client::verdict;
use crate::harness::{
    ADMIN, ADMIN_PASSWORD, Client, Gateway, NO_LIMITS, Setup, emulator, eventually, prepare,
    secret, text,
};

/// 32 bytes in base64.
const SEAL: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER_SEAL: &str = "HxwdGxoZGBcWFRQTEhEQDw4NDAsKCQgHBgUEAwIBAB8=";

async fn sealed(webapp: &Emulator, setup: Setup) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), webapp);
    secret(&folder.path().join("store-key"), SEAL);
    let file = folder.path().join("config.toml");
    let setup = setup.rest(NO_LIMITS);
    let setup = setup.rest("[store]\nkey = { file = \"store-key\" }");
    let text = text(&setup, &format!("https://{}", webapp.address()));
    std::fs::write(&file, text).unwrap();
    Gateway::from_file(folder, file).await
}

async fn plain(webapp: &Emulator, setup: Setup) -> Gateway {
    Gateway::with(webapp, setup.rest(NO_LIMITS)).await
}

async fn create(admin: &Client, name: &str) {
    let body = json!({ "username": name, "password": "Passw0rd!" });
    assert_eq!(admin.post("/v1/users", &body).await.status(), 201);
}

async fn is_known(gateway: &Gateway, client: &Client) -> bool {
    let token = client.token.as_ref().unwrap();
    let response = gateway.client().with_token(token).get("/v1/support").await;
    match response.status().as_u16() {
        200 => true,
        401 => false,
        other => panic!("status {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_users_passwords_tokens_and_revocations() {
    let webapp = emulator().await;
    let gateway = plain(&webapp, Setup::default()).await;
    let admin = gateway.admin().await;
    for name in ["anna", "bert", "carl"] {
        create(&admin, name).await;
    }
    let log_in =
        async |gateway: &Gateway, name: &str| gateway.client().logged_in(name, "Passw0rd!").await;
    let (anna, bert) = (
        log_in(&gateway, "anna").await,
        log_in(&gateway, "bert").await,
    );
    let carl = log_in(&gateway, "carl").await;
    let out = bert.request(Method::POST, "/v1/users/logout").send().await;
    assert_eq!(out.unwrap().status(), 200);
    let again = log_in(&gateway, "bert").await;
    let deleted = admin.request(Method::DELETE, "/v1/users/carl").send().await;
    assert_eq!(deleted.unwrap().status(), 200);
    let new = json!({ "password": "An0ther-Passw0rd" });
    let changed = admin.request(Method::PUT, "/v1/users/anna");
    let changed = changed.body(new.to_string()).send().await.unwrap();
    assert_eq!(changed.status(), 200);
    let cut_off = anna;
    let anna = gateway.client().logged_in("anna", "An0ther-Passw0rd").await;

    let gateway = gateway.restart().await;
    for client in [&admin, &anna, &again] {
        assert!(is_known(&gateway, client).await);
    }
    for client in [&bert, &carl, &cut_off] {
        assert!(!is_known(&gateway, client).await);
    }
    let client = gateway.client();
    assert_eq!(client.login("anna", "Passw0rd!").await.status(), 401);
    assert_eq!(client.login("anna", "An0ther-Passw0rd").await.status(), 200);
    assert_eq!(client.login("bert", "Passw0rd!").await.status(), 200);
    assert_eq!(client.login("carl", "Passw0rd!").await.status(), 401);

    // A new user with an old name has no token of the old one.
    create(&gateway.admin().await, "carl").await;
    let gateway = gateway.restart().await;
    assert!(!is_known(&gateway, &carl).await);
    assert!(is_known(&gateway, &anna).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn learned_tokens_are_still_known_after_a_restart() {
    let webapp = emulator().await;
    let setup = Setup::default().users("directory = \"webapp\"");
    let gateway = plain(&webapp, setup).await;
    let client = gateway.client();
    let one = client
        .clone()
        .logged_in("admin", crate::harness::WEBAPP_PASSWORD)
        .await;
    let gateway = gateway.restart().await;
    assert!(
        is_known(&gateway, &one).await,
        "and the Webapp got no request"
    );
    let client = gateway.client().with_token(one.token.as_ref().unwrap());
    let out = client
        .request(Method::POST, "/v1/users/logout")
        .send()
        .await;
    assert_eq!(out.unwrap().status(), 200);
    let gateway = gateway.restart().await;
    assert!(!is_known(&gateway, &one).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_several_starts_cause_one_login() {
    let webapp = emulator().await;
    let mut gateway = sealed(&webapp, Setup::default()).await;
    let admin = gateway.admin().await;
    assert!(is_known(&gateway, &admin).await);
    for _ in 0..2 {
        gateway = gateway.restart().await;
        assert!(is_known(&gateway, &admin).await);
    }
    assert_eq!(webapp.login_count(), 1);
    let token = "certs"; // a name from the folder that the store must not contain
    let file = std::fs::read(gateway.folder.path().join("data/tollgate.redb")).unwrap();
    assert!(gateway.folder.path().join(token).exists());
    assert!(
        !file.windows(3).any(|part| part == b"tg_"),
        "no token in plain text"
    );

    // The key was changed without old_key: one login, then none.
    let key = gateway.folder.path().join("store-key");
    secret(&key, OTHER_SEAL);
    gateway = gateway.restart().await;
    assert!(is_known(&gateway, &admin).await);
    assert_eq!(webapp.login_count(), 2);

    // A rotation with both keys: no login.
    let old = gateway.folder.path().join("store-key-old");
    secret(&old, OTHER_SEAL);
    secret(&key, SEAL);
    let config = std::fs::read_to_string(gateway.config_file()).unwrap();
    let rotated = config.replace(
        "key = { file = \"store-key\" }",
        "key = { file = \"store-key\" }\nold_key = { file = \"store-key-old\" }",
    );
    std::fs::write(gateway.config_file(), rotated).unwrap();
    gateway = gateway.restart().await;
    assert!(is_known(&gateway, &admin).await);
    assert_eq!(webapp.login_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_each_start_is_one_login() {
    let webapp = emulator().await;
    let gateway = plain(&webapp, Setup::default()).await;
    let admin = gateway.admin().await;
    assert!(is_known(&gateway, &admin).await);
    let gateway = gateway.restart().await;
    assert!(is_known(&gateway, &admin).await);
    assert_eq!(webapp.login_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_token_that_the_upstream_has_ended_causes_one_login_and_fails_no_request() {
    let webapp = emulator().await;
    let gateway = sealed(&webapp, Setup::default()).await;
    let admin = gateway.admin().await;
    assert!(is_known(&gateway, &admin).await);
    webapp.forget_all_tokens();
    let gateway = gateway.restart().await;
    assert!(is_known(&gateway, &admin).await);
    assert_eq!(webapp.login_count(), 2);
    let gateway = gateway.restart().await;
    assert!(is_known(&gateway, &admin).await);
    assert_eq!(
        webapp.login_count(),
        2,
        "the new token is stored in place of the old one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_token_is_never_sent_to_another_upstream() {
    let (webapp, other) = (emulator().await, emulator().await);
    let gateway = sealed(&webapp, Setup::default()).await;
    let admin = gateway.admin().await;
    assert!(is_known(&gateway, &admin).await);
    let config = std::fs::read_to_string(gateway.config_file()).unwrap();
    let moved = config.replace(&webapp.address().to_string(), &other.address().to_string());
    let ca = gateway.folder.path().join("webapp-ca.pem");
    let file = gateway.config_file();
    let folder = gateway.into_folder().await;
    std::fs::write(&file, moved).unwrap();
    std::fs::write(ca, other.authority_pem()).unwrap();
    let gateway = Gateway::from_file(folder, file).await;
    assert!(is_known(&gateway, &admin).await);
    assert_eq!((webapp.login_count(), other.login_count()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_admins_changed_password_survives_restarts_until_its_file_changes() {
    let webapp = emulator().await;
    let gateway = plain(&webapp, Setup::default()).await;
    let admin = gateway.admin().await;
    let new = json!({ "password": "Chosen-Passw0rd" });
    let changed = admin.request(Method::PUT, &format!("/v1/users/{ADMIN}"));
    let changed = changed.body(new.to_string()).send().await.unwrap();
    assert_eq!(changed.status(), 200);
    let gateway = gateway.restart().await;
    let client = gateway.client();
    assert_eq!(client.login(ADMIN, "Chosen-Passw0rd").await.status(), 200);
    assert_eq!(client.login(ADMIN, ADMIN_PASSWORD).await.status(), 401);

    secret(
        &gateway.folder.path().join("gate-password"),
        "Lost-and-f0und",
    );
    let gateway = gateway.restart().await;
    let client = gateway.client();
    assert_eq!(client.login(ADMIN, "Lost-and-f0und").await.status(), 200);
    assert_eq!(client.login(ADMIN, "Chosen-Passw0rd").await.status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_memory_a_restart_forgets_everything() {
    let webapp = emulator().await;
    let setup = Setup::default().rest("[store]\npath = \"memory\"");
    let gateway = plain(&webapp, setup).await;
    let admin = gateway.admin().await;
    assert!(!gateway.folder.path().join("data").exists());
    let gateway = gateway.restart().await;
    assert!(!is_known(&gateway, &admin).await);
    assert!(gateway.admin().await.token.is_some());
}

/// A disk of one MiB, if this process may mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(folder.path())
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        eprintln!("SKIPPED: only root can mount a small disk, and this process is not");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg(self.0.path())
            .output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_known_tokens_work_and_changes_get_503_until_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let webapp = emulator().await;
    let path = disk.0.path().join("gate.redb");
    let setup = Setup::default().rest(&format!("[store]\npath = \"{}\"", path.display()));
    let gateway = plain(&webapp, setup).await;
    let admin = gateway.admin().await;
    // The store may still use free pages of its file: fill these first.
    let filler = disk.0.path().join("filler");
    let fill = || {
        let _ = std::fs::write(&filler, vec![1; 2 << 20]);
    };
    let mut tokens = vec![admin.token.clone().unwrap()];
    let mut refused = None;
    for _ in 0..2000 {
        fill();
        let response = gateway.client().login(ADMIN, ADMIN_PASSWORD).await;
        if response.status() == 200 {
            let response: serde_json::Value = response.json().await.unwrap();
            tokens.push(response["users"][0]["token"].as_str().unwrap().to_owned());
            continue;
        }
        refused = Some(response);
        break;
    }
    let refused = refused.expect("the disk never became full");
    let wait: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(wait >= 1);
    assert_eq!(verdict(refused).await, (503, 1011));
    let logout = admin.request(Method::POST, "/v1/users/logout").send().await;
    assert_eq!(verdict(logout.unwrap()).await, (503, 1011));
    assert!(
        is_known(&gateway, &admin).await,
        "a refused change is not made"
    );
    let ready = reqwest::get(gateway.operator_url("/readyz")).await.unwrap();
    assert_eq!(ready.status(), 200, "ready, because known tokens work");
    assert!(ready.text().await.unwrap().contains("store: "));
    assert_eq!(gateway.metrics.store_up.get(), 0);

    std::fs::remove_file(&filler).unwrap();
    eventually("logins work again", async || {
        gateway.client().login(ADMIN, ADMIN_PASSWORD).await.status() == 200
    })
    .await;
    assert_eq!(gateway.metrics.store_up.get(), 1);
    let gateway = gateway.restart().await;
    for token in tokens {
        let client = gateway.client().with_token(&token);
        assert_eq!(
            client.get("/v1/support").await.status(),
            200,
            "a confirmed change is stored"
        );
    }
    gateway.stop().await;
}
