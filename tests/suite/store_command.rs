//! `tollgate store`, and starts with a store that cannot be used.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::harness::program::{Program, binary};
use crate::harness::{ADMIN, ADMIN_PASSWORD, Client, Setup, emulator, prepare, text};

fn run(file: &Path, arguments: &[&str], input: &[u8]) -> Output {
    use std::io::Write as _;
    let mut child = Command::new(binary())
        .args(arguments)
        .arg("--config")
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses before it reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn good(file: &Path, arguments: &[&str], input: &[u8]) -> String {
    let output = run(file, arguments, input);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn bad(file: &Path, arguments: &[&str], input: &[u8]) -> String {
    let output = run(file, arguments, input);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A gate's folder without a Webapp, which these tests do not need.
async fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let webapp = emulator().await;
    prepare(folder.path(), &webapp);
    let file = folder.path().join("config.toml");
    let setup = Setup::default();
    std::fs::write(
        &file,
        text(&setup, &format!("https://{}", webapp.address())),
    )
    .unwrap();
    (folder, file)
}

async fn logged_in(program: &Program, folder: &Path) -> String {
    let base = program.url("");
    let client = Client::of(folder, &base, reqwest::Client::builder());
    let client = client.logged_in(ADMIN, ADMIN_PASSWORD).await;
    client.token.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_moves_all_records_to_another_store_and_shows_no_secret() {
    let (here, file) = folder().await;
    let described = good(&file, &["check"], b"");
    let cost = "no key: the upstream's token is not kept, each start of each gate is one login";
    assert!(described.contains(cost), "{described}");
    let mut program = Program::serve(&file);
    let token = logged_in(&program, here.path()).await;
    let refused = run(&file, &["store", "export"], b"");
    assert_eq!(refused.status.code(), Some(1));
    let busy = String::from_utf8(refused.stderr).unwrap();
    assert!(busy.contains("in use by another process"), "{busy}");
    assert!(refused.stdout.is_empty(), "no output on failure");
    program.signal("TERM");
    assert_eq!(program.wait().code(), Some(0));

    let check = good(&file, &["store", "check"], b"");
    assert!(check.contains("good; 1 users, 0 keys, 1 tokens"), "{check}");
    let export = good(&file, &["store", "export"], b"");
    assert!(!export.contains(&token) && !export.contains(ADMIN_PASSWORD));
    assert!(
        export.contains("$argon2id$") && export.lines().count() >= 5,
        "{export}"
    );

    let (there, other) = folder().await;
    let cut = &export.as_bytes()[..export.len() / 2];
    let refused = bad(&other, &["store", "import"], cut);
    assert!(refused.contains("nothing was imported"), "{refused}");
    let broken = export.replace("\"kind\":\"grant\"", "\"kind\":\"grand\"");
    let refused = bad(&other, &["store", "import"], broken.as_bytes());
    assert!(
        refused.contains("1 bad lines") && refused.contains("line 4"),
        "{refused}"
    );
    let imported = good(&other, &["store", "import"], export.as_bytes());
    assert!(imported.contains("imported 1 users"), "{imported}");
    let refused = bad(&other, &["store", "import"], export.as_bytes());
    assert!(
        refused.contains("not empty") && refused.contains("--merge"),
        "{refused}"
    );
    let merged = good(&other, &["store", "import", "--merge"], export.as_bytes());
    assert!(merged.contains("there already"), "{merged}");
    let compact = good(&other, &["store", "compact"], b"");
    assert!(compact.contains("bytes, before"), "{compact}");
    assert_eq!(good(&other, &["store", "export"], b""), export);

    let mut program = Program::serve(&other);
    let base = program.url("");
    let client = Client::of(there.path(), &base, reqwest::Client::builder()).with_token(&token);
    let shown = client.get(&format!("/v1/users/{ADMIN}")).await;
    assert_eq!(shown.status(), 200, "the token is valid at the other gate");
    program.signal("TERM");
    assert_eq!(program.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_use_its_store_ends_with_a_message_and_changes_nothing() {
    let (folder, file) = folder().await;
    let store = folder.path().join("data/tollgate.redb");
    std::fs::create_dir(store.parent().unwrap()).unwrap();
    for (content, expected) in [
        (&b""[..], "is an empty file"),
        (
            b"not a store at all, but a text",
            "is not a store of this program",
        ),
        (
            b"redb\x1A\x0A\xA9\x0D\x0A and then it broke off",
            "is damaged",
        ),
    ] {
        std::fs::write(&store, content).unwrap();
        let message = bad(&file, &["serve"], b"");
        assert!(message.contains(expected), "{message}");
        assert!(message.contains(store.to_str().unwrap()), "{message}");
        assert_eq!(std::fs::read(&store).unwrap(), content);
    }
    std::fs::remove_file(&store).unwrap();
    let nothing = bad(&file, &["store", "check"], b"");
    assert!(nothing.contains("there is no store at"), "{nothing}");

    let config = std::fs::read_to_string(&file).unwrap();
    let lost = format!("{config}\n[store]\npath = \"no/such/folder/gate.redb\"\n");
    std::fs::write(&file, lost).unwrap();
    let message = bad(&file, &["serve"], b"");
    assert!(message.contains("make its folder"), "{message}");
    let memory = format!("{config}\n[store]\npath = \"memory\"\n");
    std::fs::write(&file, memory).unwrap();
    let message = bad(&file, &["store", "export"], b"");
    assert!(message.contains("nothing is kept"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_gate_on_the_same_store_ends_at_once() {
    let (_folder, file) = folder().await;
    let mut program = Program::serve(&file);
    let message = bad(&file, &["serve"], b"");
    assert!(message.contains("in use by another process"), "{message}");
    program.signal("TERM");
    assert_eq!(program.wait().code(), Some(0));
}

/// Mounts the disk read-only, if this process may mount.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_is_reported_at_the_start() {
    let (folder, file) = folder().await;
    let mut program = Program::serve(&file);
    program.signal("TERM");
    assert_eq!(program.wait().code(), Some(0));
    let data = folder.path().join("data");
    let mount = |arguments: &[&str]| {
        let output = Command::new("mount").args(arguments).arg(&data).output();
        output.is_ok_and(|output| output.status.success())
    };
    let bind = data.to_str().unwrap();
    if !mount(&["--bind", bind]) {
        eprintln!("SKIPPED: only root can mount, and this process is not");
        return;
    }
    let is_read_only = mount(&["-o", "remount,bind,ro"]);
    let message = run(&file, &["serve"], b"");
    let message = String::from_utf8_lossy(&message.stderr).into_owned();
    let unmounted = Command::new("umount").arg(&data).status().unwrap();
    assert!(is_read_only && unmounted.success());
    assert!(
        message.contains("on a disk that can be written"),
        "{message}"
    );
}
