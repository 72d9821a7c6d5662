//! The program's own source, parsed: files as modules, and the paths by which they use others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// One file of `src/`.
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    /// Its module path below the crate, such as `["listener", "tcp", "accept"]`.
    pub(super) module: Vec<String>,
    pub(super) syntax: syn::File,
}

impl SourceFile {
    /// The top-level module that the file belongs to.
    pub(super) fn top(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    pub(super) fn is_test(&self) -> bool {
        self.module.iter().any(|part| part == "tests")
    }

    /// All modules that the file names, brace imports included, inline test modules excluded.
    pub(super) fn used_modules(&self, known: &BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
        let mut paths = PathCollector::default();
        paths.visit_file(&self.syntax);
        let absolute = paths
            .found
            .iter()
            .filter_map(|path| self.absolute(path, known));
        absolute.filter(|module| *module != self.module).collect()
    }

    /// The longest module that a path of this file names; None: a path of another crate.
    fn absolute(&self, path: &[String], known: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let full: Vec<String> = match path.first().map(String::as_str)? {
            "crate" => path[1..].to_vec(),
            "self" => [&self.module, &path[1..]].concat(),
            "super" => {
                let base = self.module.len().checked_sub(ups)?;
                [&self.module[..base], &path[ups..]].concat()
            }
            child if known.contains(&[self.module.clone(), vec![child.to_owned()]].concat()) => {
                [&self.module[..], path].concat()
            }
            _ => return None,
        };
        let lengths = (1..=full.len()).rev();
        let mut modules = lengths.map(|length| full[..length].to_vec());
        modules.find(|module| known.contains(module))
    }
}

/// Every `.rs` file below `folder`, a folder of the project.
pub(super) fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
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

/// `src/`, parsed.
pub(super) fn source() -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let parsed = |path: PathBuf| {
        let inside = path.strip_prefix(&root).unwrap().with_extension("");
        let mut module: Vec<String> = inside
            .iter()
            .map(|part| part.to_str().unwrap().to_owned())
            .collect();
        module.pop_if(|last| last == "mod" || last == "lib");
        let text = fs::read_to_string(&path).unwrap();
        SourceFile {
            syntax: syn::parse_file(&text).unwrap(),
            path,
            module,
        }
    };
    let files: Vec<SourceFile> = rust_files("src").into_iter().map(parsed).collect();
    assert!(files.len() > 100, "the scan found almost nothing");
    files
}

/// Which siblings of each folder use which: folder, then user, then used.
pub(super) fn siblings(
    files: &[SourceFile],
) -> BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>> {
    let known: BTreeSet<Vec<String>> = files.iter().map(|file| file.module.clone()).collect();
    let mut folders: BTreeMap<_, BTreeMap<_, BTreeSet<_>>> = BTreeMap::new();
    for file in files.iter().filter(|file| !file.is_test()) {
        for used in file.used_modules(&known) {
            let pairs = file.module.iter().zip(&used);
            let shared = pairs.take_while(|(user, used)| user == used).count();
            if let (Some(user), Some(used)) = (file.module.get(shared), used.get(shared)) {
                let folder = folders.entry(file.module[..shared].to_vec()).or_default();
                let uses: &mut BTreeSet<String> = folder.entry(user.clone()).or_default();
                uses.insert(used.clone());
            }
        }
    }
    folders
}

/// Paths as written; a `use` tree yields one for each leaf.
#[derive(Default)]
struct PathCollector {
    found: Vec<Vec<String>>,
}

impl PathCollector {
    fn add_tree(&mut self, tree: &syn::UseTree, mut prefix: Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.add_tree(&path.tree, prefix);
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(tree, prefix.clone());
                }
            }
            syn::UseTree::Name(name) => {
                prefix.push(name.ident.to_string());
                self.found.push(prefix);
            }
            syn::UseTree::Rename(rename) => {
                prefix.push(rename.ident.to_string());
                self.found.push(prefix);
            }
            _ => self.found.push(prefix),
        }
    }

    /// Paths within the arguments of a macro, which are not parsed.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                TokenTree::Ident(word) => {
                    if colons != 2 {
                        self.found.push(std::mem::take(&mut path));
                    }
                    path.push(word.to_string());
                    colons = 0;
                }
                other => {
                    self.found.push(std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.add_tokens(group.stream());
                    }
                }
            }
        }
        self.found.push(path);
        self.found.retain(|path| path.len() > 1);
    }
}

impl<'ast> Visit<'ast> for PathCollector {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&item.tree, Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts = path.segments.iter();
        self.found
            .push(parts.map(|part| part.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.add_tokens(call.tokens.clone());
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        // Inline test modules see the file's own items through `super`.
        if module.ident != "tests" {
            visit::visit_item_mod(self, module);
        }
    }
}
