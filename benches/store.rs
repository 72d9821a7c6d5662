//! The durable store, measured by hand: `cargo bench --bench store`.
//!
//! TOLLGATE_BENCH_FOLDER  a folder on the disk to measure (default: the system's
//!                        folder for temporary files)
//! TOLLGATE_BENCH_TOKENS  tokens to load (default 1000000)
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "measures real time, and stops where it cannot go on"
)]

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tollgate::clock;
use tollgate::config;
use tollgate::metrics::{Metrics, StoreOutcome};
use tollgate::store::{Change, Digest, GrantRecord, Offline, Origin, Record, Store};
use tollgate::token::{Token, TokenStore, Wanted};
use tollgate::webapp::Role;

const AT_ONCE: [usize; 4] = [1, 16, 64, 256];
const SPAN: Duration = Duration::from_secs(3);
const USERS: u64 = 1000;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return; // `cargo test --benches` only wants to know that it builds
    }
    let place = std::env::var_os("TOLLGATE_BENCH_FOLDER");
    let place = place.map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(place).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        logins(&folder.path().join("logins.redb")).await;
        let tokens = std::env::var("TOLLGATE_BENCH_TOKENS").ok();
        let tokens = tokens
            .and_then(|text| text.parse().ok())
            .unwrap_or(1_000_000);
        start(&folder.path().join("start.redb"), tokens).await;
    });
}

fn settings() -> config::Users {
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.main]\nurl = \"http://[::1]:1\"\n\
                login = { username = \"gate\", password = { env = \"PATH\" } }\n\
                [users]\nmax_tokens = 100000000\nmax_tokens_per_user = 100000000\n";
    config::parse(text, Path::new("")).unwrap().config.users
}

fn open(path: &Path) -> (Arc<Store>, Arc<TokenStore>, Arc<Metrics>) {
    let users = settings();
    let metrics = Metrics::new();
    let (store, _) = Store::open(path, &metrics).unwrap();
    let store = Arc::new(store);
    let tokens = TokenStore::over(Arc::clone(&store), &users, Arc::clone(&metrics));
    (store, tokens, metrics)
}

/// Logins without the password's hash, on disk before they are answered.
async fn logins(path: &Path) {
    let (store, tokens, metrics) = open(path);
    println!("durable logins, hashing excluded, {USERS} users, {SPAN:?} each");
    println!("  at once   logins/s   commits/s   logins a commit   median   99 %");
    for at_once in AT_ONCE {
        let commits = metrics.store_commit_seconds.get_sample_count();
        let before = metrics.store_changes.value(StoreOutcome::Committed);
        let begin = Instant::now();
        let clients = (0..at_once).map(|client| {
            let tokens = Arc::clone(&tokens);
            tokio::spawn(async move { one_client(&tokens, client, begin).await })
        });
        let mut took = Vec::new();
        for client in clients.collect::<Vec<_>>() {
            took.extend(client.await.unwrap());
        }
        let seconds = begin.elapsed().as_secs_f64();
        took.sort_unstable();
        let done = (metrics.store_changes.value(StoreOutcome::Committed) - before) as f64;
        let commits = (metrics.store_commit_seconds.get_sample_count() - commits) as f64;
        println!(
            "  {at_once:>7} {:>10.0} {:>11.0} {:>17.1} {:>8.2?} {:>6.2?}",
            done / seconds,
            commits / seconds,
            done / commits,
            took[took.len() / 2],
            took[took.len() * 99 / 100],
        );
    }
    store.close().await;
}

async fn one_client(tokens: &TokenStore, client: usize, begin: Instant) -> Vec<Duration> {
    let mut took = Vec::new();
    let mut step = client as u64;
    while begin.elapsed() < SPAN {
        step += 7;
        let user = format!("user-{}", step % USERS);
        let asked = Instant::now();
        let wanted = Wanted {
            user: &user,
            role: Some(Role::User),
            lifetime: Duration::from_secs(7 * 86_400),
            origin: Origin::Minted,
            epoch: tokens.epoch(&user),
            revision: None,
        };
        tokens.insert(Token::mint().digest(), wanted).await.unwrap();
        took.push(asked.elapsed());
    }
    took
}

/// A file with many tokens: how large, and how long until they can be used.
async fn start(path: &Path, count: u64) {
    let begin = Instant::now();
    fill(path, count);
    let size = std::fs::metadata(path).unwrap().len();
    println!(
        "{count} tokens of {USERS} users, written in {:.1?}",
        begin.elapsed()
    );
    println!("  file {size} bytes, {} a token", size / count);
    println!("  reading the file as it is       {:>9.2?}", read(path));
    load(path, "start after a clean stop", count).await;

    // As a kill leaves it: in use, with a commit that was the last.
    let (store, _, _) = open(path);
    let change = Change::RemoveGrant(Digest([0; 32]));
    store.commit(change).await.unwrap();
    let killed = path.with_extension("killed");
    std::fs::copy(path, &killed).unwrap();
    store.close().await;
    load(&killed, "start after a kill", count).await;
}

fn fill(path: &Path, count: u64) {
    let offline = Offline::open_or_make(path).unwrap();
    let mut import = offline.import().unwrap();
    let ends_millis = clock::unix_millis() + 7 * 86_400_000;
    let names: Vec<Arc<str>> = (0..USERS)
        .map(|user| format!("user-{user}").into())
        .collect();
    for number in 0..count {
        let grant = GrantRecord {
            digest: Digest(rand::random()),
            user: Arc::clone(&names[(number % USERS) as usize]),
            role: Some(Role::User),
            ends_millis,
            epoch: 0,
            origin: Origin::Minted,
        };
        import.put(Record::Grant(grant)).unwrap();
    }
    import.commit().unwrap();
}

fn read(path: &Path) -> Duration {
    let begin = Instant::now();
    let mut file = std::fs::File::open(path).unwrap();
    let mut piece = vec![0; 1 << 20];
    while file.read(&mut piece).unwrap() > 0 {}
    begin.elapsed()
}

async fn load(path: &Path, what: &str, count: u64) {
    let begin = Instant::now();
    let (store, tokens, _) = open(path);
    let opened = begin.elapsed();
    let seen = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let counted = Arc::clone(&seen);
    let loaded = store.load(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    loaded.await.unwrap();
    let scanned = begin.elapsed();
    let begin = Instant::now();
    tokens.load(|_| true).await.unwrap();
    let loaded = begin.elapsed();
    assert_eq!(
        (seen.load(Ordering::Relaxed), tokens.len() as u64),
        (count, count)
    );
    println!("  {what:<26} open {opened:>8.2?}, scan {scanned:>8.2?}, into memory {loaded:>8.2?}");
    store.close().await;
}
