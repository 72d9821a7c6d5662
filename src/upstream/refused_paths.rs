//! Which paths refuse the session's tokens, and what one refused request has tried.

use std::collections::HashMap;

use super::accepted_paths::PathKey;
use super::judgement::Millis;

/// Paths on record at once; the oldest makes room.
const MOST_PATHS: usize = 256;
/// So many paths refused in a row, with nothing accepted in between, speak against the token.
const STREAK: u32 = 8;
/// A request that was refused so often is not sent again, whatever is known by then.
const MOST_REFUSALS: usize = 5;
const MINUTE: Millis = 60_000;
/// A refusal longer ago has no part in what a path does now.
const RECENT: Millis = MINUTE;
/// How long a path that has never accepted a token is left to refuse what it is shown:
/// doubled each time, up to the second.
const UNKNOWN_HABIT: [Millis; 2] = [15 * MINUTE, 240 * MINUTE];
/// The same for one that has accepted tokens before.
const KNOWN_HABIT: [Millis; 2] = [2_000, MINUTE];

/// One request on its way through refusals: what it has tried so far.
#[derive(Debug)]
pub struct RefusedRequest {
    pub(super) path: PathKey,
    /// When it was refused first; set by the first refusal.
    pub(super) since: Millis,
    /// The generation of each refusal.
    tried: Vec<u64>,
    /// The generation about which it has waited for the renewer's word.
    pub(super) asked: Option<u64>,
}

impl RefusedRequest {
    pub fn new(path: PathKey) -> Self {
        Self {
            path,
            since: 0,
            tried: Vec::new(),
            asked: None,
        }
    }

    pub(super) fn was_refused_with(&mut self, generation: u64, now: Millis) {
        if self.tried.is_empty() {
            self.since = now;
        }
        self.tried.push(generation);
    }

    pub(super) fn has_tried(&self, generation: u64) -> bool {
        self.tried.contains(&generation)
    }

    /// Sent twice with this one.
    pub(super) fn has_repeated(&self, generation: u64) -> bool {
        let times = self.tried.iter().filter(|tried| **tried == generation);
        times.count() > 1
    }

    pub(super) fn is_exhausted(&self) -> bool {
        self.tried.len() >= MOST_REFUSALS
    }
}

#[derive(Clone, Copy, Debug)]
struct RefusedPath {
    /// The path has accepted nothing since.
    since: Millis,
    /// Its last refusal.
    last: Millis,
    /// The last generation it refused.
    generation: u64,
    habits: u32,
    habitual_until: Millis,
}

/// Paths whose last answer was a refusal.
#[derive(Debug, Default)]
pub(super) struct RefusedPaths {
    paths: HashMap<PathKey, RefusedPath>,
    /// New ones among them since anything was accepted.
    streak: u32,
}

impl RefusedPaths {
    pub(super) fn note(&mut self, path: PathKey, generation: u64, now: Millis) {
        if let Some(known) = self.paths.get_mut(&path) {
            if now >= known.habitual_until && now.saturating_sub(known.last) > RECENT {
                known.since = now;
            }
            known.generation = generation;
            known.last = now;
            return;
        }
        if self.paths.len() >= MOST_PATHS {
            let oldest = self.paths.iter().min_by_key(|(_, path)| path.since);
            let oldest = oldest.map(|(path, _)| *path);
            oldest.map(|path| self.paths.remove(&path));
        }
        self.streak = self.streak.saturating_add(1);
        let fresh = RefusedPath {
            since: now,
            last: now,
            generation,
            habits: 0,
            habitual_until: 0,
        };
        self.paths.insert(path, fresh);
    }

    /// Notes that the lease in use was accepted; the generation this path refused last, if
    /// it was on record.
    pub(super) fn accepted(&mut self, path: PathKey) -> Option<u64> {
        self.streak = 0;
        self.paths.remove(&path).map(|path| path.generation)
    }

    /// Since when the path has accepted nothing.
    pub(super) fn since(&self, path: PathKey) -> Option<Millis> {
        self.paths.get(&path).map(|path| path.since)
    }

    pub(super) fn is_refusing(&self, path: PathKey) -> bool {
        self.paths.contains_key(&path)
    }

    /// Whether refusals of this path say nothing about the token for now.
    pub(super) fn is_habitual(&self, path: PathKey, now: Millis) -> bool {
        let known = self.paths.get(&path);
        known.is_some_and(|known| now < known.habitual_until)
    }

    /// The path refuses whatever it is shown. `has_accepted`: ever, a token of this session.
    pub(super) fn is_a_habit(&mut self, path: PathKey, has_accepted: bool, now: Millis) {
        if !self.is_refusing(path) {
            self.note(path, 0, now);
        }
        if let Some(known) = self.paths.get_mut(&path) {
            let [first, longest] = match has_accepted {
                true => KNOWN_HABIT,
                false => UNKNOWN_HABIT,
            };
            let pause = longest.min(first << known.habits.min(16));
            known.habits = known.habits.saturating_add(1);
            known.habitual_until = now + pause;
            // What it refuses later is held against tokens minted after this.
            known.since = now;
        }
    }

    pub(super) fn is_streak(&self) -> bool {
        self.streak >= STREAK
    }

    pub(super) fn has_streak(&self) -> bool {
        self.streak > 0
    }

    /// Another token is in use: only paths that refuse any token stay on record.
    pub(super) fn forget_recent(&mut self, now: Millis) {
        self.paths.retain(|_, path| now < path.habitual_until);
        self.streak = 0;
    }

    pub(super) fn clear(&mut self) {
        self.paths.clear();
        self.streak = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: PathKey = PathKey(7);

    #[test]
    fn a_habit_of_a_known_path_grows_to_a_minute_and_ends_with_an_acceptance() {
        let mut paths = RefusedPaths::default();
        paths.note(PATH, 1, 100);
        paths.note(PATH, 2, 200);
        assert_eq!(paths.since(PATH), Some(100));
        assert!(!paths.is_habitual(PATH, 200));
        paths.is_a_habit(PATH, true, 200);
        assert!(paths.is_habitual(PATH, 2_199) && !paths.is_habitual(PATH, 2_200));
        for _ in 0..10 {
            paths.is_a_habit(PATH, true, 0);
        }
        assert!(paths.is_habitual(PATH, MINUTE - 1) && !paths.is_habitual(PATH, MINUTE));
        assert_eq!(paths.accepted(PATH), Some(2));
        assert!(!paths.is_habitual(PATH, 1) && !paths.is_refusing(PATH));
    }

    #[test]
    fn many_paths_take_bounded_room_and_the_newest_stay() {
        let mut paths = RefusedPaths::default();
        for number in 0..10_000 {
            paths.note(PathKey(number), 1, number);
        }
        assert_eq!(paths.paths.len(), MOST_PATHS);
        assert!(paths.is_refusing(PathKey(9_999)) && !paths.is_refusing(PathKey(0)));
        assert!(paths.is_streak());
        paths.accepted(PathKey(1));
        assert!(!paths.is_streak() && !paths.has_streak());
    }
}
