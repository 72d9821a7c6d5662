//! One login at the upstream for all gates.

use std::time::Duration;

use super::faults::{all_have, known};
use super::{SEAL_KEY, brisk, gate, status, store, three};
use crate::harness::program::Program;
use crate::harness::redis::RedisServer;
use crate::harness::{emulator, eventually, prepare, secret, text};

#[tokio::test(flavor = "multi_thread")]
async fn three_gates_log_in_once_and_a_refusal_seen_by_any_is_one_more_login() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let gates = three(&webapp, &server, "").await;
    let clients = known(&gates).await;
    assert_eq!(webapp.login_count(), 1, "one login for all three");
    webapp.forget_all_tokens();
    let mut running = Vec::new();
    for client in clients.iter().cycle().take(60) {
        let client = client.clone();
        running.push(tokio::spawn(async move { status(&client).await }));
    }
    for response in running {
        assert_eq!(response.await.unwrap(), 200);
    }
    assert_eq!(
        webapp.login_count(),
        2,
        "one more login for all sixty refusals"
    );
    all_have(&gates, "tollgate_session_generation{upstream=\"main\"} 2").await;
    // A gate that starts later uses the existing login.
    let late = gate(&webapp, brisk(), &store(&server.url(), "")).await;
    let client = late.client().with_token(clients[0].token.as_ref().unwrap());
    assert_eq!(status(&client).await, 200);
    assert_eq!(webapp.login_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_killed_during_its_login_leaves_one_current_generation() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), &webapp);
    secret(&folder.path().join("store-key"), SEAL_KEY);
    let file = folder.path().join("config.toml");
    let setup = brisk().rest(&store(&server.url(), ""));
    let url = format!("https://{}", webapp.address());
    std::fs::write(&file, text(&setup, &url)).unwrap();
    webapp.login_takes(Duration::from_secs(4));
    let first = Program::serve(&file);
    eventually("the gate holds the login lock", async || {
        server.query::<u32>(&["EXISTS", "{tollgate}:lock:main"]) == 1
    })
    .await;
    drop(first); // SIGKILL during its login
    webapp.login_takes(Duration::ZERO);
    let gates = three(&webapp, &server, "").await;
    known(&gates).await;
    all_have(&gates, "tollgate_session_generation{upstream=\"main\"} 1").await;
    assert!(
        webapp.login_count() <= 2,
        "the login of the killed gate, and one for all others"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_is_one_login_for_all_gates_and_delays_no_request() {
    let webapp = crate::harness::emulator_with(tollgate::emulator::Settings {
        token_lifetime: Duration::from_secs(8),
        ..tollgate::emulator::Settings::for_tests()
    })
    .await;
    let server = RedisServer::start();
    let gates = three(&webapp, &server, "").await;
    let clients = known(&gates).await;
    while webapp.login_count() < 3 {
        for client in &clients {
            assert_eq!(status(client).await, 200);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
