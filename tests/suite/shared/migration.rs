//! From a file to a shared store, and back into a backup, with `tollgate store`.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;

use super::{SEAL_KEY, brisk, status, store};
use crate::harness::redis::RedisServer;
use crate::harness::{Client, Gateway, emulator, eventually, prepare, secret, text};

fn tollgate(config: &std::path::Path, words: &[&str], input: &str) -> (bool, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .arg("store")
        .args(words)
        .arg("--config")
        .arg(config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses at once does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let done = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.success(), text(done.stdout), text(done.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_moves_to_a_shared_store_and_no_client_has_to_log_in_again() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), &webapp);
    secret(&folder.path().join("store-key"), SEAL_KEY);
    let url = format!("https://{}", webapp.address());
    let file = folder.path().join("config.toml");
    let embedded = "[store]\npath = \"tollgate.redb\"\nkey = { file = \"store-key\" }";
    std::fs::write(&file, text(&brisk().rest(embedded), &url)).unwrap();
    let gate = Gateway::from_file(folder, file.clone()).await;
    let admin = gate.admin().await;
    let made = json!({ "username": "worker", "password": "Worker-Passw0rd!" });
    assert_eq!(admin.post("/v1/users", &made).await.status(), 201);
    let worker = gate.client().logged_in("worker", "Worker-Passw0rd!").await;
    assert_eq!(status(&worker).await, 200);
    let folder = gate.into_folder().await;

    let (good, lines, message) = tollgate(&file, &["export"], "");
    assert!(good, "{message}");
    std::fs::write(&file, text(&brisk().rest(&store(&server.url(), "")), &url)).unwrap();
    let (good, message, error) = tollgate(&file, &["import"], &lines);
    assert!(good, "{message}{error}");
    let (again, _, error) = tollgate(&file, &["import"], &lines);
    assert!(!again && error.contains("not empty"), "{error}");
    let (merged, ..) = tollgate(&file, &["import", "--merge"], &lines);
    assert!(merged);
    let issued = |name: &str| server.query::<u64>(&["HGET", "{tollgate}:issued", name]);
    assert_eq!(
        (issued("admin"), issued("worker")),
        (1, 1),
        "the counts are continued"
    );

    let gate = Gateway::from_file(folder, file.clone()).await;
    for known in [&admin, &worker] {
        let client: Client = gate.client().with_token(known.token.as_ref().unwrap());
        assert_eq!(status(&client).await, 200);
    }
    assert_eq!(webapp.login_count(), 1, "the upstream's token moved, too");
    let (good, backup, message) = tollgate(&file, &["export"], "");
    assert!(good && message.contains("2 tokens"), "{message}");
    assert!(backup.contains("\"issued\":1"), "{backup}");
    assert!(!backup.contains(admin.token.as_ref().unwrap()));
    let (good, report, error) = tollgate(&file, &["check"], "");
    assert!(good && report.contains("good"), "{report}{error}");
    let worker = gate.client().logged_in("worker", "Worker-Passw0rd!").await;
    assert_eq!(issued("worker"), 2);
    let out = worker.post("/v1/users/logout", &json!({})).await;
    assert_eq!(out.status(), 200);
    eventually("ended tokens are not exported", async || {
        tollgate(&file, &["export"], "").2.contains("1 tokens")
    })
    .await;
}
