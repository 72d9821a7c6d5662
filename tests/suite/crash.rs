//! SIGKILL at any instant: confirmed changes are stored, and revoked tokens stay revoked.
//! Fifteen rounds here; TOLLGATE_ROUNDS=300 for the long run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sha2::Digest as _;
use tollgate::config;
use tollgate::metrics::Metrics;
use tollgate::profiles::Role;
use tollgate::store::{GrantBatchSink, KeyRecord, RecordDigest, Store, StoreChange};
use tollgate::token::{GrantRequest, TokenDigest, TokenOrigin, TokenStore};

use crate::harness::program::Program;
use crate::harness::{ADMIN, ADMIN_PASSWORD, Client, NO_LIMITS, Setup, emulator, prepare, text};

const PLACE: &str = "TOLLGATE_CRASH_STORE";
const ROUND: &str = "TOLLGATE_CRASH_ROUND";
const USERS: u64 = 5;

fn rounds() -> u64 {
    let rounds = std::env::var("TOLLGATE_ROUNDS").ok();
    rounds.and_then(|text| text.parse().ok()).unwrap_or(15)
}

fn settings() -> config::UsersConfig {
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.main]\nurl = \"http://[::1]:1\"\n\
                login = { username = \"gate\", password = { env = \"PATH\" } }\n\
                [users]\nmax_tokens = 100000000\nmax_tokens_per_user = 100000000\n";
    config::parse(text, Path::new("")).unwrap().config.users
}

/// Writes one line to standard output, completely or not at all.
fn say(line: &str) {
    let line = format!("@{line}\n");
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}

/// Runs in its own process until it is killed: logins, logouts, deletions and keys, each
/// reported before it begins and after its response.
#[test]
#[ignore = "the other half of the test below"]
fn the_load() {
    let Ok(path) = std::env::var(PLACE) else {
        return;
    };
    let round = std::env::var(ROUND).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let path = Path::new(&path);
        let users = settings();
        let metrics = Metrics::new();
        let (store, _) = Store::open(path, &metrics).unwrap();
        let store = Arc::new(store);
        let tokens = TokenStore::over(Arc::clone(&store), &users, metrics);
        tokens.load(TokenOrigin::Minted, |_| true).await.unwrap();
        say("ready");
        let tasks = (0..8).map(|task| {
            let (store, tokens, round) = (Arc::clone(&store), Arc::clone(&tokens), round.clone());
            tokio::spawn(async move { one_client(&store, &tokens, (&round, task)).await })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
}

async fn one_client(store: &Store, tokens: &TokenStore, (round, task): (&str, u64)) {
    for step in 0_u64.. {
        let user = format!("user-{}", (step * 7 + task * 3) % USERS);
        match (step + task) % 16 {
            9 => {
                say(&format!("begin end {user} {task}"));
                tokens.revoke_user(&user).await.unwrap();
                say(&format!("done end {user} {task}"));
            }
            13 => {
                say(&format!("begin end {user} {task}"));
                tokens.end_user(&user).await;
                say(&format!("done end {user} {task}"));
            }
            3 => {
                let name = format!("key-{round}-{task}-{step}");
                key(store, &name).await;
                if step % 3 == 0 {
                    say(&format!("begin unkey {name} {task}"));
                    let name: Arc<str> = name.as_str().into();
                    store
                        .commit(StoreChange::RemoveKey {
                            name: Arc::clone(&name),
                        })
                        .await
                        .unwrap();
                    say(&format!("done unkey {name} {task}"));
                }
            }
            _ => log_in(tokens, &user, &format!("token-{round}-{task}-{step}"), task).await,
        }
    }
}

async fn key(store: &Store, name: &str) {
    say(&format!("begin key {name} 0"));
    let record = KeyRecord {
        name: name.into(),
        digest: digest(name),
        expires: None,
        role: Role::User,
        paths: Vec::new(),
        methods: Vec::new(),
        limit: None,
        upstreams: Vec::new(),
    };
    store.commit(StoreChange::PutKey(record)).await.unwrap();
    say(&format!("done key {name} 0"));
}

async fn log_in(tokens: &TokenStore, user: &str, token: &str, task: u64) {
    say(&format!("begin login {user} {token} {task}"));
    let wanted = GrantRequest {
        user,
        role: Some(Role::User),
        lifetime: Duration::from_secs(86_400),
        origin: TokenOrigin::Minted,
        epoch: tokens.epoch(user),
        revision: None,
    };
    // A concurrent deletion refuses the login, which is correct.
    if tokens.insert(TokenDigest::of(token), wanted).await.is_ok() {
        say(&format!("done login {user} {token} {task}"));
    }
}

fn digest(text: &str) -> RecordDigest {
    RecordDigest(sha2::Sha256::digest(text).into())
}

/// The reports of all past rounds about one token.
#[derive(Clone, Debug)]
struct KnownToken {
    user: String,
    begun: usize,
    done: Option<usize>,
}

#[derive(Default)]
struct Ledger {
    tokens: BTreeMap<RecordDigest, KnownToken>,
    /// For each user: when each revocation began, and when it was confirmed.
    ends: BTreeMap<String, Vec<(usize, Option<usize>)>>,
    keys: BTreeMap<String, (bool, bool)>,
    line: usize,
}

#[derive(Default, Debug)]
struct Counts {
    live: usize,
    dead: usize,
    either: usize,
    keys: usize,
}

impl Ledger {
    fn take(&mut self, line: &str) {
        self.line += 1;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["begin", "login", user, token, _] => {
                let known = KnownToken {
                    user: user.to_owned(),
                    begun: self.line,
                    done: None,
                };
                self.tokens.insert(digest(token), known);
            }
            ["done", "login", _, token, _] => {
                self.tokens.get_mut(&digest(token)).unwrap().done = Some(self.line);
            }
            // Two concurrent revocations of one user are not distinguished: for the check it
            // does not matter which of the unfinished ones is closed.
            ["begin", "end", user, _] => {
                let ends = self.ends.entry(user.to_owned()).or_default();
                ends.push((self.line, None));
            }
            ["done", "end", user, _] => {
                // The oldest unfinished one, which makes the weakest claim.
                let ends = self.ends.get_mut(user).unwrap();
                let open = ends.iter_mut().find(|(_, done)| done.is_none()).unwrap();
                open.1 = Some(self.line);
            }
            ["begin", "key", name, _] => drop(self.keys.insert(name.to_owned(), (false, true))),
            ["done", "key", name, _] => drop(self.keys.insert(name.to_owned(), (true, false))),
            ["begin", "unkey", name, _] => self.keys.get_mut(name).unwrap().1 = true,
            ["done", "unkey", name, _] => drop(self.keys.insert(name.to_owned(), (false, false))),
            _ => {}
        }
    }

    /// Whether a token must be live, must be dead, or may be either.
    fn verdict(&self, known: &KnownToken) -> Option<bool> {
        let ends = self.ends.get(&known.user).map_or(&[][..], Vec::as_slice);
        let login = known.done?;
        if ends
            .iter()
            .any(|(begun, done)| *begun > login && done.is_some())
        {
            return Some(false);
        }
        let is_clear = ends
            .iter()
            .all(|(_, done)| done.is_some_and(|done| done < known.begun));
        is_clear.then_some(true)
    }

    fn check(
        &mut self,
        found: &BTreeSet<RecordDigest>,
        keys: &BTreeSet<String>,
        counts: &mut Counts,
    ) {
        for (digest, known) in &self.tokens {
            let is_there = found.contains(digest);
            match self.verdict(known) {
                Some(true) => {
                    assert!(is_there, "a confirmed login is lost: {known:?}");
                    counts.live += 1;
                }
                Some(false) => {
                    assert!(!is_there, "a revoked token is valid: {known:?}");
                    counts.dead += 1;
                }
                None => counts.either += 1,
            }
        }
        for (name, (is_there, in_doubt)) in &self.keys {
            assert!(*in_doubt || keys.contains(name) == *is_there, "key {name}");
            counts.keys += 1;
        }
        // After the kill nothing is in flight.
        self.tokens.retain(|digest, _| found.contains(digest));
        for known in self.tokens.values_mut() {
            known.done = Some(self.line);
            known.begun = self.line;
        }
        self.ends.clear();
        for (name, state) in &mut self.keys {
            *state = (keys.contains(name), false);
        }
        self.line += 1;
    }
}

/// Pseudo-random numbers, good enough to choose an instant.
fn random(max: u64) -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0) % max
}

fn spawn(path: &Path, round: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::the_load", "--ignored", "--nocapture"])
        .env(PLACE, path)
        .env(ROUND, round.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Lets the process work for some time, kills it, and returns its output.
fn killed(mut child: Child) -> Vec<String> {
    let output = child.stdout.take().unwrap();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let reader = std::thread::spawn({
        let lines = Arc::clone(&lines);
        move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8(line).unwrap();
                // libtest writes the beginning of a line before the output.
                if let Some((_, line)) = line.split_once('@') {
                    lines.lock().unwrap().push(line.to_owned());
                }
            }
        }
    });
    let begin = Instant::now();
    while lines.lock().unwrap().len() < 20 {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "the load did not begin"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_micros(random(150_000)));
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
    Arc::into_inner(lines).unwrap().into_inner().unwrap()
}

async fn found(path: &Path) -> (BTreeSet<RecordDigest>, BTreeSet<String>) {
    let (store, contents) = Store::open(path, &Metrics::new()).unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    let loaded = store.load(move || -> GrantBatchSink<'static> {
        let send = send.clone();
        Box::new(move |grants| {
            for grant in grants {
                send.send(grant.digest).unwrap();
            }
        })
    });
    loaded.await.unwrap();
    store.close().await;
    let keys = contents.keys.iter().map(|key| key.name.to_string());
    (receive.iter().collect(), keys.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_instant_loses_no_confirmed_change_and_revives_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut ledger = Ledger::default();
    let mut counts = Counts::default();
    let mut lines = 0;
    for round in 0..rounds() {
        let acknowledged = killed(spawn(&path, round));
        lines += acknowledged.len();
        acknowledged.iter().for_each(|line| ledger.take(line));
        let (tokens, keys) = found(&path).await;
        ledger.check(&tokens, &keys, &mut counts);
    }
    println!("{} rounds, {lines} lines, {counts:?}", rounds());
    assert!(
        counts.live > 0 && counts.dead > 0 && counts.keys > 0,
        "{counts:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_gate_knows_its_clients_after_the_restart() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), &webapp);
    let file = folder.path().join("config.toml");
    let url = format!("https://{}", webapp.address());
    let setup = Setup::default().users("hashing_slots = 2").rest(NO_LIMITS);
    std::fs::write(&file, text(&setup, &url)).unwrap();
    let (mut live, mut ended): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for _ in 0..(rounds() / 5).max(3) {
        let program = Program::serve(&file);
        let loaded = program.wait_for("tokens loaded");
        let count = format!(" live={} expired=0 ended=", live.len());
        assert!(
            loaded.contains(&count) && loaded.contains(" millis="),
            "{loaded}"
        );
        let base = program.url("");
        let client = Client::of(folder.path(), &base, reqwest::Client::builder());
        for (tokens, status) in [(&live, 200), (&ended, 401)] {
            for token in tokens {
                let client = client.clone().with_token(token);
                let response = client.get(&format!("/v1/users/{ADMIN}")).await;
                assert_eq!(response.status().as_u16(), status);
            }
        }
        let one = client.clone().logged_in(ADMIN, ADMIN_PASSWORD).await;
        live.push(one.token.clone().unwrap());
        let out = one.request(reqwest::Method::POST, "/v1/users/logout");
        assert_eq!(out.send().await.unwrap().status(), 200);
        ended.append(&mut live);
        for _ in 0..2 {
            let one = client.clone().logged_in(ADMIN, ADMIN_PASSWORD).await;
            live.push(one.token.unwrap());
        }
        // One more login is in flight at the kill; its token reaches no client.
        let late = tokio::spawn(async move { client.http.get(base).send().await.is_ok() });
        tokio::time::sleep(Duration::from_millis(random(30))).await;
        program.signal("KILL");
        let _ = late.await;
    }
}
