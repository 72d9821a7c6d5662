//! Export and import of lines.

use super::*;
use crate::store::{RecordDigest, TokenOrigin};

fn grant(byte: u8) -> ExportRecord {
    ExportRecord::Grant(GrantRecord {
        digest: RecordDigest([byte; 32]),
        user: "anna".into(),
        role: None,
        ends_millis: 1,
        epoch: 0,
        origin: TokenOrigin::Minted,
    })
}

fn exported(count: u8) -> String {
    let mut out = Vec::new();
    let mut exporter = RecordExporter::begin(&mut out).unwrap();
    for byte in 0..count {
        exporter.put(&grant(byte)).unwrap();
    }
    assert_eq!(exporter.end().unwrap().grants, u64::from(count));
    String::from_utf8(out).unwrap()
}

fn read(text: &str) -> (Vec<ExportRecord>, Result<(), TransferError>) {
    let mut records = Vec::new();
    let outcome = read_lines(text.as_bytes(), |record| {
        records.push(record);
        Ok(())
    });
    (records, outcome)
}

#[test]
fn an_export_is_read_back() {
    let (records, outcome) = read(&exported(3));
    outcome.unwrap();
    assert_eq!(records, [grant(0), grant(1), grant(2)]);
}

#[test]
fn truncated_exports_are_noticed() {
    let text = exported(3);
    for end in 0..text.trim_end().len() {
        assert!(read(&text[..end]).1.is_err(), "cut at {end}");
    }
    let lines: Vec<&str> = text.lines().collect();
    let without = [&lines[..2], &lines[3..]].concat().join("\n");
    let error = read(&without).1.unwrap_err().to_string();
    assert!(
        error.contains("3 records were written, 2 are here"),
        "{error}"
    );
}

#[test]
fn every_bad_line_is_reported_with_its_number_and_without_its_text() {
    let text = exported(2);
    let mut lines: Vec<&str> = text.lines().collect();
    lines.insert(1, "{\"kind\":\"user\",\"name\":\"canary\"}");
    lines.insert(2, "canary");
    lines.insert(4, "{\"kind\":\"token\",\"token\":\"canary\"}");
    let error = read(&lines.join("\n")).1.unwrap_err().to_string();
    for expected in ["3 bad lines", "line 2: ", "line 3: is not JSON", "line 5: "] {
        assert!(error.contains(expected), "{expected} is not in {error}");
    }
    assert!(!error.contains("canary"), "{error}");
}

#[test]
fn other_files_and_newer_exports_are_refused() {
    for (text, expected) in [
        ("", "cut off"),
        ("hello\n", "line 1: is not JSON"),
        ("{\"kind\":\"end\",\"records\":0}\n", "not the first line"),
        ("{\"kind\":\"export\",\"layout\":2}\n", "newer version"),
        ("{\"kind\":\"export\",\"layout\":1}\n", "cut off"),
    ] {
        let error = read(text).1.unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
