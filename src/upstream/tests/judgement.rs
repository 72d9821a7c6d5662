//! Each part of the judgement alone; `login_model` and `tests/judgement_model.rs` check them together.
//! The latter includes the files of the judgement, so these contain no tests.

mod accepted_paths {
    use crate::upstream::login::judgement::accepted_paths::*;

    #[test]
    fn a_path_is_known_once_it_has_accepted_a_token() {
        let paths = AcceptedPaths::new(1024);
        let (one, other) = (PathKey(7 << 30 | 5), PathKey(9 << 30 | 6));
        assert!(!paths.knows(one));
        assert!(paths.note(one, 1));
        assert!(!paths.note(one, 1), "nothing changed");
        assert!(paths.knows(one) && !paths.knows(other));
        assert!(paths.note(one, 2), "another generation is a change");
        paths.reopen(one);
        assert!(paths.knows(one));
        assert!(
            paths.note(one, 2),
            "after a refusal the same generation is a change"
        );
    }

    #[test]
    fn two_paths_in_one_slot_are_distinguished() {
        let paths = AcceptedPaths::new(1024);
        let (one, other) = (PathKey(1 << 40), PathKey(2 << 40));
        paths.note(one, 3);
        assert!(!paths.knows(other));
        paths.reopen(other);
        assert!(paths.knows(one));
        paths.note(other, 3);
        assert!(!paths.knows(one), "overwritten, not confused");
    }
}

mod refused_paths {
    use crate::upstream::login::judgement::accepted_paths::PathKey;
    use crate::upstream::login::judgement::refused_paths::*;

    const PATH: PathKey = PathKey(7);

    #[test]
    fn the_habit_of_a_known_path_grows_to_a_minute_and_ends_with_an_acceptance() {
        let mut paths = RefusedPaths::default();
        paths.note(PATH, 1, 100);
        paths.note(PATH, 2, 200);
        assert_eq!(paths.since(PATH), Some(100));
        assert!(!paths.is_habitual(PATH, 200));
        paths.note_habit(PATH, true, 200);
        assert!(paths.is_habitual(PATH, 2_199) && !paths.is_habitual(PATH, 2_200));
        for _ in 0..10 {
            paths.note_habit(PATH, true, 0);
        }
        assert!(paths.is_habitual(PATH, MINUTE - 1) && !paths.is_habitual(PATH, MINUTE));
        assert_eq!(paths.accepted(PATH), Some(2));
        assert!(!paths.is_habitual(PATH, 1) && !paths.is_refusing(PATH));
    }

    #[test]
    fn many_paths_take_bounded_memory_and_the_newest_stay() {
        let mut paths = RefusedPaths::default();
        for number in 0..10_000 {
            paths.note(PathKey(number), 1, number);
        }
        assert_eq!(paths.paths.len(), MAX_PATHS);
        assert!(paths.is_refusing(PathKey(9_999)) && !paths.is_refusing(PathKey(0)));
        assert!(paths.is_streak());
        paths.accepted(PathKey(1));
        assert!(!paths.is_streak() && !paths.has_streak());
    }
}

mod speculation {
    use crate::upstream::login::judgement::speculation::*;

    #[test]
    fn the_first_speculation_is_free_and_fruitless_ones_are_spaced_out() {
        let mut pacer = SpeculationPacer::new(120, 1);
        for evidence in [
            RefusalEvidence::UnseenPath,
            RefusalEvidence::SeveralPaths,
            RefusalEvidence::ChangedMind,
        ] {
            assert_eq!(pacer.wait(evidence, 0), 0);
        }
        pacer.spend(0);
        assert_eq!(pacer.wait(RefusalEvidence::ChangedMind, 0), SECOND);
        pacer.was_fruitless(10);
        assert_eq!(pacer.wait(RefusalEvidence::UnseenPath, 10), 5 * MINUTE);
        assert_eq!(pacer.wait(RefusalEvidence::ChangedMind, 10), 2 * SECOND);
        for _ in 0..40 {
            pacer.was_fruitless(20);
        }
        assert_eq!(pacer.wait(RefusalEvidence::UnseenPath, 20), 30 * MINUTE);
        assert_eq!(pacer.wait(RefusalEvidence::SeveralPaths, 20), 5 * MINUTE);
        assert_eq!(pacer.wait(RefusalEvidence::ChangedMind, 20), MINUTE);
        assert_eq!(
            pacer.wait(RefusalEvidence::UnseenPath, 20 + 121 * MINUTE),
            0
        );
        pacer.forget_fruitless();
        assert_eq!(pacer.wait(RefusalEvidence::UnseenPath, 20), SECOND - 20);
        pacer.forget_pauses();
        assert_eq!(pacer.wait(RefusalEvidence::UnseenPath, 20), 0);
    }

    #[test]
    fn refusals_never_take_more_than_half_of_the_budget() {
        for per_hour in [1, 2, 3, 10, 120, 36_000] {
            let mut pacer = SpeculationPacer::new(per_hour, 1);
            let (mut now, mut spent) = (0, 0_u32);
            while now < HOUR {
                match pacer.wait(RefusalEvidence::ChangedMind, now) {
                    0 => {
                        pacer.spend(now);
                        spent += 1;
                    }
                    wait => now += wait,
                }
            }
            assert!(spent <= (per_hour / 2).max(1), "{per_hour}: {spent}");
            assert!(spent >= 1);
        }
    }

    #[test]
    fn gateways_that_share_a_login_share_the_budget_of_refusals() {
        let (mut alone, mut one_of_three) =
            (SpeculationPacer::new(40, 1), SpeculationPacer::new(40, 3));
        for (pacer, burst) in [(&mut alone, 10), (&mut one_of_three, 3)] {
            for _ in 0..burst {
                assert_eq!(pacer.wait(RefusalEvidence::ChangedMind, 0), 0);
                pacer.spend(0);
                pacer.forget_pauses();
            }
        }
        let wait = |pacer: &SpeculationPacer| pacer.wait(RefusalEvidence::ChangedMind, 0);
        assert_eq!(3 * wait(&alone), wait(&one_of_three));
    }
}
