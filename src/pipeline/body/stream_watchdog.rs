//! Samples all bodies of one worker four times a second: cuts the streams that are too slow, returns
//! the upstream permits of streams that wait for their clients (`permit_state`), and forgets the
//! streams that have ended.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::permit_state::{ParkOutcome, SAMPLE_INTERVAL};
use super::response_stream::{ResponseStream, StreamCell, StreamCutReason};
use super::upload::UploadState;
use crate::lifecycle::ShutdownSignal;

/// Handle to the watched streams of one worker.
#[derive(Clone, Debug, Default)]
pub struct SlowStreamWatchdog {
    watched: Arc<WatchedStreams>,
}

#[derive(Debug, Default)]
struct WatchedStreams {
    responses: Mutex<Vec<Weak<Mutex<ResponseStream>>>>,
    uploads: Mutex<Vec<Weak<UploadState>>>,
    /// Wakes the watchdog when the first stream of a list is added.
    first_added: Notify,
}

impl SlowStreamWatchdog {
    pub(super) fn add(&self, stream: &StreamCell) {
        self.push(&self.watched.responses, Arc::downgrade(stream));
    }

    /// Watches an upload that holds a permit.
    pub(super) fn add_upload(&self, upload: &Arc<UploadState>) {
        self.push(&self.watched.uploads, Arc::downgrade(upload));
    }

    fn push<T>(&self, list: &Mutex<Vec<T>>, stream: T) {
        let mut list = list.lock();
        list.push(stream);
        if list.len() == 1 {
            self.watched.first_added.notify_one();
        }
    }

    /// Takes one sample of each stream; false when there is none left to watch.
    fn sample(&self) -> bool {
        let now = Instant::now();
        let mut uploads = self.watched.uploads.lock();
        uploads.retain(|upload| {
            upload
                .upgrade()
                .is_some_and(|upload| upload.check_progress())
        });
        let has_uploads = !uploads.is_empty();
        drop(uploads);

        let mut responses = self.watched.responses.lock();
        let mut lagging: Vec<StreamCell> = Vec::new();
        responses.retain(|response| {
            let Some(cell) = response.upgrade() else {
                return false;
            };
            let mut stream = cell.lock();
            if let Some(reason) = stream.overdue(now) {
                stream.cut(reason);
            }
            if stream.sample_lag() {
                lagging.push(Arc::clone(&cell));
            }
            stream.is_open()
        });
        for cell in lagging {
            let outcome = cell.lock().park();
            if outcome == ParkOutcome::MustEnd {
                make_room(&responses, &cell, now);
            }
        }
        has_uploads || !responses.is_empty()
    }

    /// Runs until the program aborts: streams are timed during a drain too.
    pub async fn watch(self, stop: ShutdownSignal) {
        loop {
            let has_streams = self.sample();
            tokio::select! {
                () = stop.aborting() => return,
                () = sleep(SAMPLE_INTERVAL), if has_streams => {}
                () = self.watched.first_added.notified(), if !has_streams => {}
            }
        }
    }
}

/// Cuts the slowest of a client's stalled streams to free its slot for `cell`, or `cell` itself if
/// that is the slowest.
fn make_room(responses: &[Weak<Mutex<ResponseStream>>], cell: &StreamCell, now: Instant) {
    let mut stream = cell.lock();
    let mut slowest: Option<StreamCell> = None;
    let mut lowest_rate = stream.rate.rate(now);
    for other in responses.iter().filter_map(Weak::upgrade) {
        if Arc::ptr_eq(&other, cell) {
            continue;
        }
        let candidate = other.lock();
        let frees_slot = stream.can_take_slot_of(&candidate);
        let rate = candidate.rate.rate(now);
        drop(candidate);
        if frees_slot && rate < lowest_rate {
            lowest_rate = rate;
            slowest = Some(other);
        }
    }
    match slowest {
        Some(other) => {
            other.lock().cut(StreamCutReason::NoRoom);
            // Succeeds: on this worker no other stream of the client can take the slot in between.
            let _ = stream.park();
        }
        None => stream.cut(StreamCutReason::NoRoom),
    }
}
