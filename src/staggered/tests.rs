//! How long a race takes, and which candidate wins.

use tokio::{sync::mpsc, time::sleep};

use super::*;

const STAGGER: StaggerDelays = StaggerDelays {
    delay: Duration::from_millis(250),
    delay_half_way: Duration::from_secs(1),
    until: None,
};

/// The scripted outcome of one candidate.
#[derive(Clone, Copy, Debug)]
enum AttemptOutcome {
    Good(u64),
    Bad(u64),
    Silent,
    /// Connected after the first time, done after the second.
    Slow(u64, u64),
}

type Outcome = Result<RaceWon<usize, Instant, ()>, RaceLost<usize, ()>>;

async fn run(outcomes: &'static [AttemptOutcome], stagger: StaggerDelays) -> (Outcome, u128) {
    let began = Instant::now();
    let mut candidates = CandidateList((0..outcomes.len()).collect::<Vec<_>>().into_iter());
    let outcome = race(&mut candidates, stagger, |at, half_way| async move {
        let started = Instant::now();
        let pause = |millis| sleep(Duration::from_millis(millis));
        match outcomes[at] {
            AttemptOutcome::Good(after) => pause(after).await,
            AttemptOutcome::Bad(after) => {
                pause(after).await;
                return Err(());
            }
            AttemptOutcome::Silent => std::future::pending().await,
            AttemptOutcome::Slow(half, after) => {
                pause(half).await;
                half_way.reached();
                pause(after).await;
            }
        }
        Ok(started)
    })
    .await;
    (outcome, began.elapsed().as_millis())
}

#[tokio::test(start_paused = true)]
async fn a_silent_attempt_costs_its_delay_and_a_failed_one_nothing() {
    for (outcomes, winner, cost) in [
        (&[AttemptOutcome::Good(10)][..], 0, 10),
        (&[AttemptOutcome::Silent, AttemptOutcome::Good(10)], 1, 260),
        (&[AttemptOutcome::Bad(5), AttemptOutcome::Good(10)], 1, 15),
        (
            &[AttemptOutcome::Bad(300), AttemptOutcome::Good(10)],
            1,
            260,
        ),
        (
            &[
                AttemptOutcome::Silent,
                AttemptOutcome::Bad(5),
                AttemptOutcome::Silent,
                AttemptOutcome::Good(10),
            ],
            3,
            515,
        ),
        // The first candidate is late, but within its limit.
        (
            &[
                AttemptOutcome::Good(400),
                AttemptOutcome::Silent,
                AttemptOutcome::Silent,
            ],
            0,
            400,
        ),
    ] {
        let (outcome, elapsed) = run(outcomes, STAGGER).await;
        assert_eq!(outcome.unwrap().candidate, winner, "{outcomes:?}");
        assert!(
            (cost..cost + 5).contains(&elapsed),
            "{outcomes:?}: {elapsed} ms"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn only_attempts_past_their_delay_are_reported_as_overtaken() {
    let (outcome, _) = run(&[AttemptOutcome::Silent, AttemptOutcome::Good(10)], STAGGER).await;
    assert_eq!(outcome.unwrap().overtaken, [0]);
    let (outcome, _) = run(
        &[AttemptOutcome::Good(300), AttemptOutcome::Silent],
        STAGGER,
    )
    .await;
    assert!(outcome.unwrap().overtaken.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_connected_has_more_time() {
    let (outcome, elapsed) = run(
        &[AttemptOutcome::Slow(50, 700), AttemptOutcome::Good(1)],
        STAGGER,
    )
    .await;
    assert_eq!(outcome.unwrap().candidate, 0);
    assert!((750..760).contains(&elapsed), "{elapsed}");
    let (outcome, elapsed) = run(
        &[AttemptOutcome::Slow(50, 9000), AttemptOutcome::Good(1)],
        STAGGER,
    )
    .await;
    let won = outcome.unwrap();
    assert_eq!((won.candidate, won.overtaken), (1, vec![0]));
    assert!((1001..1010).contains(&elapsed), "{elapsed}");
}

#[tokio::test(start_paused = true)]
async fn the_race_ends_in_time_and_reports_its_attempts() {
    let stagger = StaggerDelays {
        until: Some(Instant::now() + Duration::from_millis(600)),
        ..STAGGER
    };
    let outcomes = &[
        AttemptOutcome::Bad(1),
        AttemptOutcome::Silent,
        AttemptOutcome::Slow(1, 9999),
    ];
    let (outcome, elapsed) = run(outcomes, stagger).await;
    let lost = outcome.unwrap_err();
    assert!((600..605).contains(&elapsed) && lost.is_late, "{elapsed}");
    assert_eq!(lost.failed, [(0, ())]);
    let half_way = lost.unfinished.iter().map(|one| one.is_half_way);
    assert!(half_way.eq([false, true]));
    let (outcome, _) = run(&[AttemptOutcome::Bad(1), AttemptOutcome::Bad(1)], STAGGER).await;
    assert_eq!(outcome.unwrap_err().failed.len(), 2);
    assert!(run(&[], STAGGER).await.0.is_err());
}

#[tokio::test(start_paused = true)]
async fn many_candidates_share_the_time_available() {
    let mut outcomes = vec![AttemptOutcome::Silent; 19];
    outcomes.push(AttemptOutcome::Good(1));
    let stagger = StaggerDelays {
        until: Some(Instant::now() + Duration::from_secs(2)),
        ..STAGGER
    };
    let (outcome, elapsed) = run(outcomes.leak(), stagger).await;
    assert_eq!(outcome.unwrap().candidate, 19);
    assert!(elapsed < 1900, "{elapsed}");
}

/// Candidates that are found during the race.
struct LateResult(mpsc::UnboundedReceiver<usize>, Option<usize>);

impl CandidateSource<usize> for LateResult {
    fn next(&mut self) -> Option<usize> {
        self.1.take().or_else(|| self.0.try_recv().ok())
    }

    fn left(&self) -> usize {
        self.0.len()
    }

    async fn more(&mut self) -> bool {
        self.1 = self.0.recv().await;
        self.1.is_some()
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_found_late_starts_at_its_delay() {
    let (sender, receiver) = mpsc::unbounded_channel();
    let began = Instant::now();
    let mut candidates = LateResult(receiver, None);
    let racing = race(&mut candidates, STAGGER, |at, _| async move {
        std::future::poll_fn(|_| {
            if at == 2 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        Ok::<_, ()>(at)
    });
    let sending = async {
        for candidate in [1, 2] {
            sleep(Duration::from_millis(100)).await;
            sender.send(candidate).unwrap();
        }
    };
    let (outcome, ()) = tokio::join!(racing, sending);
    assert_eq!(outcome.unwrap().candidate, 2);
    assert_eq!(began.elapsed().as_millis(), 350);
}
