//! A gate that is stopped: readiness off first, no new requests, those in flight finished.

use std::time::Duration;

use tollgate::app::ExitOutcome;

use crate::harness::program::Program;
use crate::harness::{
    ADMIN, ADMIN_PASSWORD, Client, Gateway, NO_LIMITS, Setup, emulator, eventually, written,
};

#[tokio::test(flavor = "multi_thread")]
async fn readiness_goes_off_first_and_requests_in_flight_are_finished() {
    let webapp = emulator().await;
    let setup = Setup::default().rest(NO_LIMITS);
    let gateway = Gateway::changed(&webapp, &setup, |text| {
        text.replace("wait = \"0s\"", "wait = \"2s\"")
    })
    .await;
    let h1 = Client::http1(&gateway)
        .logged_in(ADMIN, ADMIN_PASSWORD)
        .await;
    let h2 = gateway.admin().await;
    let ready = gateway.operator_url("/readyz");
    assert_eq!(reqwest::get(&ready).await.unwrap().status(), 200);

    webapp.slow_body(true);
    let mut under_way = Vec::new();
    for client in [&h1, &h2] {
        let mut response = client.get("/v1/media/generated-200000").await;
        response.chunk().await.unwrap();
        under_way.push(response);
    }
    gateway.steering.quit.cancel();
    eventually("readiness off", async || {
        reqwest::get(&ready).await.unwrap().status() == 503
    })
    .await;
    assert_eq!(
        h2.get("/v1/support").await.status(),
        200,
        "still accepting during the wait"
    );
    let url = gateway.url("/v1/support");
    eventually("the listener to close", async || {
        let fresh = reqwest::Client::builder()
            .danger_accept_invalid_certs(true)
            .no_proxy()
            .build()
            .unwrap();
        fresh
            .get(&url)
            .send()
            .await
            .is_err_and(|error| error.is_connect())
    })
    .await;
    webapp.slow_body(false);
    for response in under_way {
        let rest = response.bytes().await.expect("not cut");
        assert!(!rest.is_empty());
    }
    assert_eq!(gateway.stop().await, ExitOutcome::Clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_cuts_off_requests_that_do_not_end() {
    let webapp = emulator().await;
    let setup = Setup::default().rest(NO_LIMITS);
    let gateway = Gateway::changed(&webapp, &setup, |text| {
        text.replace("deadline = \"20s\"", "deadline = \"1s\"")
    })
    .await;
    let client = gateway.admin().await;
    webapp.hang(true);
    let waiting = tokio::spawn(async move {
        let request = client.request(reqwest::Method::GET, "/v1/support");
        request.send().await.is_err()
    });
    eventually("the request to be in flight", async || {
        gateway.metrics.requests_in_flight.get() > 0
    })
    .await;
    assert_eq!(gateway.stop().await, ExitOutcome::Cut);
    assert!(waiting.await.unwrap(), "dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_drains_on_sigterm_survives_sigstop_and_exits_0() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default().rest(NO_LIMITS);
    let file = written(folder.path(), &webapp, &setup, |text| text);
    let mut program = Program::serve(&file);
    let client = Client::of(folder.path(), &program.url(""), reqwest::Client::builder());
    let client = client.logged_in(ADMIN, ADMIN_PASSWORD).await;
    assert_eq!(client.get("/v1/support").await.status(), 200);

    // A suspended host: the token expires meanwhile and must not be sent afterwards.
    webapp.expire_all_tokens();
    program.signal("STOP");
    tokio::time::sleep(Duration::from_secs(2)).await;
    program.signal("CONT");
    assert_eq!(client.get("/v1/support").await.status(), 200);

    program.signal("HUP");
    program.wait_for("nothing changed");
    program.signal("TERM");
    assert_eq!(
        program.wait().code(),
        Some(0),
        "{}",
        program.lines().join("\n")
    );
}

/// Ctrl-C comes from a person at a terminal, `SIGTERM` from a supervisor behind balancers.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_with_nothing_in_flight_ends_at_once_and_sigterm_waits_for_balancers() {
    let webapp = emulator().await;
    for (signal, at_least, at_most) in [("INT", 0, 1500), ("TERM", 2000, 5000)] {
        let folder = tempfile::tempdir().unwrap();
        let file = written(folder.path(), &webapp, &Setup::default(), |text| {
            text.replace("wait = \"0s\"", "wait = \"2s\"")
        });
        let mut program = Program::serve(&file);
        // A client keeps its idle connection open.
        let client = Client::of(folder.path(), &program.url(""), reqwest::Client::builder());
        let client = client.logged_in(ADMIN, ADMIN_PASSWORD).await;
        assert_eq!(client.get("/v1/support").await.status(), 200);
        let begin = std::time::Instant::now();
        program.signal(signal);
        assert_eq!(program.wait().code(), Some(0));
        let elapsed = begin.elapsed().as_millis();
        assert!(
            (at_least..at_most).contains(&elapsed),
            "{signal} took {elapsed} ms"
        );
        let log = program.lines().join("\n");
        assert!(log.contains("draining: not ready from now on"), "{log}");
    }
}
