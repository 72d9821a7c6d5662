use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::tls::page_over_tls;
use super::*;
use crate::config;
use crate::emulator::{Error, certificates};
use crate::profiles::{API_KEY_LENGTH, check_password};

const ALL: [&str; 9] = [
    "ca.pem",
    "ca.key",
    "server.pem",
    "server.key",
    "webapp-ca.pem",
    "webapp.pem",
    "webapp.key",
    "webapp-password",
    "webapp-api-key",
];

fn names(folder: &Path) -> Vec<String> {
    let made = certificates::make(folder).unwrap().made;
    let name = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut names: Vec<String> = made.iter().map(name).collect();
    names.sort();
    names
}

fn contents(folder: &Path) -> HashMap<&'static str, String> {
    let read = |name| fs::read_to_string(folder.join(name)).unwrap();
    ALL.into_iter().map(|name| (name, read(name))).collect()
}

#[tokio::test]
async fn the_first_run_creates_all_files_and_the_second_none() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("not").join("yet");
    let mut expected = ALL.map(str::to_owned);
    expected.sort();
    assert_eq!(names(&folder), expected);
    let before = contents(&folder);
    assert_eq!(names(&folder), [""; 0]);
    assert_eq!(contents(&folder), before);
    let left: Vec<_> = fs::read_dir(&folder).unwrap().collect();
    assert_eq!(left.len(), ALL.len(), "no temporary file is left");
    for name in ALL {
        let mode = fs::metadata(folder.join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777;
        let secret =
            name.ends_with(".key") || name.starts_with("webapp-pass") || name.contains("api");
        assert_eq!(mode, if secret { 0o600 } else { 0o644 }, "{name}");
    }
    let password = Secret::new(before["webapp-password"].trim_end());
    assert!(check_password(&password).is_ok());
    let key = before["webapp-api-key"].trim_end().len();
    assert!(API_KEY_LENGTH.contains(&key));
}

#[tokio::test]
async fn the_emulator_runs_with_the_created_files() {
    let parent = tempfile::tempdir().unwrap();
    certificates::make(parent.path()).unwrap();
    let any = Settings::for_tests();
    let settings = Settings::open(&config::Emulator {
        count: 1,
        address: any.address,
        control: any.control,
        folder: parent.path().to_owned(),
        token_lifetime: any.token_lifetime,
    });
    let scope = TaskScope::new(Handle::current());
    let emulator = Emulator::start(settings.unwrap(), &scope);
    let emulator = emulator.await.unwrap();
    let page = page_over_tls(&emulator, "localhost").await;
    assert!(page.starts_with("HTTP/1.1 200"));
}

#[test]
fn missing_or_mismatched_files_are_created_again() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    certificates::make(folder).unwrap();
    let before = contents(folder);
    fs::remove_file(folder.join("server.key")).unwrap();
    assert_eq!(names(folder), ["server.key", "server.pem"]);
    let after = contents(folder);
    assert_eq!(
        after["ca.pem"], before["ca.pem"],
        "the authority is unchanged"
    );

    fs::write(folder.join("webapp.key"), &before["ca.key"]).unwrap();
    assert_eq!(names(folder), ["webapp-ca.pem", "webapp.key", "webapp.pem"]);

    fs::write(folder.join("ca.pem"), "torn").unwrap();
    let made = ["ca.key", "ca.pem", "server.key", "server.pem"];
    assert_eq!(names(folder), made);
    assert_eq!(
        contents(folder)["webapp-password"],
        before["webapp-password"]
    );
    assert_eq!(names(folder), [""; 0]);
}

#[test]
fn a_certificate_that_expires_soon_is_created_again() {
    use crate::emulator::issue::{self, KeyType};
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    certificates::make(folder).unwrap();
    let name = rcgen::DistinguishedName::new();
    let short = issue::authority(name, KeyType::Curve, 6 * 86_400).unwrap();
    fs::write(folder.join("ca.pem"), short.pem()).unwrap();
    fs::write(folder.join("ca.key"), short.key().serialize_pem()).unwrap();
    let made = ["ca.key", "ca.pem", "server.key", "server.pem"];
    assert_eq!(names(folder), made);
}

#[test]
fn a_folder_that_cannot_be_created_is_named_in_the_error() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "").unwrap();
    let error = certificates::make(&file.join("below")).unwrap_err();
    assert!(matches!(error, Error::Write { .. }));
    assert!(error.to_string().contains("below"));
}
