//! `tollgate check` refuses what `serve` refuses, with the same messages, and changes nothing.

use std::path::Path;
use std::process::{Command, Output};

use tollgate::emulator::Emulator;

use crate::harness::program::{Program, binary};
use crate::harness::{Gateway, Setup, emulator, secret, written};

fn tollgate(file: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).arg("--config").arg(file);
    command.output().unwrap()
}

/// The problems that a command prints, one per line, without the alignment.
fn problems(output: &Output) -> Vec<String> {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let begin = text.find(" problem").unwrap_or_else(|| panic!("{text}"));
    let rows = text[begin..].lines().skip(1);
    rows.map(|row| row.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

/// One way to break a good configuration.
struct BrokenConfig {
    what: &'static str,
    /// Files written beside the configuration.
    files: &'static [(&'static str, &'static str)],
    setup: fn(Setup) -> Setup,
    change: fn(String) -> String,
    /// Texts that the one problem must contain.
    expected: &'static [&'static str],
}

const SAME: fn(String) -> String = |text| text;
const PLAIN: fn(Setup) -> Setup = |setup| setup;

fn row(
    what: &'static str,
    files: &'static [(&'static str, &'static str)],
    expected: &'static [&'static str],
) -> BrokenConfig {
    BrokenConfig {
        what,
        files,
        setup: PLAIN,
        change: SAME,
        expected,
    }
}

fn spoiled_listeners() -> Vec<BrokenConfig> {
    vec![
        BrokenConfig {
            change: |text| text.replace("certs/server.key", "certs/ca.key"),
            ..row(
                "the key of another certificate",
                &[],
                &[
                    "listener[0].tls.certificates[0]",
                    "certs/ca.key",
                    "certs/server.pem",
                    "does not belong",
                ],
            )
        },
        row(
            "a certificate that is not PEM",
            &[("certs/server.pem", "garbage")],
            &[
                "listener[0].tls.certificates[0]",
                "no certificate in",
                "server.pem",
            ],
        ),
        row(
            "a file that is not a key",
            &[(
                "certs/server.key",
                "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n",
            )],
            &["listener[0].tls.certificates[0]", "server.key"],
        ),
        BrokenConfig {
            change: |text| {
                let one = "{ certificate = \"certs/server.pem\", key = \"certs/server.key\" }";
                text.replace(
                    one,
                    &format!("{one}, {}", one.replace("server.key", "ca.key")),
                )
            },
            ..row(
                "the second certificate of two",
                &[],
                &["listener[0].tls.certificates[1]", "ca.key"],
            )
        },
    ]
}

fn spoiled_upstreams() -> Vec<BrokenConfig> {
    vec![
        row(
            "garbage as authority",
            &[("webapp-ca.pem", "garbage")],
            &["upstream.main.ca", "webapp-ca.pem holds no certificate"],
        ),
        row(
            "an authority's file without a certificate",
            &[(
                "webapp-ca.pem",
                "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n",
            )],
            &["upstream.main.ca", "webapp-ca.pem cannot be an authority"],
        ),
        BrokenConfig {
            change: |text| {
                text.replace(
                    "server_name = \"localhost\"",
                    "server_name = \"under_score..x\"",
                )
            },
            ..row(
                "a name that no certificate can have",
                &[],
                &["upstream.main.server_name"],
            )
        },
        BrokenConfig {
            setup: |setup| setup.upstream("api_key = { file = \"short\" }"),
            ..row(
                "an API key that is too short",
                &[("short", "abc")],
                &["upstream.main.api_key", "12 to 128"],
            )
        },
        row(
            "a password that is only a line end",
            &[("webapp-password", "\n")],
            &["upstream.main.login.password", "which is empty"],
        ),
        BrokenConfig {
            setup: |setup| {
                setup.rest("[store]\nurl = \"rediss://127.0.0.1:1\"\nca = \"store-ca.pem\"")
            },
            ..row(
                "garbage as the store's authority",
                &[("store-ca.pem", "garbage")],
                &["store.url", "store-ca.pem holds no certificate"],
            )
        },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn check_refuses_what_serve_refuses_in_the_same_words() {
    let webapp = emulator().await;
    for spoiled in spoiled_listeners().into_iter().chain(spoiled_upstreams()) {
        let folder = tempfile::tempdir().unwrap();
        let setup = (spoiled.setup)(Setup::default());
        let file = written(folder.path(), &webapp, &setup, spoiled.change);
        for (name, text) in spoiled.files {
            secret(&folder.path().join(name), text);
        }
        let checked = problems(&tollgate(&file, &["check"]));
        assert_eq!(checked.len(), 1, "{}: {checked:#?}", spoiled.what);
        let (line, rest) = checked[0].split_once(' ').unwrap();
        assert!(
            line.parse::<usize>().is_ok(),
            "{}: no line: {}",
            spoiled.what,
            checked[0]
        );
        for part in spoiled.expected {
            assert!(
                rest.contains(part),
                "{}: {part:?} is not in {rest:?}",
                spoiled.what
            );
        }
        assert_eq!(
            checked,
            problems(&tollgate(&file, &["serve"])),
            "{}",
            spoiled.what
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_problems_are_printed_at_once() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default().upstream("api_key = { file = \"short\" }");
    let file = written(folder.path(), &webapp, &setup, |text| {
        text.replace("certs/server.key", "certs/ca.key")
    });
    secret(&folder.path().join("short"), "abc");
    secret(&folder.path().join("webapp-ca.pem"), "garbage");
    let found = problems(&tollgate(&file, &["check"]));
    assert_eq!(found.len(), 3, "{found:#?}");
}

/// Breaks the store at this path; returns the expected problem.
type SpoilStore = fn(&Path) -> &'static str;

#[tokio::test(flavor = "multi_thread")]
async fn check_refuses_a_store_that_serve_refuses_and_changes_nothing() {
    let webapp = emulator().await;
    let spoils: [SpoilStore; 5] = [
        |path| {
            std::fs::create_dir_all(path).unwrap();
            "is a directory"
        },
        |path| {
            std::fs::write(path, "").unwrap();
            "is an empty file"
        },
        |path| {
            std::fs::write(path, "not a store, but long enough to be one").unwrap();
            "is not a store of this program"
        },
        |path| {
            std::fs::write(path, b"redb\x1A\x0A\xA9\x0D\x0A and then nothing of use").unwrap();
            "is damaged"
        },
        |path| {
            std::fs::remove_dir(path.parent().unwrap()).unwrap();
            std::fs::write(path.parent().unwrap(), "a file where the folder should be").unwrap();
            "cannot use the store"
        },
    ];
    for spoil in spoils {
        let folder = tempfile::tempdir().unwrap();
        let file = written(folder.path(), &webapp, &Setup::default(), |text| text);
        let path = folder.path().join("data/tollgate.redb");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let expected = spoil(&path);
        let before = std::fs::read(&path).ok();
        let checked = problems(&tollgate(&file, &["check"]));
        assert_eq!(checked.len(), 1, "{checked:#?}");
        assert!(checked[0].contains("store.path"), "{checked:#?}");
        assert!(checked[0].contains(expected), "{expected}: {checked:#?}");
        assert_eq!(std::fs::read(&path).ok(), before, "{expected}");
        let served = tollgate(&file, &["serve"]);
        let served = String::from_utf8(served.stderr).unwrap();
        assert!(served.contains("cannot open the store"), "{served}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_creates_no_store_and_changes_none() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), &webapp, &Setup::default(), |text| text);
    let path = folder.path().join("data/tollgate.redb");
    assert!(tollgate(&file, &["check"]).status.success());
    assert!(!path.parent().unwrap().exists(), "nothing was created");

    let mut program = Program::serve(&file);
    program.wait_for("ready to accept");
    let second = tollgate(&file, &["check"]);
    assert!(second.status.success(), "{second:?}");
    let stderr = String::from_utf8(second.stderr).unwrap();
    assert!(
        stderr.contains("store.path") && stderr.contains("is in use"),
        "{stderr}"
    );
    program.signal("KILL");
    assert_eq!(program.wait().code(), None, "killed");
    let before = std::fs::read(&path).unwrap();
    let killed = tollgate(&file, &["check"]);
    assert!(killed.status.success(), "{killed:?}");
    let stderr = String::from_utf8(killed.stderr).unwrap();
    assert!(stderr.contains("was not closed"), "{stderr}");
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let mut program = Program::serve(&file);
    program.wait_for("ready to accept");
    program.signal("TERM");
    assert_eq!(program.wait().code(), Some(0));
    let before = std::fs::read(&path).unwrap();
    let closed = tollgate(&file, &["check"]);
    assert!(closed.status.success());
    let stderr = String::from_utf8(closed.stderr).unwrap();
    assert!(!stderr.contains("store"), "{stderr}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_is_refused_for_what_check_refuses() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default()).await;
    let refused = || {
        gateway
            .metrics
            .text()
            .contains("tollgate_config_reloads_total{outcome=\"refused\"} 1")
    };
    let text = std::fs::read_to_string(gateway.config_file()).unwrap();
    std::fs::write(
        gateway.config_file(),
        text.replace("certs/server.key", "certs/ca.key"),
    )
    .unwrap();
    crate::harness::eventually("the reload to be refused", async || refused()).await;
}

/// What `check --connect` prints: standard output and standard error.
pub(crate) fn connected(webapp: &Emulator, setup: &Setup, password: &str) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), webapp, setup, |text| text);
    secret(&folder.path().join("webapp-password"), password);
    let output = tollgate(&file, &["check", "--connect"]);
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_logs_in_once_and_says_so() {
    let webapp = emulator().await;
    let (code, out, _) = connected(&webapp, &Setup::default(), crate::harness::WEBAPP_PASSWORD);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("its certificate is trusted"), "{out}");
    assert!(
        out.contains("upstream.main.login: \"admin\" is let in"),
        "{out}"
    );
    assert!(out.contains("one login at the upstream"), "{out}");
    assert_eq!(webapp.login_count(), 1);

    let kills = Setup::default().upstream("single_active_token = true");
    let (code, _, stderr) = connected(&webapp, &kills, crate::harness::WEBAPP_PASSWORD);
    assert_eq!(code, 0);
    assert!(stderr.contains("was not tried"), "{stderr}");
    assert_eq!(
        webapp.login_count(),
        1,
        "a login would end another gate's token"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_says_why_the_gate_cannot_log_in() {
    let webapp = emulator().await;
    let (code, _, stderr) = connected(&webapp, &Setup::default(), "Wrong-Passw0rd!");
    assert_eq!(code, 1);
    assert!(
        stderr.contains("upstream.main.login") && stderr.contains("user name or password"),
        "{stderr}"
    );
    assert!(!stderr.contains("Wrong-Passw0rd!"));

    let other = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), &webapp, &Setup::default(), |text| text);
    std::fs::write(folder.path().join("webapp-ca.pem"), other.authority_pem()).unwrap();
    let found = problems(&tollgate(&file, &["check", "--connect"]));
    assert_eq!(found.len(), 1);
    assert!(
        found[0].contains("upstream.main.url") && found[0].contains("pins"),
        "{found:?}"
    );

    let nowhere = |text: String| text.replace(&webapp.address().to_string(), "127.0.0.1:1");
    let file = written(folder.path(), &webapp, &Setup::default(), nowhere);
    let found = problems(&tollgate(&file, &["check", "--connect"]));
    assert!(
        found[0].contains("cannot connect to 127.0.0.1:1"),
        "{found:?}"
    );
}
