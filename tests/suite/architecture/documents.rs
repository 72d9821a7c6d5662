//! Documents name files and metrics that exist, and their lines are short.

use std::fs;
use std::path::{Path, PathBuf};

/// Every Markdown file of the project, without generated folders.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR"))];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// Whether a code span or link of a document is the path of a file or folder of the project.
fn is_path_of_the_project(name: &str) -> bool {
    let is_generated = ["/", "http", "target/"]
        .iter()
        .any(|start| name.starts_with(start));
    let is_folder = name.trim_end_matches('/').contains('/') && name.ends_with('/');
    let is_file = [".rs", ".md", ".toml", ".sh", ".py", ".yml", ".yaml", ".lua"]
        .iter()
        .any(|end| name.ends_with(end));
    name.contains('/')
        && (is_file || is_folder)
        && !is_generated
        && !name.contains([' ', '*', '<', '"'])
}

/// Documents name files from the top, from `src/` or relative to the document.
#[test]
fn documents_name_files_that_exist() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = documents();
    assert!(documents.len() > 15, "found {} documents", documents.len());
    let mut named = 0;
    let mut missing = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for name in text.split('`').skip(1).step_by(2).chain(links) {
            if !is_path_of_the_project(name) {
                continue;
            }
            named += 1;
            let parent = document.parent().unwrap();
            let locations = [top, &top.join("src"), parent];
            if !locations
                .iter()
                .any(|location| location.join(name).exists())
            {
                missing.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(named > 40, "the scan found {named}");
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Words of a text that begin with `tollgate_`, without what Prometheus adds to histograms.
fn metrics_in(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text.split(move |letter| !is_part(letter));
    let metrics = words.filter(|word| word.starts_with("tollgate_"));
    metrics.map(|word| {
        let ends = ["_bucket", "_sum", "_count"];
        let end = ends.iter().find_map(|end| word.strip_suffix(end));
        end.unwrap_or(word)
    })
}

#[test]
fn documents_name_metrics_that_exist() {
    let known: String = super::rust_files("src/metrics")
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let mut named = 0;
    let mut missing = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for metric in metrics_in(&text) {
            named += 1;
            // `tollgate_session_*` names a group.
            if !known.contains(&format!("\"{metric}")) {
                missing.push(format!("{}: {metric}", document.display()));
            }
        }
    }
    assert!(named > 40, "the scan found {named}");
    assert!(missing.is_empty(), "{missing:#?}");
}

const MAX_LINE: usize = 120;

/// Lines of `text` that are too long, with their numbers. Quoted output of a program is exempt,
/// and so is a line with a word that cannot be broken, such as a password hash.
fn long_lines(text: &str) -> Vec<usize> {
    let mut is_output = false;
    let mut long = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            is_output = line.starts_with("```text output");
        }
        let has_long_word = line.split(' ').any(|word| word.len() > MAX_LINE / 2);
        if line.chars().count() > MAX_LINE && !is_output && !has_long_word {
            long.push(index + 1);
        }
    }
    long
}

#[test]
fn lines_of_documents_have_at_most_120_characters() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml");
    let mut long = Vec::new();
    for document in documents().into_iter().chain([example]) {
        let text = fs::read_to_string(&document).unwrap();
        let numbers = long_lines(&text).into_iter();
        long.extend(numbers.map(|number| format!("{}:{number}", document.display())));
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn a_long_line_is_found_unless_it_is_output_or_one_long_word() {
    let words = "word ".repeat(30);
    let text = format!(
        "{words}\n```text output\n{words}\n```\n{words}\n{}\n",
        "x".repeat(130)
    );
    assert_eq!(long_lines(&text), [1, 5]);
}
