//! Growth by upstreams: a gate whose upstreams differ by the host that clients call, all of them idle
//! but one. Each logs in at one server, over plain HTTP.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::{Point, WINDOW, cpu_seconds, resident};
use crate::support::gate::{ADMIN, Gate, PASSWORD, Setup};
use crate::support::webapp;
use crate::support::wire::{Wire, request};

const UPSTREAMS: &[usize] = &[1, 10, 100, 1_000];
/// jemalloc gives back what a start has used and no longer needs within this time.
const REST: Duration = Duration::from_secs(12);
const POLL: Duration = Duration::from_millis(5);
/// The value that is changed by a reload, of the last upstream.
const CONCURRENCY: (&str, &str) = ("concurrency = 41", "concurrency = 42");

pub(super) fn upstreams() -> Vec<Point> {
    points(1)
}

/// The same with two endpoints each.
pub(super) fn pairs() -> Vec<Point> {
    points(2)
}

fn points(endpoints: usize) -> Vec<Point> {
    let mut one = 0;
    let point = |size: usize| {
        let begin = Instant::now();
        let mut gate = Gate::start(&setup(size, endpoints));
        until(|| gate.counted("tollgate_session_logins_total") >= size as u64);
        let start = begin.elapsed();
        let mut wire = Wire::plain(gate.port);
        let token = wire.log_in(ADMIN, PASSWORD);
        let request = request("GET", "/v1/groups", &token, "");
        assert_eq!(wire.ask(&request).status, 200);
        std::thread::sleep(REST);
        let memory = resident(gate.pid());
        if size == 1 {
            one = memory;
        }
        let each = match size {
            1 => f64::NAN,
            _ => memory.saturating_sub(one) as f64 / (size - 1) as f64,
        };
        let cpu = cost(&gate, &mut wire, &request);
        let reload = reload(&gate);
        gate.stop();
        Point {
            size,
            values: vec![start.as_secs_f64(), each, cpu, reload.as_secs_f64() * 1e3],
        }
    };
    UPSTREAMS.iter().copied().map(point).collect()
}

/// The first upstream is called at the host `localhost`, the others at their own.
fn setup(size: usize, endpoints: usize) -> Setup {
    let servers = (0..endpoints).map(|_| format!("\"http://{}\"", webapp::start(Duration::ZERO)));
    let servers: Vec<String> = servers.collect();
    let url = match endpoints {
        1 => format!("url = {}", servers[0]),
        _ => format!("endpoints = [{}]", servers.join(", ")),
    };
    let mut more = String::new();
    for index in 1..size {
        let concurrency = match index == size - 1 {
            true => CONCURRENCY.0,
            false => "concurrency = 40",
        };
        // Another `Host` is another service: its logins are counted apart.
        let _ = write!(
            more,
            "[upstream.u{index}]\n{url}\nhost = \"u{index}.internal\"\nhosts = [\"u{index}.gate.internal\"]\n\
             login = {{ username = \"admin\", password = {{ file = \"webapp-password\" }} }}\n{concurrency}\n"
        );
    }
    Setup {
        upstream: format!("{url}\nhosts = [\"localhost\"]"),
        more,
        ..Setup::default()
    }
}

/// CPU µs of the gate for a request to the first upstream.
fn cost(gate: &Gate, wire: &mut Wire, request: &[u8]) -> f64 {
    let (cpu, begin) = (cpu_seconds(gate.pid()), Instant::now());
    let mut count = 0;
    while begin.elapsed() < WINDOW {
        assert_eq!(wire.ask(request).status, 200);
        count += 1;
    }
    (cpu_seconds(gate.pid()) - cpu) * 1e6 / f64::from(count)
}

/// How long a reload takes that changes the last upstream; zero with one.
fn reload(gate: &Gate) -> Duration {
    let log = gate.folder().join("log");
    let text = || std::fs::read_to_string(&log).unwrap();
    let config = std::fs::read_to_string(gate.folder().join("config.toml")).unwrap();
    if !config.contains(CONCURRENCY.0) {
        return Duration::ZERO;
    }
    let begin = Instant::now();
    gate.reload_after_change(CONCURRENCY.0, CONCURRENCY.1);
    until(|| text().contains("config changed"));
    begin.elapsed()
}

fn until(is_done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_done() {
        assert!(begin.elapsed() < Duration::from_secs(300), "too late");
        std::thread::sleep(POLL);
    }
}
