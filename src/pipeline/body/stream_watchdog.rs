//! The look, four times a second, over all bodies of one worker: it cuts what is too slow, takes
//! turns at the upstream back from streams that wait for their clients (`upstream_turn`), and
//! forgets what has ended.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::permit_state::{LOOK_EVERY, ParkedTurn};
use super::streaming::{ResponseStream, StreamCell, StreamCutReason, lock};
use super::upload::UploadState;
use crate::lifecycle::ShutdownSignal;

/// All streams of one worker that are watched.
#[derive(Clone, Debug, Default)]
pub struct SlowStreamWatchdog {
    watched: Arc<WatchedStreams>,
}

#[derive(Debug, Default)]
struct WatchedStreams {
    answers: Mutex<Vec<Weak<Mutex<ResponseStream>>>>,
    uploads: Mutex<Vec<Weak<UploadState>>>,
    /// There is something to watch again.
    begun: Notify,
}

impl SlowStreamWatchdog {
    pub(in crate::pipeline) fn add(&self, cell: &StreamCell) {
        let answers = &self.watched.answers;
        self.begin(answers, Arc::downgrade(cell));
    }

    /// An upload that holds a turn.
    pub(super) fn add_upload(&self, upload: &Arc<UploadState>) {
        let uploads = &self.watched.uploads;
        self.begin(uploads, Arc::downgrade(upload));
    }

    fn begin<T>(&self, list: &Mutex<Vec<T>>, stream: T) {
        let mut list = list.lock();
        list.push(stream);
        if list.len() == 1 {
            self.watched.begun.notify_one();
        }
    }

    /// Cuts what has become too slow, takes turns back from streams that wait for their
    /// clients, and forgets what has ended. False: there is nothing left to watch.
    fn look(&self) -> bool {
        let now = Instant::now();
        let uploads = &self.watched.uploads;
        let mut uploads = uploads.lock();
        uploads.retain(|upload| {
            upload
                .upgrade()
                .is_some_and(|upload| upload.check_progress())
        });
        let has_uploads = !uploads.is_empty();
        drop(uploads);

        let answers = &self.watched.answers;
        let mut answers = answers.lock();
        let mut lagging: Vec<StreamCell> = Vec::new();
        answers.retain(|answer| {
            let Some(cell) = answer.upgrade() else {
                return false;
            };
            let mut flow = lock(&cell);
            if let Some(why) = flow.overdue(now) {
                flow.cut(why);
            }
            if flow.lags() {
                lagging.push(Arc::clone(&cell));
            }
            flow.body.is_some()
        });
        for cell in lagging {
            if lock(&cell).park() == ParkedTurn::MustEnd {
                make_room(&answers, &cell, now);
            }
        }
        has_uploads || !answers.is_empty()
    }

    /// Looks until the program aborts: what streams during a drain is timed too.
    pub async fn watch(self, stop: ShutdownSignal) {
        loop {
            let has_streams = self.look();
            tokio::select! {
                () = stop.aborting() => return,
                () = sleep(LOOK_EVERY), if has_streams => {}
                () = self.watched.begun.notified(), if !has_streams => {}
            }
        }
    }
}

/// Cuts the slowest of a client's stalled streams for the one in `cell`, or this one if
/// it is the slowest.
fn make_room(answers: &[Weak<Mutex<ResponseStream>>], cell: &StreamCell, now: Instant) {
    let mut flow = lock(cell);
    let mut slowest: Option<StreamCell> = None;
    let mut least = flow.pace.rate(now);
    for other in answers.iter().filter_map(Weak::upgrade) {
        if Arc::ptr_eq(&other, cell) {
            continue;
        }
        let candidate = lock(&other);
        let is_of_client = match (&flow.body, &candidate.body) {
            (Some((_, held)), Some((_, other))) => held.turn.would_gain_by(&other.turn),
            _ => false,
        };
        let rate = candidate.pace.rate(now);
        drop(candidate);
        if is_of_client && rate < least {
            least = rate;
            slowest = Some(other);
        }
    }
    match slowest {
        Some(other) => {
            lock(&other).cut(StreamCutReason::NoRoom);
            // The place is this client's: no other stream of it comes between on this worker.
            let _ = flow.park();
        }
        None => flow.cut(StreamCutReason::NoRoom),
    }
}
