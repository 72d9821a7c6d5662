//! Benchmarks of the file store and the shared store, run by hand: `cargo bench --bench store`.
//!
//! `-- logins`, `-- start`, `-- shared`  one of the three (default: all)
//! `--write PAGE`         writes the tables between their markers in that page
//!
//! TOLLGATE_BENCH_FOLDER  a folder on the disk to measure (default: the system's
//!                        folder for temporary files)
//! TOLLGATE_BENCH_TOKENS  tokens to start with (default 1000000), several with commas
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "measures real time, and stops where it cannot go on"
)]

mod logins;
#[path = "../gate/page.rs"]
mod page;
mod shared;
mod start;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tollgate::config;
use tollgate::metrics::Metrics;
use tollgate::store::Store;
use tollgate::token::TokenStore;

/// The program's allocator: it affects the duration of a start.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if !words.iter().any(|word| word == "--bench") {
        return; // `cargo test --benches` only checks that it builds
    }
    words.retain(|word| word != "--bench");
    let page = words.iter().position(|word| word == "--write").map(|at| {
        words.remove(at);
        PathBuf::from(words.remove(at))
    });
    let page = page.as_deref();
    let is_wanted = |part: &str| words.is_empty() || words.iter().any(|word| word == part);
    let place = std::env::var_os("TOLLGATE_BENCH_FOLDER");
    let place = place.map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(place).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        if is_wanted("logins") {
            page::put(page, "store logins", &logins::run(folder.path()).await);
        }
        if is_wanted("start") {
            page::put(page, "store start", &start::run(folder.path()).await);
        }
        if is_wanted("shared") {
            page::put(page, "store shared", &shared::run(folder.path()).await);
        }
    });
}

fn settings() -> config::UsersConfig {
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
