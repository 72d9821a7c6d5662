//! The log lines of a start that takes long.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tracing::subscriber::DefaultGuard;

use super::*;

/// The log lines of this thread.
#[derive(Clone, Default)]
struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl io::Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = self.0.lock();
        buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl CapturedLog {
    fn capture(&self) -> DefaultGuard {
        let out = self.clone();
        let log = tracing_subscriber::fmt().with_ansi(false);
        tracing::subscriber::set_default(log.with_writer(move || out.clone()).finish())
    }

    fn lines(&self, what: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains(what));
        lines.map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_long_load_logs_its_progress() {
    let engine = start(&Disk::laid_out()).unwrap();
    for number in 0..200 {
        commit(&engine, put(number, "anna")).await.unwrap();
    }
    let log = CapturedLog::default();
    let _listening = log.capture();
    let slow = || -> GrantBatchSink<'static> {
        Box::new(|grants| std::thread::sleep(Duration::from_millis(2) * grants.len() as u32))
    };
    let loaded = engine.load(Box::new(slow)).await.unwrap();
    assert_eq!(loaded.live, 200);
    let lines = log.lines("loading tokens");
    assert!(lines.len() > 1, "{lines:?}");
    let rows = lines.iter().map(|line| {
        assert!(line.contains("total=200"), "{line}");
        let (_, rows) = line.split_once("rows=").unwrap();
        let (rows, _) = rows.split_once(' ').unwrap();
        rows.parse::<u64>().unwrap()
    });
    assert!(rows.is_sorted_by(|one, next| one < next), "{lines:?}");
    engine.close().await;
}

#[tokio::test]
async fn the_check_after_an_unclean_stop_is_logged_with_its_progress() {
    let disk = Disk::laid_out();
    let log = CapturedLog::default();
    let _listening = log.capture();
    start(&disk).unwrap().close().await;
    assert!(
        log.lines("checking").is_empty(),
        "the store was closed cleanly"
    );
    let engine = start(&disk).unwrap();
    commit(&engine, put(1, "anna")).await.unwrap();
    let again = start(&disk.after_a_power_cut(|| true)).unwrap();
    let lines = log.lines("the gateway was not stopped cleanly; checking the store");
    // The check took no time, so there are no further lines.
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("percent=0"), "{lines:?}");
    assert!(has(&again, 1).await);
}

#[tokio::test]
async fn a_cancelled_load_ends_soon() {
    let engine = start(&Disk::laid_out()).unwrap();
    for number in 0..200 {
        commit(&engine, put(number, "anna")).await.unwrap();
    }
    let given = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&given);
    let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
    let slow = move || -> GrantBatchSink<'static> {
        let (count, begun) = (Arc::clone(&count), begun.clone());
        Box::new(move |grants| {
            count.fetch_add(grants.len(), Ordering::Relaxed);
            let _ = begun.send(());
            std::thread::sleep(Duration::from_millis(100));
        })
    };
    tokio::select! {
        _ = engine.load(Box::new(slow)) => panic!("the slow load has ended"),
        _ = has_begun.recv() => {}
    }
    engine.close().await;
    assert!(given.load(Ordering::Relaxed) < 200);
}
