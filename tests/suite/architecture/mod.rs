//! The structure of the source: modules use only lower rows, folders have no circles, files stay
//! short, names are plain words.

mod documents;
mod names;
mod profiles;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use source::{rust_files, siblings, source};

const MAX_LINES: usize = 400;

/// Rows as in docs/ARCHITECTURE.md; a module uses only rows below its own.
fn row(module: &str) -> u8 {
    match module {
        "main" | "cli" => 9,
        "app" => 8,
        "listener" | "admin" | "emulator" => 7,
        "pipeline" => 6,
        "token" => 5,
        "identity" | "upstream" | "logging" => 4,
        "store" => 3,
        "config" => 2,
        "accept_backoff" | "profiles" | "lifecycle" | "metrics" | "dns" | "shares" | "waker"
        | "watched_files" => 1,
        "backoff" | "clock" | "error_chain" | "identity_hasher" | "lazy_timer" | "secret"
        | "staggered" | "sync" | "via" => 0,
        other => panic!("module {other} has no row yet"),
    }
}

#[test]
fn modules_only_use_rows_below_them() {
    let files = source();
    let known: BTreeSet<Vec<String>> = files.iter().map(|file| file.module.clone()).collect();
    let mut wrong = BTreeSet::new();
    let mut uses = 0;
    for file in files.iter().filter(|file| !file.module.is_empty()) {
        for used in file.used_modules(&known) {
            let (from, to) = (file.top(), used[0].as_str());
            if from == to {
                continue;
            }
            uses += 1;
            if row(to) >= row(from) && !(from == "main" && to == "cli") {
                wrong.insert(format!("{} must not use {to}", file.path.display()));
            }
        }
    }
    assert!(uses > 200, "the scan found almost nothing");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_files_of_a_folder_use_each_other_in_a_circle() {
    let mut circles = Vec::new();
    let mut folders = 0;
    for (folder, uses) in siblings(&source()) {
        folders += 1;
        let left = without_ends(uses);
        if !left.is_empty() {
            circles.push((folder.join("/"), left));
        }
    }
    assert!(folders > 10, "the scan found almost nothing");
    assert!(circles.is_empty(), "{circles:#?}");
}

/// Removes files that use no remaining file, until only circles and their users remain.
fn without_ends(
    mut uses: BTreeMap<String, BTreeSet<String>>,
) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let left: BTreeSet<String> = uses.keys().cloned().collect();
        let before = uses.len();
        for used in uses.values_mut() {
            used.retain(|name| left.contains(name));
        }
        uses.retain(|_, used| !used.is_empty());
        if uses.len() == before {
            return uses;
        }
    }
}

#[test]
fn files_stay_short_enough_to_read() {
    let folders = ["src", "tests", "benches"];
    let files = folders.iter().flat_map(|folder| rust_files(folder));
    let long: Vec<String> = files
        .map(|path| (fs::read_to_string(&path).unwrap().lines().count(), path))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .map(|(lines, path)| format!("{} has {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "split these files: {long:#?}");
}

#[test]
fn only_the_clock_reads_wall_time_and_only_reject_chooses_a_refusals_status() {
    for file in source() {
        let text = fs::read_to_string(&file.path).unwrap();
        let location = file.path.display();
        if file.module != ["clock"] {
            assert!(!text.contains("SystemTime::now"), "{location}");
        }
        if file.top() == "pipeline" && file.module != ["pipeline", "reject"] {
            let statuses = ["FORBIDDEN", "TOO_MANY", "BAD_"];
            for status in statuses.map(|name| format!("StatusCode::{name}")) {
                assert!(!text.contains(&status), "{location} picks {status}");
            }
        }
    }
}
