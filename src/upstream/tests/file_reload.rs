//! The files of an upstream (CA, API key, password) while they are replaced, missing or half written.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::failures::lets_in_the_right_password;
use super::server::{Reply, Webapp};
use super::{UpstreamSetup, eventually, refusal, sole_tls, stays};
use crate::secret::SecretSource;
use crate::upstream::{LoginFailure, Upstream};

/// An upstream without a login, whose API key is in the file `key`.
async fn with_key(key: &str) -> UpstreamSetup {
    let webapp = Webapp::start(|_| Reply::raw("")).await;
    let mut setup = UpstreamSetup::of(webapp.address).without_login();
    let path = setup.folder.write("key", key);
    setup.settings.api_key = Some(SecretSource::File(path));
    setup
}

fn key_of(upstream: &Upstream) -> String {
    upstream.api_key().unwrap().secret.expose().to_owned()
}

/// Points `..data` in `folder` to a new folder with the file `name`, as Kubernetes does.
fn swap(folder: &Path, version: &str, name: &str, text: &str) {
    std::fs::create_dir(folder.join(version)).unwrap();
    std::fs::write(folder.join(version).join(name), text).unwrap();
    symlink(version, folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

#[tokio::test]
async fn an_api_key_follows_a_swapped_folder_and_survives_the_loss_of_its_file() {
    let mut setup = with_key("").await;
    let folder = setup.folder.0.clone();
    swap(&folder, "..1", "key", "the-first-good-key");
    setup.settings.api_key = Some(SecretSource::File(folder.join("..data/key")));
    let upstream = setup.open().unwrap();
    assert_eq!(key_of(&upstream), "the-first-good-key");
    swap(&folder, "..2", "key", "short");
    stays("the old key", || key_of(&upstream) == "the-first-good-key").await;
    swap(&folder, "..3", "key", "the-second-good-key");
    let is_second = || key_of(&upstream) == "the-second-good-key";
    eventually("the new key", is_second).await;
    std::fs::remove_file(folder.join("..data")).unwrap();
    stays("the key of a missing file", is_second).await;
    swap(&folder, "..4", "key", "the-third-good-key");
    eventually("the newest key", || {
        key_of(&upstream) == "the-third-good-key"
    })
    .await;
}

#[tokio::test]
async fn a_reload_request_reads_an_api_key_that_keeps_changing() {
    let setup = with_key("the-first-good-key").await;
    let upstream = setup.open().unwrap();
    let old = || key_of(&upstream) == "the-first-good-key";
    let writes = async {
        for number in 0.. {
            setup
                .folder
                .write("key", &format!("key-that-is-replaced-{number}"));
            sleep(Duration::from_millis(20)).await;
        }
    };
    let checks = async {
        stays("the old key", old).await;
        setup.reload_signal.send();
        eventually("a new key", || !old()).await;
    };
    tokio::select! {
        () = writes => {}
        () = checks => {}
    }
}

#[cfg(feature = "emulator")]
#[tokio::test]
async fn a_reload_request_reads_authorities_that_keep_changing() {
    use super::trust::{Identity, connect, setup};
    use crate::config::Trust;

    let (identity, stranger) = (Identity::of("127.0.0.1"), Identity::of("127.0.0.1"));
    let webapp = identity.serve().await;
    let mut setup = setup(&webapp, Trust::PublicAuthorities);
    let path = setup.folder.write("ca.pem", &stranger.authority);
    setup.settings.trust = Trust::Authorities(path);
    let upstream = setup.open().unwrap();
    let current = || Arc::as_ptr(&sole_tls(&upstream).current());
    let first = current();
    let writes = async {
        for number in 0.. {
            let text = format!("{}# {number}\n", identity.authority);
            setup.folder.write("ca.pem", &text);
            sleep(Duration::from_millis(20)).await;
        }
    };
    let checks = async {
        stays("the old authorities", || current() == first).await;
        setup.reload_signal.send();
        eventually("the new authorities", || current() != first).await;
        connect(&setup, &upstream).await.unwrap();
    };
    tokio::select! {
        () = writes => {}
        () = checks => {}
    }
}

#[tokio::test]
async fn a_half_written_or_missing_password_is_not_tried() {
    let webapp = Webapp::start(lets_in_the_right_password()).await;
    let setup = UpstreamSetup::of(webapp.address);
    let path = setup.folder.write("password", "wrong");
    let session = setup.session();
    assert_eq!(refusal(&session).await.why, LoginFailure::WrongPassword);
    std::fs::remove_file(&path).unwrap();
    stays("the number of logins stays 1", || webapp.requests() == 1).await;
    assert_eq!(refusal(&session).await.why, LoginFailure::WrongPassword);
    // Written in place, in pieces.
    for text in ["", "r", "ri", "rig", "righ"] {
        std::fs::write(&path, text).unwrap();
        sleep(Duration::from_millis(150)).await;
    }
    std::fs::write(&path, "right").unwrap();
    eventually("logged in", || session.is_ready()).await;
    assert_eq!(webapp.requests(), 2);
}

#[tokio::test]
async fn a_password_follows_a_swapped_folder() {
    let webapp = Webapp::start(lets_in_the_right_password()).await;
    let mut setup = UpstreamSetup::of(webapp.address);
    let folder = setup.folder.0.clone();
    swap(&folder, "..1", "password", "wrong");
    setup.login().password = SecretSource::File(folder.join("..data/password"));
    let session = setup.session();
    assert_eq!(refusal(&session).await.why, LoginFailure::WrongPassword);
    swap(&folder, "..2", "password", "right");
    eventually("logged in", || session.is_ready()).await;
    assert_eq!(webapp.requests(), 2);
}
