//! What a race costs, and who wins it.

use tokio::{sync::mpsc, time::sleep};

use super::*;

const STAGGER: StaggerDelays = StaggerDelays {
    delay: Duration::from_millis(250),
    delay_half_way: Duration::from_secs(1),
    until: None,
};

/// What happens to one candidate.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Good(u64),
    Bad(u64),
    Silent,
    /// Half-way after the first, good after the second.
    Slow(u64, u64),
}

type Outcome = Result<RaceWon<usize, Instant, ()>, RaceLost<usize, ()>>;

async fn run(fates: &'static [Fate], stagger: StaggerDelays) -> (Outcome, u128) {
    let began = Instant::now();
    let mut candidates = CandidateList((0..fates.len()).collect::<Vec<_>>().into_iter());
    let outcome = race(&mut candidates, stagger, |at, half_way| async move {
        let started = Instant::now();
        let pause = |millis| sleep(Duration::from_millis(millis));
        match fates[at] {
            Fate::Good(after) => pause(after).await,
            Fate::Bad(after) => {
                pause(after).await;
                return Err(());
            }
            Fate::Silent => std::future::pending().await,
            Fate::Slow(half, after) => {
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
async fn an_unanswered_attempt_costs_its_delay_and_a_failed_one_nothing() {
    for (fates, winner, cost) in [
        (&[Fate::Good(10)][..], 0, 10),
        (&[Fate::Silent, Fate::Good(10)], 1, 260),
        (&[Fate::Bad(5), Fate::Good(10)], 1, 15),
        (&[Fate::Bad(300), Fate::Good(10)], 1, 260),
        (
            &[Fate::Silent, Fate::Bad(5), Fate::Silent, Fate::Good(10)],
            3,
            515,
        ),
        // The first is late, but not too late.
        (&[Fate::Good(400), Fate::Silent, Fate::Silent], 0, 400),
    ] {
        let (outcome, took) = run(fates, STAGGER).await;
        assert_eq!(outcome.unwrap().candidate, winner, "{fates:?}");
        assert!((cost..cost + 5).contains(&took), "{fates:?}: {took} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn only_attempts_past_their_delay_are_reported_as_overtaken() {
    let (outcome, _) = run(&[Fate::Silent, Fate::Good(10)], STAGGER).await;
    assert_eq!(outcome.unwrap().overtaken, [0]);
    let (outcome, _) = run(&[Fate::Good(300), Fate::Silent], STAGGER).await;
    assert!(outcome.unwrap().overtaken.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_half_way_has_more_time() {
    let (outcome, took) = run(&[Fate::Slow(50, 700), Fate::Good(1)], STAGGER).await;
    assert_eq!(outcome.unwrap().candidate, 0);
    assert!((750..760).contains(&took), "{took}");
    let (outcome, took) = run(&[Fate::Slow(50, 9000), Fate::Good(1)], STAGGER).await;
    let won = outcome.unwrap();
    assert_eq!((won.candidate, won.overtaken), (1, vec![0]));
    assert!((1001..1010).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn the_race_ends_in_time_and_reports_its_attempts() {
    let stagger = StaggerDelays {
        until: Some(Instant::now() + Duration::from_millis(600)),
        ..STAGGER
    };
    let fates = &[Fate::Bad(1), Fate::Silent, Fate::Slow(1, 9999)];
    let (outcome, took) = run(fates, stagger).await;
    let lost = outcome.unwrap_err();
    assert!((600..605).contains(&took) && lost.is_late, "{took}");
    assert_eq!(lost.failed, [(0, ())]);
    let half_way = lost.unfinished.iter().map(|one| one.is_half_way);
    assert!(half_way.eq([false, true]));
    let (outcome, _) = run(&[Fate::Bad(1), Fate::Bad(1)], STAGGER).await;
    assert_eq!(outcome.unwrap_err().failed.len(), 2);
    assert!(run(&[], STAGGER).await.0.is_err());
}

#[tokio::test(start_paused = true)]
async fn many_candidates_share_the_time_there_is() {
    let mut fates = vec![Fate::Silent; 19];
    fates.push(Fate::Good(1));
    let stagger = StaggerDelays {
        until: Some(Instant::now() + Duration::from_secs(2)),
        ..STAGGER
    };
    let (outcome, took) = run(fates.leak(), stagger).await;
    assert_eq!(outcome.unwrap().candidate, 19);
    assert!(took < 1900, "{took}");
}

/// Candidates that become known during the race.
struct Late(mpsc::UnboundedReceiver<usize>, Option<usize>);

impl CandidateSource<usize> for Late {
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
async fn a_candidate_that_becomes_known_late_starts_when_it_is_due() {
    let (sender, receiver) = mpsc::unbounded_channel();
    let began = Instant::now();
    let mut candidates = Late(receiver, None);
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
