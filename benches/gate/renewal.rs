//! What clients notice of renewals: a steady load over a hundred of them, and ten
//! thousand requests at once that the upstream refuses because its token is gone.
//! Goal: none failed, none waited, one login.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tollgate::emulator::{Emulator, Settings};
use tollgate::lifecycle::TaskScope;

use crate::page;
use crate::support::flow::Flow;
use crate::support::gate::{ADMIN, Gate, PASSWORD, Setup};
use crate::support::streams;
use crate::support::wire::{Wire, request, trusting};

const CONNECTIONS: usize = 32;
const QUIET: Duration = Duration::from_secs(20);
const RENEWALS: u64 = 100;
const BURST: usize = 10_000;
/// Renewed after 30 % of it.
const SHORT_LIFE: Duration = Duration::from_secs(3);
const LONG_LIFE: Duration = Duration::from_secs(604_800);
const PATH: &str = "/v1/support";
const LONGEST: Duration = Duration::from_secs(300);
/// What the load's timer is late by itself, at most: it rounds up twice.
const TIMER: Duration = Duration::from_millis(2);
/// How often the Webapp's count of logins is read.
const LOOK: Duration = Duration::from_millis(1);
/// A request is around a renewal if it was due so long before the login was seen, or after.
/// Its answer needs its connection, the login's handshake and the write of the lease.
const BEFORE: Duration = Duration::from_millis(20);
const AFTER: Duration = Duration::from_millis(100);

const UPSTREAM: &str = r#"
ca = "webapp-ca.pem"
server_name = "localhost"
renew_at = 0.3
min_login_interval = "10ms"
logins_per_hour = 36000
queue_timeout = "60s"
"#;

/// One request: when it was due, how long its answer took, and whether it was good.
#[derive(Clone, Copy)]
struct Seen {
    due: Instant,
    took: Duration,
    is_good: bool,
}

pub(crate) fn run(words: &[String]) -> ExitCode {
    let mut rate = 500;
    let mut target = None;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rate" => rate = words.next().and_then(|w| w.parse().ok()).expect("a number"),
            "--write" => target = Some(PathBuf::from(words.next().expect("a file"))),
            other => panic!("unknown word {other}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (text, is_well) = runtime.block_on(measure(rate));
    page::put(target.as_deref(), "renewal", &text);
    if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn measure(rate: u32) -> (String, bool) {
    let scope = TaskScope::new(tokio::runtime::Handle::current());
    let webapp = Emulator::start(Settings::for_tests(), &scope)
        .await
        .unwrap();
    let setup = Setup {
        upstream: format!("url = \"https://{}\"{UPSTREAM}", webapp.address()),
        listener: "max_streams = 1000".to_owned(),
        files: vec![("webapp-ca.pem", webapp.authority_pem().to_owned())],
        tls: true,
        workers: 2,
        ..Setup::default()
    };
    let mut gate = tokio::task::spawn_blocking(move || Gate::start(&setup))
        .await
        .unwrap();
    let (port, client) = (gate.port, trusting(gate.folder(), &["http/1.1"]));
    let logging_in = Arc::clone(&client);
    let log_in = move || Wire::tls(port, &logging_in).log_in(ADMIN, PASSWORD);
    let token = tokio::task::spawn_blocking(log_in).await.unwrap();
    let load = Load {
        port,
        client,
        request: request("GET", PATH, &token, "").into(),
        rate,
    };

    load.run(&AtomicBool::new(true), Duration::from_secs(3))
        .await; // warm
    let quiet = load.run(&AtomicBool::new(true), QUIET).await;
    eprintln!("quiet: {} requests", quiet.len());

    webapp.token_lifetime(SHORT_LIFE);
    webapp.forget_all_tokens(); // the next request begins the short lives
    load.run(&AtomicBool::new(true), Duration::from_secs(1))
        .await;
    let (logins, waits) = (
        webapp.login_count(),
        gate.counted("tollgate_session_waits_total"),
    );
    let goes_on = AtomicBool::new(true);
    let watch = renew_many(&webapp, logins, &goes_on);
    let (renewing, moments) = tokio::join!(load.run(&goes_on, LONGEST), watch);
    let waited = gate.counted("tollgate_session_waits_total") - waits;
    eprintln!(
        "renewing: {} requests, {} renewals",
        renewing.len(),
        moments.len()
    );

    webapp.token_lifetime(LONG_LIFE);
    tokio::time::sleep(SHORT_LIFE).await; // the last short one is replaced
    let refused = burst(&webapp, &gate, &token).await;
    gate.stop();
    webapp.stop();
    report(rate, &quiet, (&renewing, &moments, waited), refused)
}

/// When each of the hundred renewals was seen; stops the load after them.
async fn renew_many(webapp: &Emulator, logins: u64, goes_on: &AtomicBool) -> Vec<Instant> {
    let begin = Instant::now();
    let (mut moments, mut count) = (Vec::new(), logins);
    while count < logins + RENEWALS && begin.elapsed() < LONGEST {
        tokio::time::sleep(LOOK).await;
        let now = webapp.login_count();
        moments.extend((count..now).map(|_| Instant::now()));
        count = now;
    }
    tokio::time::sleep(AFTER).await;
    goes_on.store(false, Ordering::Relaxed);
    moments
}

/// Requests that failed, logins, and how many requests the upstream refused.
async fn burst(webapp: &Emulator, gate: &Gate, token: &str) -> (usize, u64, u64) {
    let before = (
        webapp.login_count(),
        gate.counted("tollgate_upstream_retries_total"),
    );
    // Slow enough that as many as the gate sends at once are on their way before the first refusal.
    webapp.response_delay(Duration::from_secs(2));
    webapp.login_takes(Duration::from_secs(1));
    webapp.forget_all_tokens();
    let client = trusting(gate.folder(), &["h2"]);
    let calm = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        webapp.response_delay(Duration::ZERO);
    };
    let burst = streams::burst((gate.port, client), (PATH, token), BURST);
    let (good, ()) = tokio::join!(burst, calm);
    webapp.login_takes(Duration::ZERO);
    let repeats = gate.counted("tollgate_upstream_retries_total") - before.1;
    (BURST - good, webapp.login_count() - before.0, repeats)
}

struct Load {
    port: u16,
    client: Arc<rustls::ClientConfig>,
    request: Arc<[u8]>,
    /// Requests a second in all, whether the answers come or not.
    rate: u32,
}

impl Load {
    /// Sends until told to stop, or for `at_most`.
    async fn run(&self, goes_on: &AtomicBool, at_most: Duration) -> Vec<Seen> {
        let between = Duration::from_secs(1) * u32::try_from(CONNECTIONS).unwrap() / self.rate;
        let begin = Instant::now() + Duration::from_millis(100);
        let one = async |index: usize| {
            let mut flow = Flow::open(self.port, &self.client, index).await;
            let share =
                between * u32::try_from(index).unwrap() / u32::try_from(CONNECTIONS).unwrap();
            let mut due = begin + share;
            let mut seen = Vec::new();
            while goes_on.load(Ordering::Relaxed) && due < begin + at_most {
                let from = on_time(due).await;
                let status = flow.ask(&self.request).await;
                let is_good = matches!(status, Ok(200));
                seen.push(Seen {
                    due,
                    took: from.elapsed(),
                    is_good,
                });
                if status.is_err() {
                    flow = Flow::open(self.port, &self.client, index).await;
                }
                due += between;
            }
            seen
        };
        let all = futures_util::future::join_all((0..CONNECTIONS).map(one)).await;
        all.into_iter().flatten().collect()
    }
}

/// Waits until then; gives the moment from which the answer is late. The timer counts
/// whole milliseconds: that much is not the gate's, whatever comes on top may be.
async fn on_time(due: Instant) -> Instant {
    if due <= Instant::now() {
        return due;
    }
    tokio::time::sleep_until(due.into()).await;
    Instant::now().min(due + TIMER)
}

fn at(share: f64, sorted: &[Duration]) -> Duration {
    let last = sorted.len() - 1;
    sorted[((last as f64 * share).round() as usize).min(last)]
}

/// Whether the request was due around one of the renewals.
fn is_around(seen: &Seen, renewals: &[Instant]) -> bool {
    let next = renewals.partition_point(|moment| *moment + AFTER < seen.due);
    let next = renewals.get(next);
    next.is_some_and(|moment| *moment <= seen.due + BEFORE)
}

fn sorted(seen: &[Seen]) -> Vec<Duration> {
    let mut all: Vec<Duration> = seen.iter().map(|one| one.took).collect();
    all.sort_unstable();
    all
}

fn failed(seen: &[Seen]) -> usize {
    seen.iter().filter(|one| !one.is_good).count()
}

fn report(
    rate: u32,
    quiet: &[Seen],
    (renewing, renewals, waited): (&[Seen], &[Instant], u64),
    (failed_in_burst, logins, repeats): (usize, u64, u64),
) -> (String, bool) {
    let (around, away): (Vec<Seen>, Vec<Seen>) = renewing
        .iter()
        .copied()
        .partition(|one| is_around(one, renewals));
    if around.is_empty() || away.is_empty() || quiet.is_empty() {
        return ("No renewals were seen.".to_owned(), false);
    }
    let limit = at(0.999, &sorted(&away));
    let mut text = format!(
        "Steady {rate} requests a second over {CONNECTIONS} TLS connections. Latency is counted from the due time, less up to 2 ms by which\n\
         the load's own timer is late. Around a renewal: due within {} ms before its login or {} ms after. The limit is the\n\
         p99.9 of the requests in the same minute that were not.\n\n\
         | requests | number | renewals | failed | waited for a login | p50 | p99 | p99.9 | longest | over the limit |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        BEFORE.as_millis(),
        AFTER.as_millis(),
    );
    for (name, seen, renewals, waited) in [
        ("before all renewals", quiet, 0, 0),
        ("between renewals", &away, 0, 0),
        ("around a renewal", &around, renewals.len(), waited),
    ] {
        let all = sorted(seen);
        let over = all.iter().filter(|took| **took > limit).count();
        let _ = writeln!(
            text,
            "| {name} | {} | {renewals} | {} | {waited} | {:.1?} | {:.1?} | {:.1?} | {:.1?} | {over} ({:.2} %) |",
            seen.len(),
            failed(seen),
            at(0.5, &all),
            at(0.99, &all),
            at(0.999, &all),
            all[all.len() - 1],
            over as f64 * 100.0 / all.len() as f64,
        );
    }
    let _ = write!(
        text,
        "\nBurst: {BURST} requests at once with the upstream's token gone: {failed_in_burst} failed, \
         {repeats} were refused by the upstream and sent\nagain, the others waited, {logins} login."
    );
    let is_well = failed(renewing) == 0 && waited == 0 && failed_in_burst == 0 && logins == 1;
    let _ = write!(
        text,
        "\n\nGoal (0 failed, 0 waited, 1 login): {}.",
        if is_well { "met" } else { "missed" }
    );
    (text, is_well && renewals.len() as u64 >= RENEWALS)
}
