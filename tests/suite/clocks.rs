//! The host is suspended, or its clock is set. No expired token is sent to the upstream, and no
//! client is refused.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tollgate::emulator::Settings;

use crate::harness::program::{Program, binary};
use crate::harness::{
    ADMIN, ADMIN_PASSWORD, Client, NO_LIMITS, Setup, emulator, emulator_with, eventually, written,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_host_suspended_past_the_end_of_the_lease_sends_no_expired_token() {
    let webapp = emulator_with(Settings {
        // Longer than a busy machine needs from reading the lease to sending the request.
        token_lifetime: Duration::from_secs(12),
        ..Settings::for_tests()
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let quick = "min_login_interval = \"10ms\"\nlogins_per_hour = 36000";
    let setup = Setup::default().upstream(quick).rest(NO_LIMITS);
    let program = Program::serve(&written(folder.path(), &webapp, &setup, |text| text));
    let client = Client::of(folder.path(), &program.url(""), reqwest::Client::builder())
        .logged_in(ADMIN, ADMIN_PASSWORD)
        .await;
    assert_eq!(client.get("/v1/support").await.status(), 200);

    for _ in 0..2 {
        program.suspend();
        // Requests that arrive while suspended are handled before any timer can fire.
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.get("/v1/support").await.status().as_u16() })
            })
            .collect();
        let before = webapp.login_count();
        tokio::time::sleep(Duration::from_millis(12_500)).await;
        assert_eq!(webapp.login_count(), before, "the process is suspended");
        program.signal("CONT");
        for one in waiting {
            assert_eq!(one.await.unwrap(), 200);
        }
        assert_eq!(client.get("/v1/support").await.status(), 200);
    }
    assert_eq!(webapp.refusals_401(), 0, "no expired token was sent");
}

/// A gate whose wall clock differs from the true one by `offset.txt` in its folder.
fn with_its_own_clock(folder: &Path, config: &Path) -> Program {
    let found = Command::new("sh")
        .args(["-c", "faketime -f +0 sh -c 'echo $LD_PRELOAD'"])
        .output()
        .unwrap();
    let library = String::from_utf8(found.stdout).unwrap();
    assert!(
        library.contains("faketime"),
        "faketime: tests/run.sh installs it"
    );
    let mut command = Command::new(binary());
    command
        .args(["serve", "--config"])
        .arg(config)
        .env("LD_PRELOAD", library.trim())
        .env("FAKETIME_TIMESTAMP_FILE", folder.join("offset.txt"))
        .env("FAKETIME_NO_CACHE", "1")
        // Only the wall clock can be set; the monotonic one cannot.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    Program::start(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_set_while_running_fails_no_request() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    let offset = folder.path().join("offset.txt");
    std::fs::write(&offset, "+0").unwrap();
    let setup = Setup::default()
        .users("token_lifetime = \"30d\"")
        .rest(NO_LIMITS);
    let config = written(folder.path(), &webapp, &setup, |text| text);
    let program = with_its_own_clock(folder.path(), &config);
    let client = Client::of(folder.path(), &program.url(""), reqwest::Client::builder())
        .logged_in(ADMIN, ADMIN_PASSWORD)
        .await;
    let works = async || client.get("/v1/support").await.status() == 200;
    assert!(works().await);
    assert_eq!(webapp.login_count(), 1);

    // Back an hour: the monotonic clock still has the expiry, so nothing happens.
    std::fs::write(&offset, "-1h").unwrap();
    for _ in 0..20 {
        assert!(works().await);
    }
    assert_eq!(webapp.login_count(), 1, "the lease stays valid");

    // Eight days ahead: by the wall clock the lease of seven days has expired.
    std::fs::write(&offset, "+8d").unwrap();
    eventually("a new login", async || {
        works().await && webapp.login_count() == 2
    })
    .await;
    let metrics = async || {
        let url = format!("http://127.0.0.1:{}/metrics", program.operator);
        reqwest::get(url).await.unwrap().text().await.unwrap()
    };
    let text = metrics().await;
    let left = text.lines().find_map(|line| {
        line.strip_prefix("tollgate_session_seconds_to_expiry{upstream=\"main\"} ")
    });
    let left: u64 = left.unwrap().parse().unwrap();
    assert!(
        (604_000..=604_800).contains(&left),
        "by the Webapp's own clock the new token has its seven days: {left}"
    );

    // Correct again: no login follows.
    std::fs::write(&offset, "+0").unwrap();
    for _ in 0..20 {
        assert!(works().await);
    }
    assert_eq!(webapp.login_count(), 2);
}
