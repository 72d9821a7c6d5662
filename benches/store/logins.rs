//! Durable logins per second, with and without hashing of the password.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tollgate::identity::hash_password;
use tollgate::metrics::StoreOutcome;
use tollgate::profiles::Role;
use tollgate::secret::Secret;
use tollgate::token::{GrantRequest, Token, TokenOrigin, TokenStore};

const AT_ONCE: [usize; 4] = [1, 16, 64, 256];
const SPAN: Duration = Duration::from_secs(3);
const USERS: u64 = 1000;

/// As many hashes at once as there are cores, as in the gateway; None: no hashing.
type Slots = Option<Arc<Semaphore>>;

pub(crate) async fn run(folder: &Path) -> String {
    let (store, tokens, metrics) = super::open(&folder.join("logins.redb"));
    let mut text = String::from(
        "| clients at once | hashing | logins a second | syncs a second | logins a sync | median | p99 |\n\
         | ---: | --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for (at_once, is_hashed) in AT_ONCE
        .map(|count| (count, false))
        .into_iter()
        .chain([(64, true)])
    {
        let slots: Slots = is_hashed.then(|| Arc::new(Semaphore::new(cores)));
        // One commit is one sync of the file.
        let syncs = metrics.store_commit_seconds.get_sample_count();
        let before = metrics.store_changes.value(StoreOutcome::Committed);
        let begin = Instant::now();
        let clients = (0..at_once).map(|client| {
            let (tokens, slots) = (Arc::clone(&tokens), slots.clone());
            tokio::spawn(async move { one_client(&tokens, &slots, (client, begin)).await })
        });
        let mut took = Vec::new();
        for client in clients.collect::<Vec<_>>() {
            took.extend(client.await.unwrap());
        }
        let seconds = begin.elapsed().as_secs_f64();
        took.sort_unstable();
        let done = (metrics.store_changes.value(StoreOutcome::Committed) - before) as f64;
        let syncs = (metrics.store_commit_seconds.get_sample_count() - syncs) as f64;
        let _ = writeln!(
            text,
            "| {at_once} | {} | {:.0} | {:.0} | {:.1} | {:.2?} | {:.2?} |",
            if is_hashed { "included" } else { "left out" },
            done / seconds,
            syncs / seconds,
            done / syncs,
            took[took.len() / 2],
            took[took.len() * 99 / 100],
        );
    }
    store.close().await;
    let _ = write!(
        text,
        "\n{USERS} users, {SPAN:?} a row; a sync is one commit of the file in `{}`.",
        filesystem(folder)
    );
    text
}

/// The file system and device of the folder.
fn filesystem(folder: &Path) -> String {
    let asked = std::process::Command::new("stat")
        .args(["-f", "-c", "%T"])
        .arg(folder)
        .output();
    asked.map_or_else(
        |_| "?".to_owned(),
        |told| String::from_utf8_lossy(&told.stdout).trim().to_owned(),
    )
}

async fn one_client(
    tokens: &TokenStore,
    slots: &Slots,
    (client, begin): (usize, Instant),
) -> Vec<Duration> {
    let mut took = Vec::new();
    let mut step = client as u64;
    while begin.elapsed() < SPAN {
        step += 7;
        let user = format!("user-{}", step % USERS);
        let asked = Instant::now();
        let epoch = tokens.epoch(&user);
        if let Some(slots) = slots {
            let slot = Arc::clone(slots).acquire_owned().await.unwrap();
            let hash = || hash_password(&Secret::new("Worker-Passw0rd!")).unwrap();
            tokio::task::spawn_blocking(hash).await.unwrap();
            drop(slot);
        }
        let wanted = GrantRequest {
            user: &user,
            role: Some(Role::User),
            lifetime: Duration::from_secs(7 * 86_400),
            origin: TokenOrigin::Minted,
            epoch,
            revision: None,
        };
        tokens.insert(Token::mint().digest(), wanted).await.unwrap();
        took.push(asked.elapsed());
    }
    took
}
