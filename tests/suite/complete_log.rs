//! The log is complete when the exit code is 0: each accepted request has its access line,
//! however the program ended. If lines are lost, the program prints how many.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tollgate::emulator::certificates;

use crate::harness::login_upstream::{KEY, LoginUpstream, field_case};
use crate::harness::program::{at_ports, binary, free_port};
use crate::harness::{WEBAPP_PASSWORD, eventually, secret};

/// Requests with long lines: three times the capacity of a pipe.
const MANY: usize = 48;

/// A running gate whose standard output is a file, or what the test sets.
struct LoggingGate {
    child: Child,
    folder: TempDir,
    listener: u16,
    operator: u16,
}

impl LoggingGate {
    /// With its log in a file.
    fn start(upstream: &LoginUpstream, deadline: &str) -> Self {
        let to_file = |folder: &TempDir| File::create(log_of(folder)).unwrap().into();
        Self::with_output(upstream, deadline, to_file, Stdio::piped())
    }

    fn with_output(
        upstream: &LoginUpstream,
        deadline: &str,
        output: impl FnOnce(&TempDir) -> Stdio,
        errors: Stdio,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        certificates::make(&folder.path().join("certs")).unwrap();
        secret(&folder.path().join("webapp-password"), WEBAPP_PASSWORD);
        let (listener, operator) = (free_port(), free_port());
        let text = at_ports(&field_case(&upstream.url(), ""), (listener, operator));
        let file = folder.path().join("config.toml");
        let deadline = format!("deadline = \"{deadline}\"");
        std::fs::write(&file, text.replace("deadline = \"20s\"", &deadline)).unwrap();
        let child = Command::new(binary())
            .args(["serve", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(output(&folder))
            .stderr(errors)
            .spawn()
            .unwrap();
        Self {
            child,
            folder,
            listener,
            operator,
        }
    }

    async fn is_ready(&self) {
        let url = format!("http://127.0.0.1:{}/readyz", self.operator);
        eventually("the gate to be ready", async || {
            let response = reqwest::get(&url).await;
            response.is_ok_and(|response| response.status() == 200)
        })
        .await;
    }

    async fn has_in_flight(&self, wanted: usize) {
        let url = format!("http://127.0.0.1:{}/metrics", self.operator);
        let line = format!("tollgate_requests_in_flight {wanted}");
        eventually("the requests to be in flight", async || {
            let text = reqwest::get(&url).await.unwrap().text().await.unwrap();
            text.lines().any(|found| found == line)
        })
        .await;
    }

    /// Starts `count` requests, by HTTP/1 and HTTP/2 alternately, each on its own connection.
    fn send_requests(&self, count: usize) {
        self.ask_for(count, "");
    }

    /// The same with lines so long that few fit into a pipe.
    fn ask_at_length(&self, count: usize) {
        self.ask_for(count, &format!("/{}", "x".repeat(4000)));
    }

    fn ask_for(&self, count: usize, path: &str) {
        for nth in 0..count {
            let client = reqwest::Client::builder()
                .no_proxy()
                .danger_accept_invalid_certs(true);
            let client = match nth % 2 {
                0 => client.http1_only(),
                _ => client.http2_prior_knowledge(),
            };
            let url = format!("https://localhost:{}/ask/{nth}{path}", self.listener);
            let request = client.build().unwrap().get(url);
            let request = request.header("authorization", format!("Apikey {KEY}"));
            tokio::spawn(async move {
                let _ = request.send().await;
            });
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(status.unwrap().success());
    }

    fn exit_code(&mut self) -> i32 {
        let begin = Instant::now();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.code().expect("not killed"),
                None if begin.elapsed() > Duration::from_secs(40) => {
                    panic!("the program does not end")
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut text).unwrap();
        text
    }

    fn log(&self) -> Vec<Value> {
        parsed(&std::fs::read_to_string(log_of(&self.folder)).unwrap())
    }
}

impl Drop for LoggingGate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log_of(folder: &TempDir) -> PathBuf {
    folder.path().join("log")
}

/// Panics at an incomplete line.
fn parsed(text: &str) -> Vec<Value> {
    assert!(text.ends_with('\n'), "the last line is incomplete");
    // The line with the first admin's password is not JSON.
    let lines = text.lines().filter(|line| !line.starts_with("  admin "));
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn access_lines(log: &[Value]) -> Vec<&Value> {
    let access = |line: &&Value| line["target"] == "tollgate::access";
    log.iter().filter(access).collect()
}

fn logged_request_count(log: &[Value]) -> u64 {
    let stopped = log.iter().find(|line| line["message"] == "stopped");
    let stopped = stopped.unwrap_or_else(|| panic!("no last line in {log:#?}"));
    stopped["requests"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_end_during_the_drain_have_their_lines_in_each_of_ten_runs() {
    let upstream = LoginUpstream::start(|_| 200).await;
    upstream.set_delay(Duration::from_millis(800));
    for round in 0..10 {
        let mut gate = LoggingGate::start(&upstream, "20s");
        gate.is_ready().await;
        gate.send_requests(8);
        gate.has_in_flight(8).await;
        gate.signal("TERM");
        assert_eq!(gate.exit_code(), 0, "{}", gate.stderr());
        let log = gate.log();
        let access = access_lines(&log);
        assert_eq!(access.len(), 8, "round {round}");
        assert!(access.iter().all(|line| line["status"] == 200));
        assert_eq!(logged_request_count(&log), 8, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_cut_by_the_deadline_have_their_lines_and_are_counted() {
    let upstream = LoginUpstream::start(|_| 200).await;
    upstream.set_delay(Duration::from_secs(60));
    for round in 0..5 {
        let mut gate = LoggingGate::start(&upstream, "200ms");
        gate.is_ready().await;
        gate.send_requests(8);
        gate.has_in_flight(8).await;
        gate.signal("TERM");
        assert_eq!(gate.exit_code(), 1, "{}", gate.stderr());
        let log = gate.log();
        let access = access_lines(&log);
        assert_eq!(access.len(), 8, "round {round}");
        assert!(access.iter().all(|line| line["outcome"] != "complete"));
        assert_eq!(logged_request_count(&log), 8, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_second_signal_the_lines_are_complete() {
    let upstream = LoginUpstream::start(|_| 200).await;
    upstream.set_delay(Duration::from_secs(60));
    for second in ["TERM", "INT"] {
        let mut gate = LoggingGate::start(&upstream, "20s");
        gate.is_ready().await;
        gate.send_requests(8);
        gate.has_in_flight(8).await;
        gate.signal("TERM");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let begin = Instant::now();
        gate.signal(second);
        assert_eq!(gate.exit_code(), 1);
        assert!(begin.elapsed() < Duration::from_secs(3), "at once");
        let log = gate.log();
        assert_eq!(access_lines(&log).len(), 8);
        assert_eq!(logged_request_count(&log), 8);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_gets_every_line() {
    let upstream = LoginUpstream::start(|_| 200).await;
    upstream.set_delay(Duration::from_secs(2));
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut gate = LoggingGate::with_output(&upstream, "20s", |_| writer.into(), Stdio::piped());
    gate.is_ready().await;
    gate.ask_at_length(MANY);
    gate.has_in_flight(MANY).await;
    gate.signal("TERM");
    let read = tokio::task::spawn_blocking(move || {
        // The gate has finished its work by now; some of the lines are in the pipe.
        std::thread::sleep(Duration::from_secs(3));
        let mut text = Vec::new();
        let mut piece = [0; 16 * 1024];
        loop {
            match reader.read(&mut piece).unwrap() {
                0 => return String::from_utf8(text).unwrap(),
                count => text.extend_from_slice(&piece[..count]),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert_eq!(gate.exit_code(), 0, "{}", gate.stderr());
    let log = parsed(&read.await.unwrap());
    assert_eq!(access_lines(&log).len(), MANY);
    assert_eq!(logged_request_count(&log), MANY as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_reader_delays_the_end_briefly_and_lost_lines_are_counted() {
    let upstream = LoginUpstream::start(|_| 200).await;
    upstream.set_delay(Duration::from_secs(2));
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut gate = LoggingGate::with_output(&upstream, "20s", |_| writer.into(), Stdio::piped());
    gate.is_ready().await;
    gate.ask_at_length(MANY);
    gate.has_in_flight(MANY).await;
    gate.signal("TERM");
    let begin = Instant::now();
    assert_eq!(gate.exit_code(), 1, "lines were lost");
    assert!(begin.elapsed() < Duration::from_secs(15));
    let stderr = gate.stderr();
    let lost = stderr.split(' ').next().unwrap().parse::<usize>();
    let lost = lost.unwrap_or_else(|_| panic!("no number in {stderr:?}"));
    assert!(stderr.contains("lines of the log were lost"), "{stderr}");
    // The content of the pipe, up to the last complete line.
    let mut left = String::new();
    reader.read_to_string(&mut left).unwrap();
    let whole = left.matches('\n').count();
    // There are also lines of the start and the end.
    let all = MANY..MANY + 30;
    assert!(
        lost > 0 && whole < MANY && all.contains(&(whole + lost)),
        "{whole} lines in the pipe, {lost} lost"
    );
}

/// Standard output and standard error are one pipe, as in `2>&1 | reader`.
#[tokio::test(flavor = "multi_thread")]
async fn the_program_ends_although_its_last_line_is_not_read() {
    let upstream = LoginUpstream::start(|_| 200).await;
    upstream.set_delay(Duration::from_secs(2));
    let (_reader, writer) = std::io::pipe().unwrap();
    let errors = writer.try_clone().unwrap().into();
    let mut gate = LoggingGate::with_output(&upstream, "20s", |_| writer.into(), errors);
    gate.is_ready().await;
    gate.ask_at_length(MANY);
    gate.has_in_flight(MANY).await;
    gate.signal("TERM");
    let begin = Instant::now();
    assert_eq!(gate.exit_code(), 1);
    assert!(begin.elapsed() < Duration::from_secs(15));
}
