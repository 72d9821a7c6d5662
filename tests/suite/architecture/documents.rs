//! What documents say of the source is so.

use std::fs;
use std::path::{Path, PathBuf};

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
