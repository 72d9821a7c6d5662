//! Instructions per request, and per token at a start, of the gate's own process, as
//! callgrind counts them: the same on a busy machine as on a quiet one. Client and Webapp
//! run in this process, so they are not in the figure, and they pause before each message,
//! so that the gate always sleeps in between and each request takes the same path.

mod profile;
mod start;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::support::gate::{ADMIN, Gate, PASSWORD, Setup};
use crate::support::streams;
use crate::support::webapp;
use crate::support::wire::{Wire, request, trusting};

use Figure::{Request, Start};

/// Requests whose cost is the difference between two runs: start and end cancel out.
const REQUESTS: usize = 300;
const WARM: usize = 50;
const PAUSE: Duration = Duration::from_millis(3);
const MOST_GROWTH: f64 = 0.03;
/// Counts differ by up to 4 % with the timing of wake-ups, and by another 1 % from machine to machine;
/// real growth is in each of them. So the middle one is recorded, and the lowest one compared with it.
const COUNTS: usize = 5;
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

#[derive(Clone, Copy, PartialEq)]
enum Over {
    Plain,
    Tls,
    Http2,
}

pub(crate) struct Case {
    name: &'static str,
    over: Over,
    method: &'static str,
    path: &'static str,
    body: usize,
    is_known: bool,
    /// The upstream has two endpoints.
    has_endpoints: bool,
}

const fn case(
    name: &'static str,
    over: Over,
    line: (&'static str, &'static str),
    body: usize,
) -> Case {
    Case {
        name,
        over,
        method: line.0,
        path: line.1,
        body,
        is_known: true,
        has_endpoints: false,
    }
}

const GET: (&str, &str) = ("GET", "/v1/groups");
const DENY: Case = Case {
    is_known: false,
    ..case("deny", Over::Plain, GET, 0)
};

/// One case to be counted.
enum Figure {
    Request(Case),
    Start,
}

/// Compared with the record by default. Those without TLS are free of the cipher's
/// cost, which depends on the processor.
const GUARDED: &[Figure] = &[
    Request(case("h1", Over::Plain, GET, 0)),
    Request(DENY),
    Request(case("h2_tls", Over::Http2, GET, 0)),
    Start,
];

const POST: (&str, &str) = ("POST", "/v1/messages");
const GET_MEDIA: (&str, &str) = ("GET", "/v1/media/1");
const POST_MEDIA: (&str, &str) = ("POST", "/v1/media");

/// Counted when named.
const MORE: &[Figure] = &[
    Request(Case {
        has_endpoints: true,
        ..case("h1_endpoints", Over::Plain, GET, 0)
    }),
    Request(case("post1k", Over::Plain, POST, 1024)),
    Request(case("h1_tls", Over::Tls, GET, 0)),
    Request(case("get64k_tls", Over::Tls, GET_MEDIA, 0)),
    Request(case("post1k_tls", Over::Tls, POST, 1024)),
    Request(case("post64k_tls", Over::Tls, POST_MEDIA, 65_536)),
    Request(Case {
        is_known: false,
        ..case("deny_tls", Over::Tls, GET, 0)
    }),
    Request(case("h2_get64k_tls", Over::Http2, GET_MEDIA, 0)),
];

impl Figure {
    fn name(&self) -> &'static str {
        match self {
            Request(case) => case.name,
            Start => start::NAME,
        }
    }

    /// The unit: a request or a token.
    fn unit(&self) -> &'static str {
        match self {
            Request(_) => "request",
            Start => "token",
        }
    }

    fn count(&self, counter: &Counter) -> u64 {
        match self {
            Request(case) => counter.per_request(case),
            Start => start::per_token(counter),
        }
    }
}

pub(crate) fn run(words: &[String]) -> ExitCode {
    let mut binary = PathBuf::from(env!("CARGO_BIN_EXE_tollgate"));
    let mut profile = None;
    let mut records = false;
    let mut named = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--record" => records = true,
            "--binary" => binary = std::path::absolute(words.next().expect("a path")).unwrap(),
            "--profile" => {
                profile = Some(std::path::absolute(words.next().expect("a folder")).unwrap())
            }
            name => named.push(name),
        }
    }
    let known = || GUARDED.iter().chain(MORE);
    let is_known = |name: &str| known().any(|figure| figure.name() == name);
    if let Some(strange) = named.iter().find(|name| !is_known(name)) {
        let names: Vec<&str> = known().map(Figure::name).collect();
        println!("no figure {strange}; there are: {}", names.join(" "));
        return ExitCode::FAILURE;
    }
    let counter = Counter { binary, profile };
    if named.is_empty() {
        return guard(&counter, records);
    }
    for figure in known().filter(|figure| named.contains(&figure.name())) {
        let (name, unit) = (figure.name(), figure.unit());
        let now = figure.count(&counter);
        println!("{name:14} {now:>9} instructions per {unit}");
    }
    ExitCode::SUCCESS
}

fn guard(counter: &Counter, records: bool) -> ExitCode {
    let here = circumstances(&counter.binary);
    let before = std::fs::read_to_string(RECORD).unwrap_or_default();
    let mut text = format!(
        "# Instructions per request, and per token at a start, guarded by tests/run.sh;\n\
         # benches/README.md says how and why to record new figures. Counted with:\n# {here}\n"
    );
    let mut grown = Vec::new();
    for figure in GUARDED {
        let (name, unit) = (figure.name(), figure.unit());
        let then = recorded(&before, name);
        let now = match (records, then) {
            (false, Some(then)) => counter.lowest(figure, then),
            _ => counter.middle(figure),
        };
        let _ = writeln!(text, "{name} {now}");
        let Some(then) = then else {
            println!("{name:14} {now:>9} instructions per {unit}, none recorded");
            grown.push(name); // from nothing, so that it is recorded
            continue;
        };
        let growth = now as f64 / then as f64 - 1.0;
        println!(
            "{name:14} {now:>9} instructions per {unit}, recorded {then}: {:+.1} %",
            growth * 100.0
        );
        if growth > MOST_GROWTH {
            grown.push(name);
        }
    }
    if records {
        std::fs::write(RECORD, text).unwrap();
        println!("recorded in {RECORD}");
        return ExitCode::SUCCESS;
    }
    verdict(&before, &here, &grown)
}

fn verdict(before: &str, here: &str, grown: &[&str]) -> ExitCode {
    let same = before.contains(here);
    if !same {
        println!(
            "The record was made elsewhere, so figures may differ by that alone. Here:\n  {here}"
        );
    }
    if grown.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!(
        "\nOver {:.0} % more instructions than recorded: {}.\n\
         To see where: cargo bench --bench gate -- guard --profile FOLDER FIGURE\n\
         on this tree and on the one before. If the cost buys something that users want, or the\n\
         compiler or a dependency changed, record it and say in the commit what was bought:\n  \
         cargo bench --bench gate -- guard --record",
        MOST_GROWTH * 100.0,
        grown.join(", ")
    );
    ExitCode::FAILURE
}

fn recorded(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(line.trim().parse().unwrap())
}

/// The machine and compiler, on which a figure depends besides the code.
fn circumstances(binary: &Path) -> String {
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    #[cfg(target_arch = "x86_64")]
    let vectors = if std::is_x86_feature_detected!("avx2") {
        "avx2"
    } else {
        "no avx2"
    };
    #[cfg(not(target_arch = "x86_64"))]
    let vectors = "any";
    let profile = binary.parent().unwrap().file_name().unwrap();
    format!(
        "{}, {} {vectors}, {}, profile {}",
        version("rustc"),
        std::env::consts::ARCH,
        version("valgrind"),
        profile.to_string_lossy()
    )
}

struct Counter {
    binary: PathBuf,
    /// The folder that keeps callgrind's profiles.
    profile: Option<PathBuf>,
}

impl Counter {
    /// The lowest of some counts; stops at the first that has not grown too much.
    fn lowest(&self, figure: &Figure, then: u64) -> u64 {
        let most = then as f64 * (1.0 + MOST_GROWTH);
        let mut lowest = u64::MAX;
        for _ in 0..COUNTS {
            lowest = lowest.min(figure.count(self));
            if lowest as f64 <= most {
                break;
            }
        }
        lowest
    }

    /// The middle one of the counts.
    fn middle(&self, figure: &Figure) -> u64 {
        let mut counts: Vec<u64> = (0..COUNTS).map(|_| figure.count(self)).collect();
        counts.sort_unstable();
        counts[COUNTS / 2]
    }

    fn per_request(&self, case: &Case) -> u64 {
        self.per_one(case.name, REQUESTS, |run, requests| {
            let setup = Setup {
                tls: case.over != Over::Plain,
                ..Setup::default()
            };
            let endpoints = if case.has_endpoints { 2 } else { 1 };
            self.count(run, endpoints, setup, |gate| load(case, gate, requests))
        })
    }

    /// The count for twice the number less the count for the number, divided by the number.
    fn per_one(&self, name: &str, many: usize, count: impl Fn(&str, usize) -> u64) -> u64 {
        let run = |many| format!("{name}-{many}");
        let (short, long) = (count(&run(many), many), count(&run(2 * many), 2 * many));
        if let Some(folder) = &self.profile {
            let file = |many| profile_in(folder, &run(many));
            profile::print_difference(&file(many), &file(2 * many), many);
        }
        let more = long.checked_sub(short).expect("more of them cost more");
        more / many as u64
    }

    /// The count of one run.
    fn count(
        &self,
        run: &str,
        endpoints: usize,
        setup: Setup,
        meanwhile: impl FnOnce(&Gate),
    ) -> u64 {
        let servers = (0..endpoints).map(|_| format!("\"http://{}\"", webapp::start(PAUSE)));
        let servers: Vec<String> = servers.collect();
        let upstream = match endpoints {
            1 => format!("url = {}", servers[0]),
            _ => format!("endpoints = [{}]", servers.join(", ")),
        };
        let folder = tempfile::tempdir().unwrap();
        let kept = self.profile.as_deref().unwrap_or(folder.path());
        std::fs::create_dir_all(kept).unwrap();
        let profile = profile_in(kept, run);
        let report = folder.path().join("report");
        let wrapper = [
            "valgrind".to_owned(),
            "--tool=callgrind".to_owned(),
            format!("--callgrind-out-file={}", profile.display()),
            format!("--log-file={}", report.display()),
        ];
        let mut gate = Gate::start(&Setup {
            upstream,
            wrapper: wrapper.into(),
            binary: self.binary.clone(),
            ..setup
        });
        meanwhile(&gate);
        gate.stop();
        let report = std::fs::read_to_string(report).unwrap();
        let (_, count) = report.split_once("Collected : ").expect(&report);
        count.lines().next().unwrap().trim().parse().unwrap()
    }
}

fn profile_in(folder: &Path, run: &str) -> PathBuf {
    folder.join(format!("{run}.callgrind"))
}

fn load(case: &Case, gate: &Gate, requests: usize) {
    let open = || match case.over {
        Over::Plain => Wire::plain(gate.port),
        _ => Wire::tls(gate.port, &trusting(gate.folder(), &["http/1.1"])),
    };
    let mut wire = open();
    let token = match wire.log_in(ADMIN, PASSWORD) {
        token if case.is_known => token,
        token => "0".repeat(token.len()),
    };
    let expected = if case.is_known { 200 } else { 401 };
    let body = "x".repeat(case.body);
    if case.over == Over::Http2 {
        let client = trusting(gate.folder(), &["h2"]);
        let line = (case.path, token.as_str());
        return streams::gets((gate.port, client), line, WARM + requests, PAUSE);
    }
    let request = request(case.method, case.path, &token, &body);
    for _ in 0..WARM + requests {
        std::thread::sleep(PAUSE);
        assert_eq!(wire.ask(&request).status, expected);
    }
}
