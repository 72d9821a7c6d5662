//! The documents are correct: their configurations pass `check`, their commands run and print
//! what the document says. The info string of a block says what the test does with it
//! (`blocks.rs`).

mod blocks;
mod material;
mod situation;
#[path = "../../../src/config/tests/switched_on.rs"]
mod switched_on;

use std::path::Path;
use std::process::{Command, Output};

use blocks::{Kind, blocks, documents, inline_commands, top};
use situation::{Situation, has_lines, named_programs};

use crate::harness::program::binary;

/// The configuration to which a `toml part` is appended.
const BASE: &str = r#"
[[listener]]
address = "127.0.0.1:8443"
[upstream.main]
url = "https://webapp.internal"
login = { username = "admin", password = { file = "webapp-password" } }
"#;

/// Runs `tollgate check` on a configuration, with all files that it names.
fn check(text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let text = material::moved(text, folder.path());
    material::provide(&text, folder.path());
    let file = folder.path().join("config.toml");
    std::fs::write(&file, &text).unwrap();
    let mut command = Command::new(binary());
    command.args(["check", "--config"]).arg(&file);
    command.output().unwrap()
}

/// Checks that there is neither a problem nor a warning.
fn is_good(text: &str, location: &str) {
    let output = check(text);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stderr.is_empty(),
        "{location}: {stderr}\n{text}"
    );
}

#[test]
fn every_configuration_in_the_documents_is_good() {
    let mut count = 0;
    for block in documents().iter().flat_map(|document| blocks(document)) {
        match block.kind {
            Kind::Config => is_good(&block.text, &block.location),
            Kind::ConfigPart => is_good(&format!("{BASE}{}", block.text), &block.location),
            _ => continue,
        }
        count += 1;
    }
    assert!(count >= 2, "the blocks were not found");
}

#[test]
fn every_configuration_that_is_shipped_is_good() {
    let example = std::fs::read_to_string(top().join("config.toml")).unwrap();
    is_good(&example, "config.toml");
    for text in switched_on::switched_on(&example) {
        // Keys that exclude each other may cause warnings.
        let output = check(&text);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}\n{text}");
    }
    let mut count = 0;
    let entries = ["deploy", "examples"].map(|folder| std::fs::read_dir(top().join(folder)));
    for entry in entries.into_iter().flat_map(Result::unwrap) {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            is_good(
                &std::fs::read_to_string(&path).unwrap(),
                &path.display().to_string(),
            );
            count += 1;
        }
    }
    assert!(count > 5, "deploy/ and examples/ have {count}");
}

#[test]
fn every_command_within_a_sentence_exists() {
    let all: Vec<String> = documents()
        .iter()
        .flat_map(|document| inline_commands(document))
        .collect();
    assert!(all.len() > 10, "the commands were not found");
    for command in all {
        let words = command.split_whitespace().skip(1);
        let words = words.take_while(|word| !matches!(*word, "<" | ">" | "|"));
        let output = Command::new(binary())
            .args(words)
            .arg("--help")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {stderr}");
    }
}

#[test]
fn every_command_in_a_block_runs_and_prints_what_the_document_says() {
    let mut count = 0;
    for document in documents() {
        count += run(&document);
    }
    assert!(count >= 6, "only {count} blocks were run");
}

/// Runs a document from beginning to end; returns how many blocks were run.
fn run(document: &Path) -> usize {
    let mut running: Option<Situation> = None;
    let mut printed = String::new();
    let mut count = 0;
    for block in blocks(document) {
        let (location, kind, text) = (block.location, block.kind, block.text);
        match &kind {
            Kind::Text | Kind::Config | Kind::ConfigPart => continue,
            Kind::NoRun => {
                let programs = named_programs(&text);
                assert!(
                    !programs.is_empty(),
                    "{location}: names no program of the tree"
                );
                for program in programs {
                    assert!(
                        top().join(program).is_file(),
                        "{location}: no {}",
                        program.display()
                    );
                }
            }
            Kind::Serves => {
                let mut situation = Situation::shipped();
                situation.serve(text.trim());
                printed = situation.served();
                running = Some(situation);
            }
            Kind::Shell => {
                let situation = running.get_or_insert_with(Situation::shipped);
                printed = situation.run(&text);
            }
            Kind::ShellWith(name) => {
                let situation = Situation::named(name);
                printed = situation.run(&text);
                running.get_or_insert(situation);
            }
            Kind::Output => is_printed(running.as_ref(), &printed, &text, &location),
            Kind::TryItOutput => {
                let situation = running.as_ref().expect("a program is running");
                let served = situation.served();
                let (_, lines) = served.split_once("Try it:").expect("a section Try it");
                let is_command =
                    |line: &&str| line.starts_with("TOKEN=") || line.starts_with("curl ");
                let lines: Vec<&str> = lines.lines().map(str::trim).filter(is_command).collect();
                assert_eq!(lines.len(), 2, "{lines:?}");
                is_printed(
                    Some(situation),
                    &situation.run(&lines.join("\n")),
                    &text,
                    &location,
                );
            }
        }
        count += 1;
    }
    if let Some(mut situation) = running.filter(Situation::is_serving) {
        situation.stop();
    }
    count
}

fn is_printed(situation: Option<&Situation>, printed: &str, documented: &str, location: &str) {
    let documented = match situation {
        Some(situation) => situation.ports.put_into(documented),
        None => documented.to_owned(),
    };
    assert!(
        has_lines(printed, &documented),
        "{location} documents\n{documented}\nbut the output was\n{printed}"
    );
}
