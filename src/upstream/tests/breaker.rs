//! The circuit breaker alone: the tests pass the time in, so nothing waits.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use crate::upstream::health::breaker::UpstreamPass;
use crate::upstream::health::breaker::{
    CircuitBreaker, ExchangeFailure, FailureSource, HealthLevel,
};

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A breaker that opened at `start`, because of failed connections or missing responses.
fn down(failure: ExchangeFailure, start: Instant) -> CircuitBreaker {
    let mut breaker = CircuitBreaker::new();
    for at in 0..4 {
        let failed = breaker.failed(failure, FailureSource::Request, start + millis(at));
        assert_eq!(failed, None);
    }
    if failure == ExchangeFailure::NoAnswer {
        let failed = breaker.failed(failure, FailureSource::Probe, start + millis(1000));
        assert_eq!(failed, None, "one of the two probe paths got no response");
        let failed = breaker.failed(failure, FailureSource::Probe, start + millis(5000));
        assert_eq!(failed, Some(6));
        return breaker;
    }
    let failed = breaker.failed(failure, FailureSource::Probe, start + millis(1000));
    assert_eq!(failed, Some(5));
    breaker
}

#[test]
fn five_connection_failures_over_a_second_open_it_and_one_response_closes_it() {
    let start = Instant::now();
    let mut breaker = CircuitBreaker::new();
    for _ in 0..100 {
        let failed = breaker.failed(ExchangeFailure::NoConnection, FailureSource::Request, start);
        assert_eq!(failed, None, "all failures at one moment");
    }
    assert_eq!(breaker.admit(start), Ok(UpstreamPass::Ordinary));
    let later = start + millis(1000);
    let failed = breaker.failed(ExchangeFailure::NoConnection, FailureSource::Request, later);
    assert_eq!(failed, Some(101));
    assert_eq!(breaker.admit(later), Err(millis(1000)));
    let failed = breaker.failed(ExchangeFailure::NoConnection, FailureSource::Request, later);
    assert_eq!(failed, None, "the opening is reported once");
    let well = start + millis(61_000);
    assert_eq!(breaker.responded(well), Some(millis(61_000)));
    assert_eq!(breaker.admit(well), Ok(UpstreamPass::Ordinary));
    assert_eq!(breaker.responded(well), None);
}

#[test]
fn requests_without_a_response_open_it_only_if_probes_fail_too() {
    let start = Instant::now();
    let mut breaker = CircuitBreaker::new();
    for second in 0..1000 {
        let now = start + Duration::from_secs(second);
        let failed = breaker.failed(ExchangeFailure::NoAnswer, FailureSource::Request, now);
        assert_eq!(failed, None, "in second {second}");
    }
    let now = start + Duration::from_secs(1000);
    let failed = breaker.failed(ExchangeFailure::NoAnswer, FailureSource::Probe, now);
    assert_eq!(failed, None, "the other probe path may get a response");
    let failed = breaker.failed(
        ExchangeFailure::NoAnswer,
        FailureSource::Probe,
        now + millis(1000),
    );
    assert_eq!(failed, Some(1002));
}

#[test]
fn probes_are_sent_at_once_then_each_second_then_every_five_seconds() {
    let start = Instant::now();
    let mut breaker = CircuitBreaker::new();
    assert_eq!(breaker.next_probe(), None);
    let mut probes = Vec::new();
    breaker.failed(ExchangeFailure::NoConnection, FailureSource::Request, start);
    for _ in 0..12 {
        let due = breaker.next_probe().unwrap();
        breaker.probe_begins(due, 0.0);
        breaker.failed(ExchangeFailure::NoConnection, FailureSource::Probe, due);
        probes.push((due - start).as_secs());
    }
    assert_eq!(probes, [0, 1, 2, 3, 4, 6, 10, 15, 20, 25, 30, 35]);
    assert_eq!(breaker.level(), HealthLevel::Down);

    // Failures that are followed by a response at once do not cause more probes.
    let (mut breaker, mut probes) = (CircuitBreaker::new(), 0);
    for step in 0..100 {
        let now = start + millis(100 * step);
        breaker.failed(ExchangeFailure::NoAnswer, FailureSource::Request, now);
        if breaker.next_probe().unwrap() <= now {
            breaker.probe_begins(now, 0.0);
            breaker.responded(now);
            probes += 1;
        }
    }
    assert_eq!(probes, 10, "probes in ten seconds");
}

#[test]
fn a_trial_request_is_admitted_when_probes_get_no_response() {
    let start = Instant::now();
    let mut breaker = down(ExchangeFailure::NoAnswer, start);
    let opened = start + millis(5000);
    assert!(breaker.admit(opened + millis(4999)).is_err());
    let due = opened + millis(5000);
    assert_eq!(breaker.admit(due), Ok(UpstreamPass::Trial));
    assert!(breaker.admit(due).is_err(), "one trial per interval");
    let next = due + millis(5000);
    assert_eq!(breaker.admit(next), Ok(UpstreamPass::Trial));

    // Without a connection only probes are sent, no trial requests.
    breaker.failed(ExchangeFailure::NoConnection, FailureSource::Probe, next);
    assert!(breaker.admit(next + millis(60_000)).is_err());
    let mut breaker = down(ExchangeFailure::NoConnection, start);
    assert!(breaker.admit(start + millis(60_000)).is_err());
}

#[test]
fn changed_addresses_are_probed_at_once() {
    let start = Instant::now();
    let mut breaker = down(ExchangeFailure::NoConnection, start);
    let now = start + millis(1500);
    breaker.probe_begins(now, 0.0);
    breaker.hurry(now);
    assert_eq!(breaker.next_probe(), Some(now));
    breaker.probe_begins(now, 0.0);
    assert_eq!(breaker.next_probe(), Some(now + millis(1000)));
    let mut closed = CircuitBreaker::new();
    closed.hurry(now);
    assert_eq!(closed.next_probe(), None);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Answered,
    Failed(ExchangeFailure, FailureSource),
    Asks,
    Admits,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let failure = prop_oneof![
        Just(ExchangeFailure::NoConnection),
        Just(ExchangeFailure::NoAnswer)
    ];
    let source = prop_oneof![Just(FailureSource::Request), Just(FailureSource::Probe)];
    let step = prop_oneof![
        1 => Just(Step::Answered),
        8 => (failure, source).prop_map(|(failure, source)| Step::Failed(failure, source)),
        3 => Just(Step::Asks),
        4 => Just(Step::Admits),
    ];
    prop::collection::vec((0_u64..3000, step), 1..120)
}

proptest! {
    /// Compared with a list of the events since the last response.
    #[test]
    fn it_opens_only_by_its_rules_and_always_recovers(steps in steps()) {
        let mut now = Instant::now();
        let mut breaker = CircuitBreaker::new();
        let mut run: Vec<(Instant, ExchangeFailure, FailureSource)> = Vec::new();
        let mut is_down = false;
        let mut last_trial: Option<Instant> = None;
        for (pause, step) in steps {
            now += millis(pause);
            match step {
                Step::Answered => {
                    let was_down = breaker.responded(now).is_some();
                    prop_assert_eq!(was_down, is_down);
                    run.clear();
                    is_down = false;
                    prop_assert_eq!(breaker.admit(now), Ok(UpstreamPass::Ordinary));
                }
                Step::Failed(failure, source) => {
                    run.push((now, failure, source));
                    let opened = breaker.failed(failure, source, now).is_some();
                    let unconnected = run.iter().filter(|one| one.1 == ExchangeFailure::NoConnection);
                    let unanswered = run
                        .iter()
                        .filter(|one| one.1 == ExchangeFailure::NoAnswer && one.2 == FailureSource::Probe);
                    let span = now - run[0].0;
                    let is_unreachable = unconnected.count() >= 5 && span >= millis(1000);
                    let is_silent = unanswered.count() >= 2 && span >= millis(5000);
                    let is_enough = run.len() >= 5 && (is_unreachable || is_silent);
                    prop_assert_eq!(opened, is_enough && !is_down);
                    is_down |= is_enough;
                }
                Step::Asks => {
                    if breaker.next_probe().is_some_and(|due| due <= now) {
                        breaker.probe_begins(now, 0.5);
                        prop_assert!(breaker.next_probe().unwrap() > now);
                    }
                }
                Step::Admits => match breaker.admit(now) {
                    Ok(UpstreamPass::Ordinary) => prop_assert!(!is_down),
                    Ok(UpstreamPass::Trial) => {
                        prop_assert!(is_down);
                        prop_assert!(last_trial.is_none_or(|last| now - last >= millis(5000)));
                        last_trial = Some(now);
                    }
                    Err(wait) => {
                        prop_assert!(is_down);
                        prop_assert!(wait <= millis(5000));
                    }
                },
            }
            prop_assert_eq!(breaker.level() == HealthLevel::Down, is_down);
            let is_in_doubt = !run.is_empty();
            prop_assert_eq!(breaker.next_probe().is_some(), is_in_doubt);
            if let Some(due) = breaker.next_probe() {
                prop_assert!(due <= now + millis(5000), "a probe is always due within five seconds");
            }
        }
    }
}
