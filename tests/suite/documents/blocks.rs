//! The code in a document: fenced blocks with their info strings, and commands within
//! sentences.

use std::path::{Path, PathBuf};

/// What the test does with a block, by the info string after the three backticks. Other info
/// strings are errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `text`: for reading only.
    Text,
    /// `text output`: lines that the preceding `sh` block prints.
    Output,
    /// `text output-of=try-it`: printed by the lines under `Try it` of what `sh serves` prints.
    TryItOutput,
    /// `sh`: run, beside the programs that the document has started.
    Shell,
    /// `sh with=NAME`: run in that situation (`situation.rs`).
    ShellWith(String),
    /// `sh serves`: runs until the end of the document.
    Serves,
    /// `sh no-run`: cannot run in a test; the programs that it names by a path must exist.
    NoRun,
    /// `toml`: a whole configuration.
    Config,
    /// `toml part`: sections of one.
    ConfigPart,
}

#[derive(Clone, Debug)]
pub(super) struct Block {
    /// File and line, for messages.
    pub(super) location: String,
    pub(super) kind: Kind,
    pub(super) text: String,
}

fn kind(info: &str) -> Option<Kind> {
    Some(match info {
        "text" => Kind::Text,
        "text output" => Kind::Output,
        "text output-of=try-it" => Kind::TryItOutput,
        "sh" => Kind::Shell,
        "sh serves" => Kind::Serves,
        "sh no-run" => Kind::NoRun,
        "toml" => Kind::Config,
        "toml part" => Kind::ConfigPart,
        other => Kind::ShellWith(other.strip_prefix("sh with=")?.to_owned()),
    })
}

pub(super) fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and everything in docs/.
pub(super) fn documents() -> Vec<PathBuf> {
    let folder = std::fs::read_dir(top().join("docs")).unwrap();
    let mut all: Vec<_> = folder
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .collect();
    all.push(top().join("README.md"));
    assert!(all.len() > 5, "the folder is almost empty");
    all
}

/// Panics at a block without an info string, or with an unknown one.
pub(super) fn blocks(document: &Path) -> Vec<Block> {
    let text = std::fs::read_to_string(document).unwrap();
    let mut found: Vec<Block> = Vec::new();
    let mut is_open = false;
    for (number, line) in text.lines().enumerate() {
        match line.trim_start().strip_prefix("```") {
            Some(_) if is_open => is_open = false,
            Some(info) => {
                let location = format!("{}:{}", document.display(), number + 1);
                let kind = kind(info.trim()).unwrap_or_else(|| {
                    panic!(
                        "{location}: the info string {info:?} does not say what to do with the block"
                    )
                });
                let text = String::new();
                found.push(Block {
                    location,
                    kind,
                    text,
                });
                is_open = true;
            }
            None if is_open => {
                let text = &mut found.last_mut().unwrap().text;
                text.push_str(line);
                text.push('\n');
            }
            None => {}
        }
    }
    assert!(!is_open, "{}: a block has no end", document.display());
    found
}

/// Commands of the program within sentences: `tollgate check --config ...`.
pub(super) fn inline_commands(document: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(document).unwrap();
    let mut is_open = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_open = !is_open;
        } else if !is_open {
            let spans = line.split('`').skip(1).step_by(2);
            let commands = spans.filter(|span| span.starts_with("tollgate "));
            found.extend(commands.map(str::to_owned));
        }
    }
    found
}
