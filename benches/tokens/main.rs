//! The cost of live tokens: memory, look-ups, and the longest pause of a look-up while tokens are
//! swept, while a user with very many tokens logs out, and while the map grows.
//!
//!     cargo bench --bench tokens -- 100000 1000000 10000000
//!
//! Prints rows of Markdown. Bytes are those requested from the allocator. A pause is elapsed time
//! minus the time during which the thread was ready but had no core, so that other load on the
//! machine does not count; the plain figure is printed beside it.

mod clocks;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cap::Cap;
use futures_util::FutureExt as _;
use tokio::time::Instant;
use tollgate::config::{DirectoryKind, UnknownTokens, UsersConfig};
use tollgate::metrics::Metrics;
use tollgate::store::{GrantSink as _, LiveGrant};
use tollgate::token::{GrantRequest, TokenDigest, TokenOrigin, TokenStore};

use clocks::{Pauses, Watch, waited_for_a_core};

#[global_allocator]
static ALLOCATOR: Cap<std::alloc::System> = Cap::new(std::alloc::System, usize::MAX);

const WEEK: Duration = Duration::from_secs(7 * 86_400);
const PER_USER: usize = 100;
const SLICE: usize = 256;

fn main() {
    let sizes = std::env::args()
        .skip(1)
        .filter_map(|size| size.parse().ok());
    let sizes: Vec<usize> = sizes.collect();
    let sizes = match sizes.is_empty() {
        true => vec![100_000],
        false => sizes,
    };
    for size in sizes {
        println!("\n### {size} live tokens, {PER_USER} a user, ends spread over a week\n");
        println!("| what | figure |\n| --- | --- |");
        Bench::new(size).run();
    }
}

struct Bench {
    size: usize,
    digests: Vec<TokenDigest>,
    doomed: Vec<TokenDigest>,
}

impl Bench {
    fn new(size: usize) -> Self {
        let digest = |kind: &'static str| {
            move |number: usize| TokenDigest::of(&format!("tg_{kind}_{number:040}"))
        };
        let mut digests: Vec<TokenDigest> = (0..size).map(digest("kept")).collect();
        // In the form in which a file stores them.
        digests.sort_unstable();
        let doomed = (0..size.min(1_000_000)).map(digest("doomed")).collect();
        Self {
            size,
            digests,
            doomed,
        }
    }

    fn run(&self) {
        self.restore();
        let store = self.insert();
        self.find(&store);
        self.pauses(&store);
    }

    /// Every token once, in an order unrelated to the map's.
    fn shuffled(&self) -> impl Iterator<Item = (usize, &TokenDigest)> {
        let step = 7_368_787;
        let places = (0..self.size).map(move |number| number * step % self.size);
        places.map(|place| (place, &self.digests[place]))
    }

    fn restore(&self) {
        let now = tollgate::clock::unix_millis();
        let users: Vec<Arc<str>> = (0..=self.size / PER_USER)
            .map(|number| user(number).into())
            .collect();
        let before = ALLOCATOR.allocated();
        let store = store();
        let empty = ALLOCATOR.allocated() - before;
        row("an empty store", format!("{} KiB", empty / 1024));
        let watch = Watch::start();
        let mut restore = store.restore(TokenOrigin::Minted, |_| true);
        restore.users(&users);
        let mut part = restore.part();
        let user_of = |place: usize| place * 7919 % users.len(); // in random order, like digests
        let kept = |(place, digest): (usize, &TokenDigest)| LiveGrant {
            digest: (*digest).into(),
            user: &users[user_of(place)],
            token_user: user_of(place) as u32,
            role: None,
            epoch: 0,
            origin: TokenOrigin::Minted,
            ends_millis: now + lifetime(place).as_millis() as u64,
        };
        let mut all = self.digests.iter().enumerate().map(kept).peekable();
        while all.peek().is_some() {
            part(&all.by_ref().take(512).collect::<Vec<_>>());
        }
        drop(part);
        restore.finish();
        let spent = watch.each(self.size);
        assert_eq!(store.len(), self.size);
        row("restore, a token", spent);
        let bytes = ALLOCATOR.allocated() - before;
        row("bytes a token, restored", self.bytes(bytes));
    }

    fn insert(&self) -> Arc<TokenStore> {
        let before = ALLOCATOR.allocated();
        let store = store();
        let is_over = AtomicBool::new(false);
        let pauses = std::thread::scope(|scope| {
            let known = &self.digests[0];
            insert(&store, *known, &user(0), WEEK);
            let looking = scope.spawn(|| pauses(&store, std::slice::from_ref(known), &is_over));
            let watch = Watch::start();
            for (place, digest) in self.shuffled() {
                insert(&store, *digest, &user(place / PER_USER), lifetime(place));
            }
            let spent = watch.each(self.size);
            is_over.store(true, Ordering::Relaxed);
            row("insert, a token", spent);
            looking.join().expect("no panic")
        });
        let bytes = ALLOCATOR.allocated() - before;
        row("bytes a token, inserted one by one", self.bytes(bytes));
        row(
            "look-up of one token while all those are inserted",
            pauses.text(),
        );
        store
    }

    fn bytes(&self, bytes: usize) -> String {
        format!("{:.1}", bytes as f64 / self.size as f64)
    }

    fn find(&self, store: &Arc<TokenStore>) {
        let texts: Vec<String> = (0..100_000).map(|n| format!("tg_none_{n:035}")).collect();
        let watch = Watch::start();
        for text in &texts {
            black_box(TokenDigest::of(text));
        }
        row("digest of a token", watch.each(texts.len()));
        let sample: Vec<TokenDigest> = self.shuffled().take(1_000_000).map(|(_, d)| *d).collect();
        let look = || {
            let watch = Watch::start();
            for digest in &sample {
                assert!(black_box(store.find(digest)).is_some());
            }
            watch.each(sample.len())
        };
        row("find, 1 thread", look());
        row("find, 2 threads, each", by_two(look));
        let hot = || {
            let watch = Watch::start();
            for _ in 0..sample.len() {
                assert!(black_box(store.find(&sample[0])).is_some());
            }
            watch.each(sample.len())
        };
        row("find of one hot token, 1 thread", hot());
        row("find of one hot token, 2 threads, each", by_two(hot));
    }

    fn pauses(&self, store: &Arc<TokenStore>) {
        let count = self.doomed.len();
        let sample: Vec<TokenDigest> = self.shuffled().take(1_000_000).map(|(_, d)| *d).collect();
        for (number, digest) in self.doomed.iter().enumerate() {
            insert(store, *digest, &user(number / PER_USER), Duration::ZERO);
        }
        std::thread::sleep(Duration::from_secs(2));
        let (swept, pauses) = beside(store, &sample, || sweep(store));
        row(&format!("sweep of {count} expired, a token"), swept);
        row("look-up meanwhile", pauses.text());

        for digest in &self.doomed {
            insert(store, *digest, "big", WEEK);
        }
        let (spent, pauses) = beside(store, &sample, || {
            let watch = Watch::start();
            let ended = store.revoke_user("big").now_or_never();
            assert_eq!(ended, Some(Ok(count)));
            let ended = watch.text();
            (ended, sweep(store))
        });
        row(&format!("logout of a user with {count}"), spent.0);
        row("and the sweep of those, a token", spent.1);
        row("look-up meanwhile", pauses.text());

        let ((), pauses) = beside(store, &sample, || {
            for digest in &self.doomed {
                insert(store, *digest, "big", Duration::from_secs(60));
            }
        });
        row(&format!("look-up while {count} log in"), pauses.text());
    }
}

fn user(number: usize) -> String {
    format!("user-{number:07}")
}

fn lifetime(place: usize) -> Duration {
    let spread = WEEK.as_secs() as usize;
    Duration::from_secs(3600 + (place * 104_729 % spread) as u64)
}

fn store() -> Arc<TokenStore> {
    let settings = UsersConfig {
        directory: DirectoryKind::Gateway,
        unknown_tokens: UnknownTokens::Reject,
        token_lifetime: WEEK,
        max_tokens_per_user: usize::MAX,
        at_token_cap: tollgate::config::AtTokenCap::EndOldest,
        on_password_change: tollgate::config::OnPasswordChange::EndOthers,
        max_tokens: usize::MAX,
        first_admin: None,
        hashing_slots: 1,
        ..UsersConfig::default()
    };
    TokenStore::new(&settings, Metrics::new())
}

fn insert(store: &TokenStore, digest: TokenDigest, user: &str, lifetime: Duration) {
    let wanted = GrantRequest {
        user,
        role: None,
        lifetime,
        origin: TokenOrigin::Minted,
        epoch: store.epoch(user),
        revision: None,
    };
    let inserted = store.insert(digest, wanted).now_or_never();
    assert!(matches!(inserted, Some(Ok(_))), "memory does not wait");
}

/// Sweeps as the sweep task does; returns the duration per token.
fn sweep(store: &TokenStore) -> String {
    let watch = Watch::start();
    let mut removed = 0;
    loop {
        let swept = store.sweep(SLICE);
        removed += swept.removed;
        if swept.seen == 0 {
            return watch.each(removed);
        }
        std::thread::yield_now();
    }
}

/// Runs `work` while another thread looks tokens up.
fn beside<T>(store: &TokenStore, sample: &[TokenDigest], work: impl FnOnce() -> T) -> (T, Pauses) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| pauses(store, sample, &is_over));
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        (done, looking.join().expect("no panic"))
    })
}

fn pauses(store: &TokenStore, sample: &[TokenDigest], is_over: &AtomicBool) -> Pauses {
    let mut pauses = Pauses::default();
    let mut waited = waited_for_a_core();
    for digest in sample.iter().cycle() {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        assert!(black_box(store.find(digest)).is_some());
        let mut took = begun.elapsed().as_nanos() as u64;
        if took > 20_000 {
            pauses.longest_plain = pauses.longest_plain.max(took);
            let now = waited_for_a_core();
            took = took.saturating_sub(now - waited);
            waited = now;
        }
        pauses.each.push(u32::try_from(took).unwrap_or(u32::MAX));
        if pauses.each.len() == pauses.each.capacity() {
            pauses.fold();
        }
    }
    pauses.fold();
    pauses
}

/// The result of two threads that do the same at the same time.
fn by_two(work: impl Fn() -> String + Sync) -> String {
    let both = std::thread::scope(|scope| {
        let (one, other) = (scope.spawn(&work), scope.spawn(&work));
        [one, other].map(|thread| thread.join().expect("no panic"))
    });
    both.join("; ")
}

fn row(what: &str, figure: impl std::fmt::Display) {
    println!("| {what} | {figure} |");
}
