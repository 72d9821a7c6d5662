//! Instructions per request of the gate's own process, as callgrind counts them: the
//! same on a busy machine as on a quiet one. Client and Webapp run in this process, so
//! they are not in the figure, and they pause before each message, so that the gate has
//! always gone to sleep and each request takes the same way through it.

mod profile;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::support::gate::{ADMIN, Gate, PASSWORD, Setup};
use crate::support::streams;
use crate::support::webapp;
use crate::support::wire::{Wire, request, trusting};

/// Requests whose cost is the difference between two runs: start and end cancel out.
const REQUESTS: usize = 300;
const WARM: usize = 50;
const PAUSE: Duration = Duration::from_millis(3);
const MOST_GROWTH: f64 = 0.03;
/// Counts differ by up to 4 % where a wake-up falls otherwise; real growth is in each of them.
const COUNTS: usize = 3;
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
    }
}

const GET: (&str, &str) = ("GET", "/v1/groups");
const DENY: Case = Case {
    is_known: false,
    ..case("deny", Over::Plain, GET, 0)
};

/// Compared with the record by default. Those without TLS are free of the cipher's
/// cost, which depends on the processor.
const GUARDED: &[Case] = &[
    case("h1", Over::Plain, GET, 0),
    DENY,
    case("h2_tls", Over::Http2, GET, 0),
];

/// Counted when named.
const MORE: &[Case] = &[
    case("post1k", Over::Plain, ("POST", "/v1/messages"), 1024),
    case("h1_tls", Over::Tls, GET, 0),
    case("get64k_tls", Over::Tls, ("GET", "/v1/media/1"), 0),
    case("post1k_tls", Over::Tls, ("POST", "/v1/messages"), 1024),
    case("post64k_tls", Over::Tls, ("POST", "/v1/media"), 65_536),
    Case {
        is_known: false,
        ..case("deny_tls", Over::Tls, GET, 0)
    },
    case("h2_get64k_tls", Over::Http2, ("GET", "/v1/media/1"), 0),
];

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
    if let Some(strange) = named
        .iter()
        .find(|name| known().all(|case| case.name != **name))
    {
        let names: Vec<&str> = known().map(|case| case.name).collect();
        println!("no case {strange}; there are: {}", names.join(" "));
        return ExitCode::FAILURE;
    }
    let counter = Counter { binary, profile };
    if named.is_empty() {
        return guard(&counter, records);
    }
    for case in known().filter(|case| named.contains(&case.name)) {
        println!(
            "{:14} {:>9} instructions per request",
            case.name,
            counter.per_request(case)
        );
    }
    ExitCode::SUCCESS
}

fn guard(counter: &Counter, records: bool) -> ExitCode {
    let here = circumstances(&counter.binary);
    let before = std::fs::read_to_string(RECORD).unwrap_or_default();
    let mut text = format!(
        "# Instructions per request, guarded by tests/run.sh; benches/README.md says how and why\n\
         # to record new figures. Counted with:\n# {here}\n"
    );
    let mut grown = Vec::new();
    for case in GUARDED {
        let then = recorded(&before, case.name);
        let now = counter.least(case, then.filter(|_| !records));
        let _ = writeln!(text, "{} {now}", case.name);
        match then {
            None => println!(
                "{:14} {now:>9} instructions per request, none recorded",
                case.name
            ),
            Some(then) => {
                let growth = now as f64 / then as f64 - 1.0;
                println!(
                    "{:14} {now:>9} instructions per request, recorded {then}: {:+.1} %",
                    case.name,
                    growth * 100.0
                );
                if growth > MOST_GROWTH {
                    grown.push(case.name);
                }
            }
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
        "\nA request costs over {:.0} % more instructions than recorded: {}.\n\
         To see where: cargo bench --bench gate -- guard --profile FOLDER CASE\n\
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

/// What a figure depends on besides the code.
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
    /// Where callgrind's profiles stay, for a closer look.
    profile: Option<PathBuf>,
}

impl Counter {
    /// The least of some counts; one that is not over the record is enough.
    fn least(&self, case: &Case, then: Option<u64>) -> u64 {
        let mut least = u64::MAX;
        for _ in 0..COUNTS {
            least = least.min(self.per_request(case));
            if then.is_some_and(|then| least as f64 <= then as f64 * (1.0 + MOST_GROWTH)) {
                break;
            }
        }
        least
    }

    fn per_request(&self, case: &Case) -> u64 {
        let (short, long) = (self.count(case, REQUESTS), self.count(case, 2 * REQUESTS));
        if let Some(folder) = &self.profile {
            let file = |requests| profile_in(folder, case, requests);
            profile::print_difference(&file(REQUESTS), &file(2 * REQUESTS), REQUESTS);
        }
        (long - short) / REQUESTS as u64
    }

    fn count(&self, case: &Case, requests: usize) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let kept = self.profile.as_deref().unwrap_or(folder.path());
        std::fs::create_dir_all(kept).unwrap();
        let profile = profile_in(kept, case, requests);
        let report = folder.path().join("report");
        let wrapper = [
            "valgrind".to_owned(),
            "--tool=callgrind".to_owned(),
            format!("--callgrind-out-file={}", profile.display()),
            format!("--log-file={}", report.display()),
        ];
        let mut gate = Gate::start(&Setup {
            upstream: format!("url = \"http://{}\"", webapp::start(PAUSE)),
            tls: case.over != Over::Plain,
            wrapper: wrapper.into(),
            binary: self.binary.clone(),
            ..Setup::default()
        });
        load(case, &gate, requests);
        gate.stop();
        let report = std::fs::read_to_string(report).unwrap();
        let (_, count) = report.split_once("Collected : ").expect(&report);
        count.lines().next().unwrap().trim().parse().unwrap()
    }
}

fn profile_in(folder: &Path, case: &Case, requests: usize) -> PathBuf {
    folder.join(format!("{}-{requests}.callgrind", case.name))
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
