//! A client that guesses passwords is slowed down, and no other client is.

use std::time::Duration;

use tokio::time::{Instant, interval, sleep};
use tollgate::emulator::Emulator;

use crate::harness::{ADMIN, ADMIN_PASSWORD, Client, Gateway, Setup, WEBAPP_PASSWORD, emulator};

const WRONG: &str = "Wrong-Passw0rd!";

/// A client with its own source address.
fn from(gateway: &Gateway, address: [u8; 4]) -> Client {
    let builder = reqwest::Client::builder().local_address(std::net::IpAddr::from(address));
    Client::built(gateway, builder)
}

async fn status(client: &Client, name: &str, password: &str) -> u16 {
    client.login(name, password).await.status().as_u16()
}

/// Sends wrong passwords from 127.0.0.1, `rate` a second, and right ones from 127.0.0.2 every
/// 100 ms. Returns how many of the right ones succeeded, and their number.
async fn flooded(gateway: &Gateway, rate: u64, password: &'static str) -> (usize, usize) {
    let attacker = from(gateway, [127, 0, 0, 1]);
    let flood = tokio::spawn(async move {
        let mut tick = interval(Duration::from_micros(1_000_000 / rate));
        loop {
            tick.tick().await;
            let attacker = attacker.clone();
            tokio::spawn(async move { status(&attacker, ADMIN, WRONG).await });
        }
    });
    sleep(Duration::from_millis(500)).await;
    let proven_peer = from(gateway, [127, 0, 0, 2]);
    let (mut passed, mut all) = (0, 0);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(4) {
        all += 1;
        passed += usize::from(status(&proven_peer, ADMIN, password).await == 200);
        sleep(Duration::from_millis(100)).await;
    }
    flood.abort();
    (passed, all)
}

/// Ten times the shipped rates, so that a few seconds are enough.
const SCALED: &str =
    "[limits]\nlogins_by_peer = \"10/s burst 20\"\nlogins_by_name = \"5/s burst 10\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_from_one_address_lock_out_no_other_address() {
    let webapp = emulator().await;
    for rate in [20, 100] {
        let gateway = Gateway::with(&webapp, Setup::default().rest(SCALED)).await;
        let (passed, all) = flooded(&gateway, rate, ADMIN_PASSWORD).await;
        assert!(all >= 2 && passed == all, "{passed} of {all} at {rate}/s");
    }
}

/// The same with `directory = "webapp"`, where unproven addresses must not use up the profile's
/// limit on the users node either, which all clients share.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_relayed_logins_locks_out_no_other_address() {
    let webapp: Emulator = emulator().await;
    let setup = Setup::default()
        .users("directory = \"webapp\"")
        .rest(SCALED);
    let gateway = Gateway::with(&webapp, setup).await;
    let (passed, all) = flooded(&gateway, 100, WEBAPP_PASSWORD).await;
    assert!(all >= 2 && passed == all, "{passed} of {all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_many_addresses_does_not_lock_out_proven_addresses() {
    let webapp = emulator().await;
    let rest = "[limits]\nlogins_by_peer = \"1/m burst 6\"\nlogins_by_name = \"1/m burst 2\"\n";
    let gateway = Gateway::with(&webapp, Setup::default().rest(rest)).await;
    let proven_peer = from(&gateway, [127, 0, 0, 2]);
    assert_eq!(status(&proven_peer, ADMIN, ADMIN_PASSWORD).await, 200);
    let mut seen = Vec::new();
    for last in 0..30 {
        let attacker = from(&gateway, [127, 0, 1, last]);
        seen.push(status(&attacker, ADMIN, WRONG).await);
    }
    assert_eq!(seen.iter().filter(|status| **status == 401).count(), 20);
    assert_eq!(seen.last(), Some(&429), "all unproven addresses together");
    for _ in 0..5 {
        assert_eq!(status(&proven_peer, ADMIN, ADMIN_PASSWORD).await, 200);
    }
    let attacker = from(&gateway, [127, 0, 2, 1]);
    assert_eq!(
        status(&attacker, "someone", WRONG).await,
        401,
        "another name has its own bucket"
    );
}
