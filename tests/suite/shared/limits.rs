//! Limits that all gates share: together they admit as much as one gate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{gate, status, store};
use crate::harness::redis::RedisServer;
use crate::harness::{Client, Gateway, Setup, emulator, eventually};

async fn limited(server: &RedisServer, rate: u32, more: &str) -> (Vec<Gateway>, Vec<Client>) {
    let webapp = emulator().await;
    let limits = format!(
        "[[limit]]\nname = \"all\"\nkey = \"client\"\nrate = \"{rate}/s\"\nburst = {}\n{more}\n\
         [[limit]]\nname = \"nodes\"\nkey = \"class\"\nrate = \"100000/s\"\nburst = 100000\n",
        (rate / 10).max(1)
    );
    let mut gates = Vec::new();
    for _ in 0..3 {
        let setup = Setup::default().rest(&limits);
        gates.push(gate(&webapp, setup, &store(&server.url(), "")).await);
    }
    let admin = gates[0].admin().await;
    let token = admin.token.unwrap();
    let clients = gates
        .iter()
        .map(|gate| gate.client().with_token(&token))
        .collect();
    // The emulator lives as long as the test's runtime.
    std::mem::forget(webapp);
    (gates, clients)
}

/// The number of requests that three gates admit in `span`, under a load above the rate.
async fn let_through(clients: &[Client], span: Duration) -> u64 {
    let passed = Arc::new(AtomicU64::new(0));
    let end = Instant::now() + span;
    let mut running = Vec::new();
    for client in clients.iter().cycle().take(9) {
        let (client, passed) = (client.clone(), Arc::clone(&passed));
        running.push(tokio::spawn(async move {
            while Instant::now() < end {
                match status(&client).await {
                    200 => {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                    429 => tokio::time::sleep(Duration::from_millis(15)).await,
                    other => panic!("{other}"),
                }
            }
        }));
    }
    for one in running {
        one.await.unwrap();
    }
    passed.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_gates_let_through_the_rate_within_five_percent() {
    for rate in [20_u32, 50] {
        let server = RedisServer::start();
        let (_gates, clients) = limited(&server, rate, "").await;
        let burst = u64::from((rate / 10).max(1));
        let begin = Instant::now();
        let passed = let_through(&clients, Duration::from_secs(8)).await;
        let span = begin.elapsed().as_secs_f64().min(8.2);
        let right = f64::from(rate) * 8.0;
        let steady = passed as f64 - burst as f64;
        let error = (steady - right) / right * 100.0;
        println!("limit {rate}/s over three gates: {passed} in {span:.2} s, error {error:+.1} %");
        assert!(error.abs() <= 5.0, "{error:+.1} % at {rate}/s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_refuses_nothing_and_without_the_store_each_gate_has_a_share() {
    let mut server = RedisServer::start();
    let (gates, clients) = limited(&server, 30, "dry_run = true").await;
    assert!(let_through(&clients, Duration::from_secs(2)).await > 60);
    let text = gates[0].metrics.text();
    assert!(text.contains("tollgate_limit_exceeded_total{outcome=\"dry_run\"}"));
    drop((gates, clients));
    let (gates, clients) = limited(&server, 30, "").await;
    server.kill();
    for gate in &gates {
        eventually("the gate notices the fault", async || {
            gate.metrics.text().contains("tollgate_store_up 0")
        })
        .await;
    }
    let one = let_through(&clients[..1], Duration::from_secs(4)).await;
    println!("store down: one of three gates admitted {one} of 30/s in 4 s");
    assert!(
        (20..=70).contains(&one),
        "a third of the rate, not {one} in 4 s"
    );
}
