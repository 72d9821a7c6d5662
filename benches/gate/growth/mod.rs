//! How cost grows: with connections, tokens, routes, limiter keys, cores and upstreams. Whole-gate
//! rows are the CPU time of the gate's process from /proc, divided by the requests
//! answered; the rest is the library's own functions, timed.

mod inside;
mod plot;
mod upstreams;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use plot::Plot;

use crate::page;
use crate::support::flow::Flow;
use crate::support::gate::{ADMIN, Gate, PASSWORD, Setup};
use crate::support::webapp;
use crate::support::wire::{Wire, request, trusting};

const WINDOW: Duration = Duration::from_secs(3);
/// Requests in flight at once, whatever the number of connections.
const AT_ONCE: usize = 32;
const CONNECTIONS: &[usize] = &[10, 100, 1_000, 10_000];

/// One figure of one size.
pub(crate) struct Point {
    size: usize,
    values: Vec<f64>,
}

/// One table and its plot.
struct Axis {
    name: &'static str,
    title: &'static str,
    size: &'static str,
    columns: &'static [&'static str],
    points: fn() -> Vec<Point>,
}

const AXES: &[Axis] = &[
    Axis {
        name: "connections",
        title: "Connections (TLS, HTTP/1.1, 32 requests at once over all of them, one worker)",
        size: "connections",
        columns: &["CPU µs per request", "KiB per connection"],
        points: connections,
    },
    Axis {
        name: "tokens",
        title: "Tokens (look-up in the store, its digest included)",
        size: "tokens",
        columns: &["ns per look-up", "bytes per token"],
        points: inside::tokens,
    },
    Axis {
        name: "routes",
        title: "Routes (search by host, path and method)",
        size: "routes",
        columns: &["ns per search"],
        points: inside::routes,
    },
    Axis {
        name: "keys",
        title: "Limiter keys (one policy by client)",
        size: "keys",
        columns: &["ns per request", "bytes per key"],
        points: inside::keys,
    },
    Axis {
        name: "cores",
        title: "Cores (workers; the load runs on the same cores, so read the CPU time)",
        size: "workers",
        columns: &["CPU µs per request", "requests a second"],
        points: cores,
    },
    Axis {
        name: "upstreams",
        title: "Upstreams (told apart by host, each logged in, all idle but one; one worker)",
        size: "upstreams",
        columns: &[
            "s to the last login",
            "KiB per idle upstream",
            "CPU µs per request",
            "ms to reload one",
        ],
        points: upstreams::upstreams,
    },
    Axis {
        name: "endpoints",
        title: "Upstreams of two endpoints each (as above)",
        size: "upstreams",
        columns: &[
            "s to the last login",
            "KiB per idle upstream",
            "CPU µs per request",
            "ms to reload one",
        ],
        points: upstreams::pairs,
    },
];

pub(crate) fn run(words: &[String]) -> ExitCode {
    let mut target = None;
    let mut named = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--write" => target = Some(PathBuf::from(words.next().expect("a file"))),
            name if AXES.iter().any(|axis| axis.name == name) => named.push(name),
            other => panic!("unknown word {other}"),
        }
    }
    for axis in AXES {
        if named.is_empty() || named.contains(&axis.name) {
            measure(axis, target.as_deref());
        }
    }
    ExitCode::SUCCESS
}

fn measure(axis: &Axis, target: Option<&Path>) {
    let points = (axis.points)();
    let mut text = format!(
        "{}:\n`cargo bench --bench gate -- growth {}`\n\n| {} | {} |\n|{}\n",
        axis.title,
        axis.name,
        axis.size,
        axis.columns.join(" | "),
        " --- |".repeat(1 + axis.columns.len()),
    );
    for point in &points {
        let values: Vec<String> = point.values.iter().map(|value| number(*value)).collect();
        text += &format!("| {} | {} |\n", point.size, values.join(" | "));
    }
    if let Some(page) = target {
        let file = format!("growth-{}.svg", axis.name);
        let plot = Plot {
            title: axis.title,
            across: axis.size,
            up: axis.columns[0],
        };
        let drawn = plot.draw(
            &points
                .iter()
                .map(|p| (p.size as f64, p.values[0]))
                .collect::<Vec<_>>(),
        );
        std::fs::write(page.with_file_name(&file), drawn).unwrap();
        text += &format!("\n![{} by {}]({file})\n", axis.columns[0], axis.size);
    }
    page::put(target, &format!("growth {}", axis.name), text.trim_end());
}

fn number(value: f64) -> String {
    match value {
        _ if value.is_nan() => "-".to_owned(),
        _ if value < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn connections() -> Vec<Point> {
    CONNECTIONS
        .iter()
        .map(|count| {
            let figures = whole(*count, 1);
            Point {
                size: *count,
                values: vec![figures.cpu, figures.memory],
            }
        })
        .collect()
}

fn cores() -> Vec<Point> {
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    (1..=most.min(8))
        .map(|workers| {
            let figures = whole(256, workers);
            Point {
                size: workers,
                values: vec![figures.cpu, figures.rate],
            }
        })
        .collect()
}

struct Figures {
    /// µs per request.
    cpu: f64,
    /// Requests a second.
    rate: f64,
    /// KiB per connection.
    memory: f64,
}

fn whole(connections: usize, workers: usize) -> Figures {
    let mut gate = Gate::start(&Setup {
        upstream: format!(
            "url = \"http://{}\"\nidle_timeout = \"300s\"",
            webapp::start(Duration::ZERO)
        ),
        listener: "max_connections = 20000\nidle_timeout = \"300s\"".to_owned(),
        tls: true,
        workers,
        ..Setup::default()
    });
    let client = trusting(gate.folder(), &["http/1.1"]);
    let token = Wire::tls(gate.port, &client).log_in(ADMIN, PASSWORD);
    let request = request("GET", "/v1/groups", &token, "");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let before = resident(gate.pid());
    let figures = runtime.block_on(async {
        let flows = open(gate.port, &client, connections, &request).await;
        let memory = (resident(gate.pid()) as f64 - before as f64) / connections as f64;
        let (cpu, begin) = (cpu_seconds(gate.pid()), Instant::now());
        let count = drive(&flows, &request, WINDOW).await;
        Figures {
            cpu: (cpu_seconds(gate.pid()) - cpu) * 1e6 / count as f64,
            rate: count as f64 / begin.elapsed().as_secs_f64(),
            memory,
        }
    });
    gate.stop();
    figures
}

/// Connections that have each carried a request, divided among the senders.
async fn open(
    port: u16,
    client: &Arc<rustls::ClientConfig>,
    count: usize,
    request: &[u8],
) -> Vec<RefCell<Vec<Flow>>> {
    let senders = AT_ONCE.min(count);
    let one = async |sender: usize| {
        let mut flows = Vec::new();
        for index in (sender..count).step_by(senders) {
            let mut flow = Flow::open(port, client, index).await;
            assert_eq!(flow.ask(request).await.unwrap(), 200);
            flows.push(flow);
        }
        RefCell::new(flows)
    };
    futures_util::future::join_all((0..senders).map(one)).await
}

/// Each sender uses its connections in turn. Returns the number of responses.
#[expect(
    clippy::await_holding_refcell_ref,
    reason = "each cell belongs to one sender, on one thread"
)]
async fn drive(flows: &[RefCell<Vec<Flow>>], request: &[u8], time: Duration) -> u64 {
    let end = Instant::now() + time;
    let one = async |mine: &RefCell<Vec<Flow>>| {
        let mut mine = mine.borrow_mut();
        let mut count = 0;
        for index in (0..mine.len()).cycle() {
            if Instant::now() > end {
                break;
            }
            assert_eq!(mine[index].ask(request).await.unwrap(), 200);
            count += 1;
        }
        count
    };
    futures_util::future::join_all(flows.iter().map(one))
        .await
        .into_iter()
        .sum()
}

/// Linux counts a process's CPU time in hundredths of a second.
const TICKS: f64 = 100.0;

/// User and system time of a process so far.
fn cpu_seconds(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = text.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / TICKS
}

/// KiB.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}
