//! The files of an upstream (CA, API key, password) while they are replaced, gone or half written.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::failures::lets_in_the_right_password;
use super::server::{Reply, Webapp};
use super::{Surroundings, eventually, refusal, stays};
use crate::secret::SecretSource;
use crate::upstream::{LoginFailure, Upstream};

/// An upstream without a login, whose API key is in the file `key`.
async fn with_key(key: &str) -> Surroundings {
    let webapp = Webapp::start(|_| Reply::raw("")).await;
    let mut around = Surroundings::of(webapp.address).without_login();
    let path = around.folder.write("key", key);
    around.settings.api_key = Some(SecretSource::File(path));
    around
}

fn key_of(upstream: &Upstream) -> String {
    upstream.api_key().unwrap().secret.expose().to_owned()
}

/// Makes `..data` in `folder` lead to a new folder with the file `name`, as Kubernetes does.
fn swap(folder: &Path, version: &str, name: &str, text: &str) {
    std::fs::create_dir(folder.join(version)).unwrap();
    std::fs::write(folder.join(version).join(name), text).unwrap();
    symlink(version, folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

#[tokio::test]
async fn an_api_key_follows_a_swapped_folder_and_outlives_the_loss_of_its_file() {
    let mut around = with_key("").await;
    let folder = around.folder.0.clone();
    swap(&folder, "..1", "key", "the-first-good-key");
    around.settings.api_key = Some(SecretSource::File(folder.join("..data/key")));
    let upstream = around.open().unwrap();
    assert_eq!(key_of(&upstream), "the-first-good-key");
    swap(&folder, "..2", "key", "short");
    stays("the old key", || key_of(&upstream) == "the-first-good-key").await;
    swap(&folder, "..3", "key", "the-second-good-key");
    let is_second = || key_of(&upstream) == "the-second-good-key";
    eventually("the new key", is_second).await;
    std::fs::remove_file(folder.join("..data")).unwrap();
    stays("the key of a file that is gone", is_second).await;
    swap(&folder, "..4", "key", "the-third-good-key");
    eventually("the newest key", || {
        key_of(&upstream) == "the-third-good-key"
    })
    .await;
}

#[tokio::test]
async fn a_request_reads_an_api_key_at_once_that_polls_never_see_at_rest() {
    let around = with_key("the-first-good-key").await;
    let upstream = around.open().unwrap();
    let old = || key_of(&upstream) == "the-first-good-key";
    let writes = async {
        for number in 0.. {
            around
                .folder
                .write("key", &format!("key-that-is-replaced-{number}"));
            sleep(Duration::from_millis(20)).await;
        }
    };
    let checks = async {
        stays("the old key", old).await;
        around.reload_signal.send();
        eventually("a new key", || !old()).await;
    };
    tokio::select! {
        () = writes => {}
        () = checks => {}
    }
}

#[cfg(feature = "emulator")]
#[tokio::test]
async fn a_request_reads_authorities_at_once_that_polls_never_see_at_rest() {
    use super::trust::{Identity, around, believes};
    use crate::config::Trust;

    let (identity, stranger) = (Identity::of("127.0.0.1"), Identity::of("127.0.0.1"));
    let webapp = identity.serve().await;
    let mut around = around(&webapp, Trust::PublicAuthorities);
    let path = around.folder.write("ca.pem", &stranger.authority);
    around.settings.trust = Trust::Authorities(path);
    let upstream = around.open().unwrap();
    let current = || Arc::as_ptr(&upstream.dialer.tls.as_ref().unwrap().current().0);
    let first = current();
    let writes = async {
        for number in 0.. {
            let text = format!("{}# {number}\n", identity.authority);
            around.folder.write("ca.pem", &text);
            sleep(Duration::from_millis(20)).await;
        }
    };
    let checks = async {
        stays("the old authorities", || current() == first).await;
        around.reload_signal.send();
        eventually("the new authorities", || current() != first).await;
        believes(&around, &upstream).await.unwrap();
    };
    tokio::select! {
        () = writes => {}
        () = checks => {}
    }
}

#[tokio::test]
async fn a_half_written_password_is_not_tried_and_one_that_is_gone_neither() {
    let webapp = Webapp::start(lets_in_the_right_password()).await;
    let around = Surroundings::of(webapp.address);
    let path = around.folder.write("password", "wrong");
    let session = around.session();
    assert_eq!(refusal(&session).await.why, LoginFailure::WrongPassword);
    std::fs::remove_file(&path).unwrap();
    stays("one attempt", || webapp.requests() == 1).await;
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
    let mut around = Surroundings::of(webapp.address);
    let folder = around.folder.0.clone();
    swap(&folder, "..1", "password", "wrong");
    around.login().password = SecretSource::File(folder.join("..data/password"));
    let session = around.session();
    assert_eq!(refusal(&session).await.why, LoginFailure::WrongPassword);
    swap(&folder, "..2", "password", "right");
    eventually("logged in", || session.is_ready()).await;
    assert_eq!(webapp.requests(), 2);
}
