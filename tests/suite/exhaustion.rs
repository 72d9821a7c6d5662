//! The machine runs out of descriptors or disk space.

use std::fs::OpenOptions;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::program::{Program, at_ports, binary, free_port};
use crate::harness::{
    ADMIN, ADMIN_PASSWORD, Client, NO_LIMITS, Setup, emulator, eventually, written,
};

#[tokio::test(flavor = "multi_thread")]
async fn without_free_descriptors_the_gate_waits_without_using_cpu_and_recovers() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default().rest(NO_LIMITS);
    let config = written(folder.path(), &webapp, &setup, |text| text);
    let mut command = Command::new("sh");
    // The hard limit too, because the gate raises the soft one.
    command
        .args(["-c", "ulimit -n 64 && exec \"$0\" serve --config \"$1\""])
        .arg(binary())
        .arg(&config);
    let mut program = Program::start(command);
    let builder = || reqwest::Client::builder().timeout(Duration::from_secs(5));
    let client = Client::of(folder.path(), &program.url(""), builder());
    let client = client.logged_in(ADMIN, ADMIN_PASSWORD).await;
    assert_eq!(client.get("/v1/support").await.status(), 200);

    let idle: Vec<TcpStream> = (0..100)
        .map(|_| TcpStream::connect(("127.0.0.1", program.listener)).unwrap())
        .collect();
    program.wait_for("cannot accept connections");
    let before = program.cpu_ticks();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let burnt = program.cpu_ticks() - before;
    // A hundred ticks are a second; two spinning workers would use up to six seconds.
    assert!(burnt < 60, "{burnt} ticks of CPU in three seconds");
    let count = |text: &str| {
        program
            .lines()
            .iter()
            .filter(|line| line.contains(text))
            .count()
    };
    assert!(
        count("cannot accept connections") <= 2,
        "logged once per worker, not once per attempt"
    );
    assert_eq!(
        client.get("/v1/support").await.status(),
        200,
        "existing connections are still served"
    );

    drop(idle);
    eventually("new clients are served again", async || {
        let fresh = Client::of(folder.path(), &program.url(""), builder());
        let fresh = fresh.with_token(client.token.as_ref().unwrap());
        let sent = fresh.request(reqwest::Method::GET, "/v1/support").send();
        sent.await.is_ok_and(|response| response.status() == 200)
    })
    .await;
    program.wait_for("accepting connections again");
    program.signal("TERM");
    assert!(program.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_its_log_on_a_full_disk_the_gate_serves_requests_and_counts_lost_lines() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    let ports = (free_port(), free_port());
    let (gate, operator) = ports;
    let setup = Setup::default().rest(NO_LIMITS);
    // It cannot log where it listens, so the test chooses the ports.
    let config = written(folder.path(), &webapp, &setup, |text| {
        at_ports(&text, ports)
    });
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let mut child = Command::new(binary())
        .args(["serve", "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(full())
        .stderr(full())
        .spawn()
        .unwrap();
    eventually("the gate listens", async || {
        TcpStream::connect(("127.0.0.1", gate)).is_ok()
    })
    .await;
    let base = format!("https://localhost:{gate}");
    let client = Client::of(folder.path(), &base, reqwest::Client::builder());
    let client = client.logged_in(ADMIN, ADMIN_PASSWORD).await;
    for _ in 0..200 {
        assert_eq!(client.get("/v1/support").await.status(), 200);
    }
    let url = format!("http://127.0.0.1:{operator}/metrics");
    eventually("lost lines are counted", async || {
        let text = reqwest::get(&url).await.unwrap().text().await.unwrap();
        let lost = text
            .lines()
            .find_map(|line| line.strip_prefix("tollgate_log_lines_dropped_total "));
        lost.unwrap().parse::<u64>().unwrap() >= 200
    })
    .await;
    let kill = Command::new("kill").arg(child.id().to_string()).status();
    assert!(kill.unwrap().success());
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    let code = ended.await.unwrap().code();
    assert_eq!(
        code,
        Some(1),
        "the gate drains as usual; the exit code reports lost lines"
    );
}
