//! Which paths refuse the session's tokens, and what one refused request has tried.

use std::collections::HashMap;

use super::Millis;
use super::accepted_paths::PathKey;

/// The most paths that are remembered; the oldest is removed for a new one.
pub(crate) const MAX_PATHS: usize = 256;
/// This many paths refused in a row, with no request accepted in between, are evidence against the
/// token.
const STREAK: u32 = 8;
/// This many such paths, and no request accepted for `QUIET`: the fault is not that of one path.
const SEVERAL: u32 = 2;
const QUIET: Millis = MINUTE;
/// A request that was refused this often is not sent again.
const MAX_REFUSALS: usize = 5;
pub(crate) const MINUTE: Millis = 60_000;
/// An older refusal does not count towards the present ones.
const RECENT: Millis = MINUTE;
/// How long a path that has never accepted a token is treated as refusing any token: doubled each time,
/// from the first value up to the second.
const UNKNOWN_HABIT: [Millis; 2] = [15 * MINUTE, 240 * MINUTE];
/// The same for one that has accepted tokens before.
const KNOWN_HABIT: [Millis; 2] = [2_000, MINUTE];

/// A refused request, and the leases that it has tried.
#[derive(Debug)]
pub struct RefusedRequest {
    pub(crate) path: PathKey,
    /// The time of its first refusal.
    pub(crate) since: Millis,
    /// Whether it can be sent again at all: its body is small enough to be kept.
    pub(crate) can_repeat: bool,
    /// The generation of each refusal.
    tried: Vec<u64>,
    /// The generation for which it has waited for the renewer's verdict.
    pub(crate) asked: Option<u64>,
}

impl RefusedRequest {
    pub fn new(path: PathKey, can_repeat: bool) -> Self {
        Self {
            path,
            since: 0,
            can_repeat,
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

    /// It has been sent twice with this token, or cannot be.
    pub(super) fn has_repeated(&self, generation: u64) -> bool {
        let times = self.tried.iter().filter(|tried| **tried == generation);
        !self.can_repeat || times.count() > 1
    }

    pub(super) fn is_exhausted(&self) -> bool {
        self.tried.len() >= MAX_REFUSALS
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RefusedPath {
    /// The path has accepted no request since.
    since: Millis,
    /// Its last refusal.
    last: Millis,
    /// The last generation it refused.
    generation: u64,
    /// Its refusals since.
    count: u32,
    habits: u32,
    habitual_until: Millis,
}

/// Paths whose last response was a refusal.
#[derive(Debug, Default)]
pub(crate) struct RefusedPaths {
    pub(crate) paths: HashMap<PathKey, RefusedPath>,
    /// The number of paths added since the last accepted request.
    streak: u32,
    /// When the first of those paths refused.
    streak_since: Millis,
}

impl RefusedPaths {
    pub(crate) fn note(&mut self, path: PathKey, generation: u64, now: Millis) {
        if let Some(known) = self.paths.get_mut(&path) {
            if now >= known.habitual_until && now.saturating_sub(known.last) > RECENT {
                known.since = now;
            }
            known.generation = generation;
            known.last = now;
            known.count = known.count.saturating_add(1);
            return;
        }
        if self.paths.len() >= MAX_PATHS {
            let oldest = self.paths.iter().min_by_key(|(_, path)| path.since);
            let oldest = oldest.map(|(path, _)| *path);
            oldest.map(|path| self.paths.remove(&path));
        }
        if self.streak == 0 {
            self.streak_since = now;
        }
        self.streak = self.streak.saturating_add(1);
        let fresh = RefusedPath {
            since: now,
            last: now,
            generation,
            count: 1,
            habits: 0,
            habitual_until: 0,
        };
        self.paths.insert(path, fresh);
    }

    /// Records that the lease in use was accepted. Returns the generation that this path refused last, if
    /// any.
    pub(crate) fn accepted(&mut self, path: PathKey) -> Option<u64> {
        self.streak = 0;
        self.paths.remove(&path).map(|path| path.generation)
    }

    /// Since when the path has accepted no request.
    pub(crate) fn since(&self, path: PathKey) -> Option<Millis> {
        self.paths.get(&path).map(|path| path.since)
    }

    /// Consecutive refusals.
    pub(crate) fn count(&self, path: PathKey) -> u32 {
        self.paths.get(&path).map_or(0, |path| path.count)
    }

    pub(crate) fn is_refusing(&self, path: PathKey) -> bool {
        self.paths.contains_key(&path)
    }

    /// Whether refusals of this path are no evidence about the token for now.
    pub(crate) fn is_habitual(&self, path: PathKey, now: Millis) -> bool {
        let known = self.paths.get(&path);
        known.is_some_and(|known| now < known.habitual_until)
    }

    /// The path refuses whatever it is shown. `has_accepted`: ever, a token of this session.
    pub(crate) fn note_habit(&mut self, path: PathKey, has_accepted: bool, now: Millis) {
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

    pub(crate) fn is_streak(&self) -> bool {
        self.streak >= STREAK
    }

    /// Whether several paths began to refuse and no request has been accepted for a while. A single
    /// refusing path is no such case, because requests to others are still accepted.
    pub(super) fn is_everything_refused(&self, now: Millis) -> bool {
        self.streak >= SEVERAL && now.saturating_sub(self.streak_since) >= QUIET
    }

    pub(crate) fn has_streak(&self) -> bool {
        self.streak > 0
    }

    /// Another token is in use: only paths that refuse any token are kept.
    pub(super) fn forget_recent(&mut self, now: Millis) {
        self.paths.retain(|_, path| now < path.habitual_until);
        self.streak = 0;
    }

    pub(crate) fn clear(&mut self) {
        self.paths.clear();
        self.streak = 0;
    }
}
