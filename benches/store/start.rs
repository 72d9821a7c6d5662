//! A file with many tokens: its size and the duration of a start, compared with the time to read
//! the file alone.

use std::fmt::Write as _;
use std::io::Read as _;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::{Builder, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use rustix::fs::{Advice, fadvise};
use tollgate::clock;
use tollgate::profiles::Role;
use tollgate::store::{
    ExportRecord, GrantRecord, OfflineStore, RecordDigest, StoreChange, TokenOrigin,
};

use super::open;

/// In milliseconds.
const DAY: u64 = 86_400_000;

pub(crate) async fn run(folder: &Path) -> String {
    let counts = std::env::var("TOLLGATE_BENCH_TOKENS").unwrap_or_else(|_| "1000000".to_owned());
    let mut text = String::from(
        "| tokens | users | file | a token | bytes in order | rows by the engine alone | start | processor time of it |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let mut from_disk = String::from(
        "\nFrom the disk, and after a kill:\n\n\
         | tokens | users | bytes in order | rows by the engine alone | start | start after a kill |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for count in counts.split(',') {
        let count: u64 = count.trim().parse().unwrap();
        for users in [1000, count / 10] {
            let path = folder.join(format!("{count}-{users}.redb"));
            let [memory_row, disk_row] = rows(&path, count, users).await;
            text.push_str(&memory_row);
            from_disk.push_str(&disk_row);
        }
    }
    text.push_str(&from_disk);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let _ = write!(
        text,
        "\nIn the first table, and for the start after a kill, the file was in the kernel's memory; for the rest of the second, the\n\
         kernel's copy was dropped before. A start (open and load) uses {cores} threads, the reads one. Best of three."
    );
    text
}

/// The rows of both tables.
async fn rows(path: &Path, count: u64, users: u64) -> [String; 2] {
    let begin = Instant::now();
    fill(path, count, users);
    println!(
        "{count} tokens of {users} users written in {:.1?}",
        begin.elapsed()
    );
    let facts = std::fs::metadata(path).unwrap();
    let size = facts.blocks() * 512; // without the space allocated in advance
    let warm = (best(|| read(path)), best(|| scan(path, count)));
    let from_disk = |measure: fn(&Path, u64) -> Duration| {
        best(|| {
            forget(path);
            measure(path, count)
        })
    };
    let cold = (from_disk(|path, _| read(path)), from_disk(scan));
    let start = load(path, count, false).await;
    let start_from_disk = load(path, count, true).await.0;
    // As a kill leaves it: not closed, after a last commit.
    let (store, _, _) = open(path);
    let change = StoreChange::RemoveGrant(RecordDigest([0; 32]));
    store.commit(change).await.unwrap();
    let killed = path.with_extension("killed");
    std::fs::copy(path, &killed).unwrap();
    store.close().await;
    let begin = Instant::now();
    let (store, tokens, _) = open(&killed);
    tokens.load(TokenOrigin::Minted, |_| true).await.unwrap();
    let after_a_kill = begin.elapsed();
    store.close().await;
    std::fs::remove_file(path).unwrap();
    std::fs::remove_file(killed).unwrap();
    let memory_row = format!(
        "| {count} | {users} | {} MB | {} bytes | {:.2?} | {:.2?} | {:.2?} | {:.2?} |\n",
        size / 1_000_000,
        size / count,
        warm.0,
        warm.1,
        start.0,
        start.1,
    );
    let disk_row = format!(
        "| {count} | {users} | {:.2?} | {:.2?} | {start_from_disk:.2?} | {after_a_kill:.2?} |\n",
        cold.0, cold.1,
    );
    [memory_row, disk_row]
}

fn best(mut measure: impl FnMut() -> Duration) -> Duration {
    (0..3).map(|_| measure()).min().unwrap()
}

fn fill(path: &Path, count: u64, users: u64) {
    let offline = OfflineStore::open_or_create(path).unwrap();
    let mut import = offline.import().unwrap();
    let now = clock::unix_millis();
    let names: Vec<Arc<str>> = (0..users)
        .map(|user| format!("user-{user}").into())
        .collect();
    for number in 0..count {
        let grant = GrantRecord {
            digest: RecordDigest(rand::random()),
            user: Arc::clone(&names[(number % users) as usize]),
            role: Some(Role::User),
            ends_millis: now + rand::random_range(DAY..8 * DAY),
            epoch: 0,
            origin: TokenOrigin::Minted,
        };
        import.put(ExportRecord::Grant(grant)).unwrap();
    }
    import.commit().unwrap();
}

/// Empties the page cache, so that the next read of the file reads the disk.
fn forget(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

/// Reads the file from its beginning to its end, as `cat` does.
fn read(path: &Path) -> Duration {
    let begin = Instant::now();
    let mut file = std::fs::File::open(path).unwrap();
    let mut piece = vec![0; 1 << 20];
    while file.read(&mut piece).unwrap() > 0 {}
    begin.elapsed()
}

/// Reads each grant's row and drops it, with a gateway's page cache (`CACHE_OF_A_GATE`).
fn scan(path: &Path, count: u64) -> Duration {
    let grants: TableDefinition<'_, &[u8; 32], &[u8; 16]> = TableDefinition::new("grants");
    let begin = Instant::now();
    let mut builder = Builder::new();
    let database = builder.set_cache_size(2 << 20).open(path).unwrap();
    let table = database.begin_read().unwrap().open_table(grants).unwrap();
    let mut rows = 0;
    let mut cursor = table.lower_bound(Bound::<&[u8; 32]>::Unbounded).unwrap();
    while let Some(row) = cursor.next().unwrap() {
        std::hint::black_box(row);
        rows += 1;
    }
    assert_eq!(rows, count);
    begin.elapsed()
}

/// Elapsed time, and processor time of all threads.
async fn load(path: &Path, count: u64, is_cold: bool) -> (Duration, Duration) {
    let mut least = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        if is_cold {
            forget(path);
        }
        let (begin, spent) = (Instant::now(), processor_time());
        let (store, tokens, _) = open(path);
        let opened = begin.elapsed();
        tokens.load(TokenOrigin::Minted, |_| true).await.unwrap();
        let took = begin.elapsed();
        println!("  opened in {opened:.2?}, loaded in {:.2?}", took - opened);
        assert_eq!(tokens.len() as u64, count);
        least = least.min((took, processor_time() - spent));
        store.close().await;
    }
    least
}

/// Processor time of this process, in steps of ten milliseconds.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}
