use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::config::load;
use crate::watched_files::ReloadSignal;

const MINIMAL: &str = r#"
    profile = "none"
    [[listener]]
    address = "127.0.0.1:0"
    [operator]
    address = "127.0.0.1:0"
    [upstream.main]
    url = "http://127.0.0.1:1"
    [users]
    directory = "webapp"
"#;

/// A config file in its own folder, a watcher on it, and the configurations that it applied.
struct Watched {
    folder: PathBuf,
    metrics: Arc<Metrics>,
    signal: ReloadSignal,
    stop: ShutdownSignal,
    applied: mpsc::UnboundedReceiver<Arc<Config>>,
    end: tokio::task::JoinHandle<()>,
}

#[derive(Debug, thiserror::Error)]
#[error("no such luck")]
struct ApplyFailed;

impl Watched {
    fn start(name: &str, every: Duration, app_agrees: bool) -> Self {
        let folder = std::env::temp_dir().join(format!("tollgate-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("config.toml");
        std::fs::write(&path, MINIMAL).unwrap();
        let current = Arc::new(load(&path).unwrap().config);
        let metrics = Metrics::new();
        let signal = ReloadSignal::default();
        let stop = ShutdownSignal::default();
        let mut watcher = ConfigWatcher::new(path, Arc::clone(&metrics), signal.subscribe());
        watcher.files = watcher.files.polled_every(every);
        let (sender, applied) = mpsc::unbounded_channel();
        let apply = move |config: Arc<Config>| {
            let sender = sender.clone();
            async move {
                if !app_agrees {
                    return Err(ApplyFailed);
                }
                let _ = sender.send(config);
                Ok(())
            }
        };
        let tasks = tokio::runtime::Handle::current();
        let end = tasks.spawn(watcher.run(current, stop.clone(), apply));
        Self {
            folder,
            metrics,
            signal,
            stop,
            applied,
            end,
        }
    }

    fn write(&self, more: &str) {
        let text = format!("{MINIMAL}{more}");
        // As editors and mounted config maps do: a new file is renamed over the old one.
        let new = self.folder.join("config.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.folder.join("config.toml")).unwrap();
    }

    /// Requests a read, and waits until `result` has been counted `count` times.
    async fn reload(&self, result: ReloadResult, count: u64) {
        self.signal.send();
        let counted = async {
            while self.metrics.reloads.value(result) < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let counted = timeout(Duration::from_secs(10), counted);
        counted.await.expect("within the deadline");
        assert_eq!(self.metrics.reloads.value(result), count);
        let is_current = i64::from(result != ReloadResult::Refused);
        assert_eq!(self.metrics.config_is_current.get(), is_current);
    }

    async fn end(self) {
        self.stop.drain();
        timeout(Duration::from_secs(10), self.end)
            .await
            .expect("drain ends the watcher")
            .unwrap();
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

const NEVER: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn a_changed_file_is_applied_without_a_signal() {
    let mut watched = Watched::start("poll", Duration::from_millis(5), true);
    watched.write("[drain]\nwait = \"1s\"\n");
    let applied = timeout(Duration::from_secs(10), watched.applied.recv());
    let config = applied.await.expect("within the deadline").unwrap();
    assert_eq!(config.drain.wait, Duration::from_secs(1));
    watched.end().await;
}

#[tokio::test]
async fn a_bad_file_is_refused_and_the_next_good_one_applied() {
    let mut watched = Watched::start("bad", NEVER, true);
    watched.write("[drain]\nwait = 7\nwayt = 1\n");
    watched.reload(ReloadResult::Refused, 1).await;
    assert!(watched.applied.try_recv().is_err());

    watched.write("[drain]\nwait = \"7s\"\n");
    watched.reload(ReloadResult::Applied, 1).await;
    let applied = watched.applied.try_recv().unwrap();
    assert_eq!(applied.drain.wait, Duration::from_secs(7));
    watched.end().await;
}

#[tokio::test]
async fn the_old_file_is_accepted_again_after_a_bad_one() {
    let watched = Watched::start("back", NEVER, true);
    watched.write("nonsense = [");
    watched.reload(ReloadResult::Refused, 1).await;
    watched.write("# a remark\n");
    watched.reload(ReloadResult::Unchanged, 1).await;
    watched.end().await;
}

#[tokio::test]
async fn a_config_that_cannot_be_applied_is_refused_and_can_be_tried_again() {
    let watched = Watched::start("app", NEVER, false);
    watched.write("[drain]\nwait = \"1s\"\n");
    watched.reload(ReloadResult::Refused, 1).await;
    watched.reload(ReloadResult::Refused, 2).await;
    watched.end().await;
}

#[tokio::test]
async fn a_missing_or_binary_file_is_refused_until_it_is_valid_again() {
    let watched = Watched::start("gone", NEVER, true);
    let path = watched.folder.join("config.toml");
    std::fs::remove_file(&path).unwrap();
    watched.reload(ReloadResult::Refused, 1).await;
    std::fs::write(&path, b"# \xff\n").unwrap();
    watched.reload(ReloadResult::Refused, 2).await;
    std::fs::write(&path, format!("{MINIMAL}{}", "#".repeat(1 << 20))).unwrap();
    watched.reload(ReloadResult::Refused, 3).await;
    watched.write("");
    watched.reload(ReloadResult::Unchanged, 1).await;
    watched.end().await;
}

#[tokio::test]
async fn a_file_that_stays_bad_is_reported_once() {
    let watched = Watched::start("once", Duration::from_millis(2), true);
    std::fs::remove_file(watched.folder.join("config.toml")).unwrap();
    let refused = || watched.metrics.reloads.value(ReloadResult::Refused);
    let counted = async {
        while refused() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let counted = timeout(Duration::from_secs(10), counted).await;
    counted.expect("within the deadline");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(refused(), 1);
    assert_eq!(watched.metrics.config_is_current.get(), 0);
    watched.end().await;
}

#[test]
fn a_file_with_several_problems_is_refused_with_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, format!("{MINIMAL}[drain]\nwait = 7\nwayt = 1\n")).unwrap();
    let (_, contents) = WatchedFiles::open(vec![path]);
    let problems = load_file(contents.into_file()).unwrap_err();
    assert_eq!(problems.problems.len(), 2, "{problems}");
}

#[test]
fn a_problem_found_while_applying_a_file_has_its_line() {
    let loaded = crate::config::parse(MINIMAL, std::path::Path::new("")).unwrap();
    let requests = ReloadRequests::never();
    let watcher = ConfigWatcher::new("gate.toml".into(), Metrics::new(), requests);
    let problem = |key: &str| crate::config::Problem {
        line: None,
        key: key.to_owned(),
        reason: "is of no use".to_owned(),
        suggestion: None,
    };
    let problems = vec![problem("upstream.main.url"), problem("listener[0].tls")];
    let found = Problems::found("the configuration".to_owned(), problems);
    let refused = watcher.refused(found.into(), &loaded.lines);
    assert_eq!(
        refused.to_string(),
        "gate.toml: 2 problems\n  3  listener[0].tls    is of no use\n  8  upstream.main.url  is of no use"
    );
    let other = watcher.refused(ApplyFailed.into(), &loaded.lines);
    assert!(matches!(other, ReloadRefused::Unusable(_)));
}
