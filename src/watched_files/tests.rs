use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::process::Command;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

const TEST_TIMEOUT: Duration = Duration::from_secs(20);
const NEVER: Duration = Duration::from_secs(86_400);

/// A folder with the file that is watched.
struct Folder(TempDir);

impl Folder {
    fn new(text: &str) -> Self {
        let folder = Self(TempDir::new().unwrap());
        fs::write(folder.file(), text).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.path("file")
    }

    /// Watches the file, starting from its current content.
    fn opened(&self) -> WatchedFiles {
        WatchedFiles::open(vec![self.file()]).0
    }
}

/// The result of one poll: the text, or the error.
async fn poll(files: &WatchedFiles) -> Option<Result<String, String>> {
    let look = files.look(false).await?;
    assert!(look.is_changed && !look.is_requested);
    Some(text(look))
}

fn text(look: FileLook) -> Result<String, String> {
    let content = look.contents.into_file().content;
    let text = content.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
    text.map_err(|error| error.to_string())
}

fn found(text: &str) -> Option<Result<String, String>> {
    Some(Ok(text.to_owned()))
}

#[track_caller]
fn assert_error(look: Option<Result<String, String>>, part: &str) {
    let error = look.expect("a change").expect_err("an error");
    assert!(error.contains(part), "{error}");
}

#[tokio::test]
async fn the_initial_content_is_no_change_and_an_unread_file_is_one() {
    let folder = Folder::new("one");
    let (files, contents) = WatchedFiles::open(vec![folder.file()]);
    assert_eq!(**contents.into_file().content.as_ref().unwrap(), *b"one");
    assert_eq!(poll(&files).await, None);
    let unread = WatchedFiles::new(vec![folder.file()]);
    assert_eq!(poll(&unread).await, None, "seen by one poll only");
    assert_eq!(poll(&unread).await, found("one"));
    assert_eq!(poll(&unread).await, None);
}

#[tokio::test]
async fn a_folder_swapped_as_kubernetes_does_is_a_change() {
    let folder = Folder::new("");
    fs::remove_file(folder.file()).unwrap();
    let swap = |version: &str, text: &str| {
        let new = folder.path(version);
        fs::create_dir(&new).unwrap();
        fs::write(new.join("file"), text).unwrap();
        // As the kubelet's atomic writer does: the folder's link is renamed over the old one.
        symlink(version, folder.path("..data_tmp")).unwrap();
        fs::rename(folder.path("..data_tmp"), folder.path("..data")).unwrap();
    };
    swap("..2026_01", "one");
    symlink("..data/file", folder.file()).unwrap();
    let files = folder.opened();
    swap("..2026_02", "two");
    fs::remove_dir_all(folder.path("..2026_01")).unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, found("two"));
    // A swap that does not change this file.
    swap("..2026_03", "two");
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, None);
}

#[tokio::test]
async fn a_file_renamed_over_the_old_one_is_a_change() {
    let folder = Folder::new("one");
    let files = folder.opened();
    fs::write(folder.path("new"), "two").unwrap();
    fs::rename(folder.path("new"), folder.file()).unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, found("two"));
    // Back to the first content.
    fs::write(folder.file(), "one").unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, found("one"));
}

#[tokio::test]
async fn a_file_is_not_reported_while_it_is_being_written() {
    let folder = Folder::new("one");
    let files = folder.opened();
    fs::write(folder.file(), "").unwrap();
    assert_eq!(poll(&files).await, None);
    fs::write(folder.file(), "first half").unwrap();
    assert_eq!(poll(&files).await, None);
    fs::write(folder.file(), "first half and second").unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, found("first half and second"));
}

#[tokio::test]
async fn a_content_seen_by_one_poll_only_is_no_change() {
    let folder = Folder::new("one");
    let files = folder.opened();
    fs::write(folder.file(), "two").unwrap();
    assert_eq!(poll(&files).await, None);
    fs::write(folder.file(), "one").unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, None);
}

#[tokio::test]
async fn a_new_content_of_the_same_length_and_time_is_a_change() {
    let folder = Folder::new("one");
    let files = folder.opened();
    let modified = fs::metadata(folder.file()).unwrap().modified().unwrap();
    fs::write(folder.file(), "two").unwrap();
    let file = File::options().write(true).open(folder.file()).unwrap();
    file.set_modified(modified).unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, found("two"));
    // A new modification time alone is no change.
    file.set_modified(modified + Duration::from_secs(60))
        .unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, None);
}

#[tokio::test]
async fn a_missing_file_is_reported_once_and_so_is_its_return() {
    let folder = Folder::new("one");
    let files = folder.opened();
    fs::remove_file(folder.file()).unwrap();
    assert_eq!(poll(&files).await, None);
    assert_error(poll(&files).await, "No such file");
    for _ in 0..3 {
        assert_eq!(poll(&files).await, None, "reported once per cause");
    }
    fs::write(folder.file(), "one").unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, found("one"));
}

#[tokio::test]
async fn a_file_missing_for_a_moment_is_not_reported() {
    let folder = Folder::new("one");
    let files = folder.opened();
    fs::remove_file(folder.file()).unwrap();
    assert_eq!(poll(&files).await, None);
    fs::write(folder.file(), "one").unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, None);
}

#[tokio::test]
async fn each_cause_for_which_a_file_cannot_be_read_is_reported_once() {
    let folder = Folder::new("one");
    let files = folder.opened();
    let reported = async |error: &str| {
        assert_eq!(poll(&files).await, None);
        assert_error(poll(&files).await, error);
        assert_eq!(poll(&files).await, None);
    };
    fs::remove_file(folder.file()).unwrap();
    symlink("file", folder.file()).unwrap();
    reported("symbolic links").await;
    fs::remove_file(folder.file()).unwrap();
    fs::create_dir(folder.file()).unwrap();
    reported("it is not a regular file").await;
    fs::remove_dir(folder.file()).unwrap();
    symlink("/nonexistent/file", folder.file()).unwrap();
    reported("No such file").await;
    fs::remove_file(folder.file()).unwrap();
    fs::write(folder.file(), "two").unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, found("two"));
}

#[tokio::test]
async fn pipes_and_endless_files_are_not_read() {
    let folder = Folder::new("one");
    let files = folder.opened();
    fs::remove_file(folder.file()).unwrap();
    let made = Command::new("mkfifo").arg(folder.file()).status().unwrap();
    assert!(made.success());
    assert_eq!(poll(&files).await, None);
    assert_error(poll(&files).await, "it is not a regular file");
    fs::remove_file(folder.file()).unwrap();
    let long = File::create(folder.file()).unwrap();
    long.set_len(1 << 40).unwrap();
    assert_eq!(poll(&files).await, None);
    assert_error(poll(&files).await, "too large");
}

#[tokio::test]
async fn related_files_are_read_together() {
    let folder = Folder::new("certificate 1");
    fs::write(folder.path("key"), "key 1").unwrap();
    let files = WatchedFiles::open(vec![folder.file(), folder.path("key")]).0;
    fs::write(folder.file(), "certificate 2").unwrap();
    assert!(files.look(false).await.is_none());
    fs::write(folder.path("key"), "key 2").unwrap();
    assert!(
        files.look(false).await.is_none(),
        "only the key has changed"
    );
    let look = files.look(false).await.unwrap();
    let all = look.contents.into_files();
    let all: Vec<_> = all.iter().map(|file| file.content.as_ref()).collect();
    assert_eq!(**all[0].unwrap(), *b"certificate 2");
    assert_eq!(**all[1].unwrap(), *b"key 2");
    // Bytes that move from one file to the other are a change too.
    fs::write(folder.file(), "certificate 2k").unwrap();
    fs::write(folder.path("key"), "ey 2").unwrap();
    assert!(files.look(false).await.is_none());
    assert!(files.look(false).await.is_some());
}

#[tokio::test]
async fn replaced_files_are_watched_from_the_content_read_last() {
    let folder = Folder::new("one");
    let files = folder.opened();
    fs::write(folder.file(), "two").unwrap();
    let late = files.look(true).await.unwrap();
    fs::write(folder.path("other"), "three").unwrap();
    let (other, _) = WatchedFiles::open(vec![folder.path("other")]);
    files.replace(other);
    assert!(
        !files.is_latest(&late.contents),
        "the content was read before"
    );
    fs::write(folder.file(), "four").unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, None);
    fs::write(folder.path("other"), "five").unwrap();
    assert_eq!(poll(&files).await, None);
    let look = files.look(false).await.unwrap();
    assert!(files.is_latest(&look.contents));
    assert_eq!(text(look), Ok("five".to_owned()));
}

#[tokio::test]
async fn a_reload_request_reads_at_once_with_or_without_a_change() {
    let folder = Folder::new("one");
    let files = folder.opened().polled_every(NEVER);
    let signal = ReloadSignal::default();
    let mut requests = signal.subscribe();
    fs::write(folder.file(), "two").unwrap();
    // A request from before the wait is not lost, and two requests cause one read.
    signal.send();
    signal.send();
    let look = timeout(TEST_TIMEOUT, files.next_look(&mut requests));
    let look = look.await.expect("a read at once");
    assert!(look.is_changed && look.is_requested);
    assert_eq!(text(look), Ok("two".to_owned()));
    let short = Duration::from_millis(100);
    let again = timeout(short, files.next_look(&mut requests)).await;
    assert!(again.is_err(), "two requests cause one read");
    signal.send();
    let look = timeout(TEST_TIMEOUT, files.next_look(&mut requests));
    let look = look.await.expect("a read at once");
    assert!(!look.is_changed && look.is_requested);
    // An error is reported at once too.
    fs::remove_file(folder.file()).unwrap();
    signal.send();
    let look = files.next_look(&mut requests).await;
    assert_error(Some(text(look)), "No such file");
}

#[tokio::test]
async fn a_reload_request_during_a_read_causes_another_read() {
    let folder = Folder::new("one");
    let files = Arc::new(folder.opened().polled_every(NEVER));
    let signal = ReloadSignal::default();
    let requests = signal.subscribe();
    let (sender, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let during = signal.clone();
    let reader = move |look: FileLook| {
        if look.is_changed {
            during.send();
        }
        sender.send(look.is_changed).unwrap();
    };
    let watched = Arc::clone(&files);
    let task = tokio::runtime::Handle::current();
    let task = task.spawn(async move { watched.follow(requests, reader).await });
    fs::write(folder.file(), "two").unwrap();
    signal.send();
    let mut next = async || timeout(TEST_TIMEOUT, reports.recv()).await.unwrap();
    assert_eq!(next().await, Some(true));
    assert_eq!(next().await, Some(false), "the request during the read");
    task.abort();
}

#[tokio::test]
async fn polls_find_a_change_without_a_request_and_after_the_signal_is_dropped() {
    let folder = Folder::new("one");
    let files = folder.opened().polled_every(Duration::from_millis(5));
    let mut requests = ReloadRequests::never();
    fs::write(folder.file(), "two").unwrap();
    let look = timeout(TEST_TIMEOUT, files.next_look(&mut requests)).await;
    let look = look.expect("polled");
    assert!(look.is_changed && !look.is_requested);
    assert_eq!(text(look), Ok("two".to_owned()));
}

#[test]
fn debug_shows_no_content() {
    let folder = Folder::new("canary");
    let (files, contents) = WatchedFiles::open(vec![folder.file()]);
    let shown = format!("{files:?} {contents:?}");
    assert!(shown.contains("file") && !shown.contains("canary"));
    assert!(!shown.contains("99, 97, 110"), "{shown}");
}
