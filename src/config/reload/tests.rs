use tokio::time::timeout;

use super::*;

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
    reloader: ReloadHandle,
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
        let (reloader, requests) = reloader();
        let stop = ShutdownSignal::default();
        let mut watcher = ConfigWatcher::new(path, Arc::clone(&metrics), requests);
        watcher.every = every;
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
            reloader,
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
async fn a_bad_file_is_refused_with_all_problems_and_the_next_good_one_applied() {
    let mut watched = Watched::start("bad", NEVER, true);
    watched.write("[drain]\nwait = 7\nwayt = 1\n");
    let Ok(ReloadOutcome::Refused(ReloadRefused::Problems(problems))) =
        watched.reloader.reload().await
    else {
        panic!("refused");
    };
    assert_eq!(problems.problems.len(), 2, "{problems}");
    assert_eq!(watched.metrics.config_is_current.get(), 0);
    assert_eq!(watched.metrics.reloads.value(ReloadResult::Refused), 1);
    assert!(watched.applied.try_recv().is_err());

    watched.write("[drain]\nwait = \"7s\"\n");
    let outcome = watched.reloader.reload().await.unwrap();
    assert!(matches!(outcome, ReloadOutcome::Applied(found) if found[0].key == "drain"));
    assert_eq!(watched.metrics.config_is_current.get(), 1);
    assert_eq!(watched.metrics.reloads.value(ReloadResult::Applied), 1);
    watched.end().await;
}

#[tokio::test]
async fn the_old_file_is_accepted_again_after_a_bad_one() {
    let watched = Watched::start("back", NEVER, true);
    watched.write("nonsense = [");
    watched.reloader.reload().await.unwrap();
    watched.write("# a remark\n");
    let outcome = watched.reloader.reload().await.unwrap();
    assert!(matches!(outcome, ReloadOutcome::Unchanged));
    assert_eq!(watched.metrics.config_is_current.get(), 1);
    watched.end().await;
}

#[tokio::test]
async fn a_config_that_cannot_be_applied_is_refused_and_can_be_tried_again() {
    let watched = Watched::start("app", NEVER, false);
    watched.write("[drain]\nwait = \"1s\"\n");
    for _ in 0..2 {
        let outcome = watched.reloader.reload().await.unwrap();
        assert!(matches!(
            outcome,
            ReloadOutcome::Refused(ReloadRefused::Unusable(_))
        ));
    }
    assert_eq!(watched.metrics.reloads.value(ReloadResult::Refused), 2);
    watched.end().await;
}

#[tokio::test]
async fn a_missing_file_is_refused() {
    let watched = Watched::start("gone", NEVER, true);
    std::fs::remove_file(watched.folder.join("config.toml")).unwrap();
    let outcome = watched.reloader.reload().await.unwrap();
    assert!(matches!(
        outcome,
        ReloadOutcome::Refused(ReloadRefused::Problems(_))
    ));
    watched.end().await;
}

#[tokio::test]
async fn after_the_drain_no_caller_waits_for_a_result() {
    let watched = Watched::start("drain", NEVER, true);
    let reloader = watched.reloader.clone();
    watched.end().await;
    assert!(matches!(reloader.reload().await, Err(WatcherGone)));
}

#[test]
fn a_problem_found_while_applying_a_file_has_its_line() {
    let loaded = crate::config::parse(MINIMAL, std::path::Path::new("")).unwrap();
    let (_, requests) = reloader();
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
