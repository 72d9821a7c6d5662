//! Staggered attempts ("Happy Eyeballs", RFC 8305, section 5): attempts start one after the other,
//! each when the one before has failed or its delay is over. The first success ends the race, and
//! the other attempts are dropped.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

const MIN_DELAY: Duration = Duration::from_millis(20);

/// The candidates of a race; more may become known while it runs.
pub trait CandidateSource<K> {
    /// The next candidate that has not been returned yet.
    fn next(&mut self) -> Option<K>;

    /// Number of known candidates that have not been returned yet.
    fn left(&self) -> usize;

    /// Waits until there may be a next candidate; false: there will be none.
    fn more(&mut self) -> impl Future<Output = bool> + Send;
}

/// The candidates of a list, in its order.
#[derive(Debug)]
pub struct CandidateList<K>(pub std::vec::IntoIter<K>);

impl<K: Send> CandidateSource<K> for CandidateList<K> {
    fn next(&mut self) -> Option<K> {
        self.0.next()
    }

    fn left(&self) -> usize {
        self.0.len()
    }

    async fn more(&mut self) -> bool {
        false
    }
}

/// When the next attempt starts, and when the race ends.
#[derive(Clone, Copy, Debug)]
pub struct StaggerDelays {
    /// Time after the start of the previous attempt.
    pub delay: Duration,
    /// The same if an attempt has reported that it is half-way.
    pub delay_half_way: Duration,
    /// When the race ends without a winner.
    pub until: Option<Instant>,
}

impl StaggerDelays {
    /// The delay with `left` candidates left: shorter with many, so that all are tried in time.
    fn delay_with(self, left: usize) -> Duration {
        let Some(until) = self.until else {
            return self.delay;
        };
        let time = until.saturating_duration_since(Instant::now()) / 2;
        let share = time / u32::try_from(left.max(1)).unwrap_or(u32::MAX);
        share.clamp(MIN_DELAY.min(self.delay), self.delay)
    }
}

/// Set by an attempt that is half-way, such as a TCP connection before its TLS handshake.
#[derive(Clone, Debug, Default)]
pub struct HalfWay(Arc<AtomicBool>);

impl HalfWay {
    pub fn reached(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_reached(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The attempt that succeeded.
#[derive(Debug)]
pub struct RaceWon<K, T, E> {
    pub candidate: K,
    pub value: T,
    /// Attempts that failed before.
    pub failed: Vec<(K, E)>,
    /// Attempts that were still running after their delay.
    pub overtaken: Vec<K>,
}

/// A race without a successful attempt.
#[derive(Debug)]
pub struct RaceLost<K, E> {
    pub failed: Vec<(K, E)>,
    /// Attempts that were still running when the time was up.
    pub unfinished: Vec<UnfinishedAttempt<K>>,
    pub is_late: bool,
}

/// An attempt that was still running when the race ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnfinishedAttempt<K> {
    pub candidate: K,
    pub is_half_way: bool,
    /// It had run for the delay after which the next attempt starts.
    pub was_delayed: bool,
}

struct RunningAttempt<K, T, E> {
    candidate: K,
    began: Instant,
    half_way: HalfWay,
    work: Pin<Box<dyn Future<Output = Result<T, E>> + Send>>,
}

/// Runs attempts at the candidates until one succeeds, all have failed or the time is up.
pub async fn race<K, T, E, F>(
    candidates: &mut (impl CandidateSource<K> + Send),
    stagger: StaggerDelays,
    mut attempt: impl FnMut(K, HalfWay) -> F,
) -> Result<RaceWon<K, T, E>, RaceLost<K, E>>
where
    K: Copy,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let mut running: Vec<RunningAttempt<K, T, E>> = Vec::new();
    let mut failed = Vec::new();
    let mut is_exhausted = false;
    let mut next_start = Instant::now();
    loop {
        if running.is_empty() {
            next_start = Instant::now();
        }
        let is_due = next_start <= Instant::now();
        if is_due && let Some(candidate) = candidates.next() {
            let half_way = HalfWay::default();
            running.push(RunningAttempt {
                candidate,
                began: Instant::now(),
                work: Box::pin(attempt(candidate, half_way.clone())),
                half_way,
            });
            next_start = Instant::now() + stagger.delay_with(candidates.left());
            continue;
        }
        if running.is_empty() && is_exhausted {
            return Err(lost(running, failed, stagger, false));
        }
        tokio::select! {
            biased;
            (at, outcome) = first(&mut running), if !running.is_empty() => {
                let ended = running.swap_remove(at);
                match outcome {
                    Ok(value) => return Ok(won(&ended, value, running, failed, stagger)),
                    Err(failure) => failed.push((ended.candidate, failure)),
                }
                next_start = Instant::now();
            }
            () = until(stagger.until) => return Err(lost(running, failed, stagger, true)),
            () = sleep_until(next_start), if !is_due => {
                next_start = half_way_end(&running, stagger).unwrap_or(next_start);
            }
            has_more = candidates.more(), if is_due && !is_exhausted => is_exhausted = !has_more,
        }
    }
}

/// Until when no further attempt starts because of the attempts that are half-way.
fn half_way_end<K, T, E>(
    running: &[RunningAttempt<K, T, E>],
    stagger: StaggerDelays,
) -> Option<Instant> {
    let half_way = running
        .iter()
        .filter(|attempt| attempt.half_way.is_reached());
    let end = half_way.map(|attempt| attempt.began + stagger.delay_half_way);
    end.max()
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Waits for the first of `running` to end; returns its index and outcome.
async fn first<K, T, E>(running: &mut [RunningAttempt<K, T, E>]) -> (usize, Result<T, E>) {
    poll_fn(|cx| {
        for (at, attempt) in running.iter_mut().enumerate() {
            if let Poll::Ready(outcome) = attempt.work.as_mut().poll(cx) {
                return Poll::Ready((at, outcome));
            }
        }
        Poll::Pending
    })
    .await
}

fn won<K: Copy, T, E>(
    winner: &RunningAttempt<K, T, E>,
    value: T,
    running: Vec<RunningAttempt<K, T, E>>,
    failed: Vec<(K, E)>,
    stagger: StaggerDelays,
) -> RaceWon<K, T, E> {
    let began = winner.began;
    let earlier = |loser: &RunningAttempt<K, T, E>| loser.began + stagger.delay <= began;
    RaceWon {
        candidate: winner.candidate,
        value,
        failed,
        overtaken: running
            .into_iter()
            .filter(earlier)
            .map(|loser| loser.candidate)
            .collect(),
    }
}

fn lost<K: Copy, T, E>(
    running: Vec<RunningAttempt<K, T, E>>,
    failed: Vec<(K, E)>,
    stagger: StaggerDelays,
    is_late: bool,
) -> RaceLost<K, E> {
    let now = Instant::now();
    let unfinished = running.into_iter().map(|attempt| UnfinishedAttempt {
        candidate: attempt.candidate,
        is_half_way: attempt.half_way.is_reached(),
        was_delayed: attempt.began + stagger.delay <= now,
    });
    RaceLost {
        failed,
        unfinished: unfinished.collect(),
        is_late,
    }
}

#[cfg(test)]
mod tests;
