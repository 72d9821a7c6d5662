//! `check` and `serve` refuse the files of an upstream's way in the same words.

use std::path::Path;
use std::process::Command;

use crate::harness::program::binary;
use crate::harness::{Setup, emulator, secret, written};

/// The last line that a command prints, without the alignment.
fn problem(command: &str, file: &Path) -> String {
    let mut tollgate = Command::new(binary());
    let output = tollgate.arg(command).arg("--config").arg(file).output();
    let output = output.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = text.trim_end().lines().next_back().unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_files_are_refused_by_check_and_serve_in_the_same_words() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    let certificate = "client_certificate = \"certs/server.pem\"";
    let proxy = "proxy = \"http://127.0.0.1:1\"\nproxy_login = { username = \"a\", ";
    for (lines, expected) in [
        (
            format!("{certificate}\nclient_key = \"certs/ca.key\""),
            &["upstream.main.client_key", "ca.key does not belong"][..],
        ),
        (
            format!("{certificate}\nclient_key = \"garbage\""),
            &["upstream.main.client_key", "garbage holds no private key"],
        ),
        (
            format!("{certificate}\nclient_key = \"missing\""),
            &["upstream.main.client_key", "no such file"],
        ),
        (
            format!("{proxy}password = {{ file = \"empty\" }} }}"),
            &["upstream.main.proxy_login.password", "which is empty"],
        ),
        (
            format!("{proxy}password = {{ file = \"missing\" }} }}"),
            &["upstream.main.proxy_login.password", "no such file"],
        ),
    ] {
        let setup = Setup::default().upstream(&lines);
        let file = written(folder.path(), &webapp, &setup, |text| text);
        secret(&folder.path().join("garbage"), "garbage");
        secret(&folder.path().join("empty"), "\n");
        let checked = problem("check", &file);
        for part in expected {
            assert!(checked.contains(part), "{part}: {checked}");
        }
        assert_eq!(checked, problem("serve", &file));
    }
}
