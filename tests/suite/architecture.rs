//! The borders are a test: rows look down, files stay short.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const LONGEST: usize = 400;

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
        "webapp" | "lifecycle" | "metrics" | "names" => 1,
        "causes" | "clock" | "hashed" | "secret" | "shares" | "staggered" | "via" => 0,
        other => panic!("module {other} has no row yet"),
    }
}

struct Use {
    from: String,
    to: String,
    place: String,
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                found.push(path);
            }
        }
    }
    found
}

fn module_of(path: &Path) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let inside = path.strip_prefix(root).unwrap();
    let first = inside.components().next().unwrap().as_os_str();
    first.to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// Every mention of another top-level module, in `use` lines and in paths.
fn uses() -> Vec<Use> {
    let mut all = Vec::new();
    for path in rust_files("src") {
        let from = module_of(&path);
        if from == "lib" {
            continue;
        }
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for part in code.split("crate::").skip(1) {
                let to: String = part
                    .chars()
                    .take_while(|c| c.is_ascii_lowercase())
                    .collect();
                if !to.is_empty() && to != from {
                    let place = format!("{}:{}", path.display(), number + 1);
                    all.push(Use {
                        from: from.clone(),
                        to,
                        place,
                    });
                }
            }
        }
    }
    all
}

#[test]
fn modules_only_use_rows_below_them() {
    let all = uses();
    assert!(
        all.len() > 50,
        "the scan found almost nothing: is the path right?"
    );
    let wrong: BTreeSet<String> = all
        .iter()
        .filter(|u| row(&u.to) >= row(&u.from) && !(u.from == "main" && u.to == "cli"))
        .map(|u| format!("{} must not use {} ({})", u.from, u.to, u.place))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_stay_short_enough_to_read() {
    let files: Vec<PathBuf> = ["src", "tests", "benches"]
        .iter()
        .flat_map(|folder| rust_files(folder))
        .collect();
    assert!(files.len() > 40, "the scan found almost nothing");
    let long: Vec<String> = files
        .iter()
        .map(|path| (path, fs::read_to_string(path).unwrap().lines().count()))
        .filter(|(_, lines)| *lines > LONGEST)
        .map(|(path, lines)| format!("{} has {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "split by duty: {long:#?}");
}

#[test]
fn only_the_clock_reads_wall_time_and_only_reject_chooses_a_refusals_status() {
    for path in rust_files("src") {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name != "clock.rs" {
            assert!(!text.contains("SystemTime::now"), "{}", path.display());
        }
        if module_of(&path) == "pipeline" && name != "reject.rs" {
            for status in [
                "StatusCode::FORBIDDEN",
                "StatusCode::TOO_MANY",
                "StatusCode::BAD_",
            ] {
                assert!(!text.contains(status), "{} picks {status}", path.display());
            }
        }
    }
}

/// Files that documents name, from the top, from `src/` or beside the document.
#[test]
fn documents_name_files_that_exist() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
        .iter()
        .map(|name| top.join(name))
        .collect();
    for folder in ["docs", "examples", "benches"] {
        let all = fs::read_dir(top.join(folder)).unwrap();
        documents.extend(all.map(|entry| entry.unwrap().path()));
    }
    let mut named = 0;
    let mut missing = Vec::new();
    for document in documents
        .iter()
        .filter(|path| path.extension() == Some("md".as_ref()))
    {
        let text = fs::read_to_string(document).unwrap();
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for name in text.split('`').skip(1).step_by(2).chain(links) {
            let is_file = [".rs", ".md", ".toml", ".sh", ".py"]
                .iter()
                .any(|end| name.ends_with(end));
            if !is_file || !name.contains('/') || name.contains([' ', '*', '<']) {
                continue;
            }
            if name.starts_with('/') || name.starts_with("http") {
                continue;
            }
            named += 1;
            let beside = document.parent().unwrap();
            let places = [top, &top.join("src"), beside];
            if !places.iter().any(|place| place.join(name).exists()) {
                missing.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(named > 40, "the scan found {named}");
    assert!(missing.is_empty(), "{missing:#?}");
}
