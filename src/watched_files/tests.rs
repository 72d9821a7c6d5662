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

    /// Watches the file, whose content the reader has.
    fn opened(&self) -> WatchedFiles {
        WatchedFiles::open(vec![self.file()]).0
    }
}

/// What one poll gives to the reader: the text, or the error.
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
async fn what_was_read_at_the_start_is_no_change_and_unread_files_are_one() {
    let folder = Folder::new("one");
    let (files, contents) = WatchedFiles::open(vec![folder.file()]);
    assert_eq!(**contents.into_file().content.as_ref().unwrap(), *b"one");
    assert_eq!(poll(&files).await, None);
    let unread = WatchedFiles::new(vec![folder.file()]);
    assert_eq!(poll(&unread).await, None, "not yet seen twice");
    assert_eq!(poll(&unread).await, found("one"));
    assert_eq!(poll(&unread).await, None);
}

#[tokio::test]
async fn a_folder_that_kubernetes_swaps_is_a_change() {
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
    // A swap that leaves this file as it was.
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
    // Back to what it was.
    fs::write(folder.file(), "one").unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, found("one"));
}

#[tokio::test]
async fn a_file_that_is_being_written_is_left_alone_until_it_stays_the_same() {
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
async fn a_content_that_was_there_for_one_poll_only_is_no_change() {
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
    // A new time is none.
    file.set_modified(modified + Duration::from_secs(60))
        .unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, None);
}

#[tokio::test]
async fn a_file_that_is_gone_is_reported_once_and_so_is_its_return() {
    let folder = Folder::new("one");
    let files = folder.opened();
    fs::remove_file(folder.file()).unwrap();
    assert_eq!(poll(&files).await, None);
    assert_error(poll(&files).await, "No such file");
    for _ in 0..3 {
        assert_eq!(poll(&files).await, None, "once per cause");
    }
    fs::write(folder.file(), "one").unwrap();
    assert_eq!(poll(&files).await, None);
    assert_eq!(poll(&files).await, found("one"));
}

#[tokio::test]
async fn a_file_that_is_gone_for_a_moment_is_not_reported() {
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
async fn a_pipe_is_not_read_and_neither_is_a_file_without_an_end() {
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
async fn files_that_belong_together_are_read_together() {
    let folder = Folder::new("certificate 1");
    fs::write(folder.path("key"), "key 1").unwrap();
    let files = WatchedFiles::open(vec![folder.file(), folder.path("key")]).0;
    fs::write(folder.file(), "certificate 2").unwrap();
    assert!(files.look(false).await.is_none());
    fs::write(folder.path("key"), "key 2").unwrap();
    assert!(files.look(false).await.is_none(), "the key is new");
    let look = files.look(false).await.unwrap();
    let all = look.contents.into_files();
    let all: Vec<_> = all.iter().map(|file| file.content.as_ref()).collect();
    assert_eq!(**all[0].unwrap(), *b"certificate 2");
    assert_eq!(**all[1].unwrap(), *b"key 2");
    // What one file loses and the other gains is a change too.
    fs::write(folder.file(), "certificate 2k").unwrap();
    fs::write(folder.path("key"), "ey 2").unwrap();
    assert!(files.look(false).await.is_none());
    assert!(files.look(false).await.is_some());
}

#[tokio::test]
async fn replaced_files_are_watched_from_what_was_read_of_them() {
    let folder = Folder::new("one");
    let files = folder.opened();
    fs::write(folder.file(), "two").unwrap();
    let late = files.look(true).await.unwrap();
    fs::write(folder.path("other"), "three").unwrap();
    let (other, _) = WatchedFiles::open(vec![folder.path("other")]);
    files.replace(other);
    assert!(!files.is_latest(&late.contents), "read before");
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
async fn a_request_reads_at_once_whether_or_not_there_is_a_change() {
    let folder = Folder::new("one");
    let files = folder.opened().polled_every(NEVER);
    let signal = ReloadSignal::default();
    let mut requests = signal.subscribe();
    fs::write(folder.file(), "two").unwrap();
    // Neither a request from before the wait nor the second of two is lost, and both are one.
    signal.send();
    signal.send();
    let look = timeout(TEST_TIMEOUT, files.next_look(&mut requests));
    let look = look.await.expect("at once");
    assert!(look.is_changed && look.is_requested);
    assert_eq!(text(look), Ok("two".to_owned()));
    let short = Duration::from_millis(100);
    let again = timeout(short, files.next_look(&mut requests)).await;
    assert!(again.is_err(), "one request");
    signal.send();
    let look = timeout(TEST_TIMEOUT, files.next_look(&mut requests));
    let look = look.await.expect("at once");
    assert!(!look.is_changed && look.is_requested);
    // An error is not kept back either.
    fs::remove_file(folder.file()).unwrap();
    signal.send();
    let look = files.next_look(&mut requests).await;
    assert_error(Some(text(look)), "No such file");
}

#[tokio::test]
async fn a_request_during_the_readers_work_is_followed_by_another_read() {
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
    assert_eq!(next().await, Some(false), "the request that came meanwhile");
    task.abort();
}

#[tokio::test]
async fn polls_find_a_change_without_a_request_and_outlive_the_signal() {
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
