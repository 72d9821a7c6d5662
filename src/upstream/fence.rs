//! The fence between logins and refusals: which generation is in use, which one
//! the upstream has refused, and whether a login may still publish what it got.
//! Pure: no clock, no sockets; model-checked in `tests/fence_model.rs`.

use std::sync::PoisonError;

use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

/// One per session. Generation 0 means: no login has been published yet.
#[derive(Debug)]
pub(super) struct Fence {
    /// The upstream forgets the old token when it mints a new one.
    single_active: bool,
    /// Copy of `State::refused` for the request path, which takes no lock.
    refused: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: u64,
    /// Highest generation refused. A value, not a queue: a hundred complaints
    /// about one generation are one complaint.
    refused: u64,
}

/// A login under way; remembers what had been refused when it began.
#[derive(Debug)]
#[must_use = "an attempt that is not published has no effect"]
pub(super) struct Attempt {
    refused: u64,
}

impl Fence {
    pub(super) fn new(single_active: bool) -> Self {
        Self {
            single_active,
            refused: AtomicU64::new(0),
            state: Mutex::new(State::default()),
        }
    }

    pub(super) fn is_refused(&self, generation: u64) -> bool {
        generation <= self.refused.load(Ordering::Acquire)
    }

    /// The upstream refused `generation`. True when that is news; a refusal of an
    /// older generation than the current one says nothing about today.
    pub(super) fn refuse(&self, generation: u64) -> bool {
        let mut state = self.lock();
        let news = generation == state.current && generation > state.refused;
        if news {
            state.refused = generation;
            self.refused.store(generation, Ordering::Release);
        }
        news
    }

    /// A login begins now.
    pub(super) fn begin(&self) -> Attempt {
        Attempt {
            refused: self.lock().refused,
        }
    }

    /// The login brought a token: its generation, or None when a refusal since its
    /// beginning makes the token doubtful (all tokens may have been revoked after
    /// this one was minted). With a single active token such a refusal is our own
    /// doing: the login killed the token before it.
    #[expect(clippy::needless_pass_by_value, reason = "an attempt publishes once")]
    pub(super) fn publish(&self, attempt: Attempt) -> Option<u64> {
        let mut state = self.lock();
        if state.refused > attempt.refused && !self.single_active {
            return None;
        }
        state.current += 1;
        Some(state.current)
    }

    /// Another gate's login is in use from here on, by the number all gates know it by.
    /// Whoever says so has made sure that it is not refused.
    pub(super) fn adopt(&self, generation: u64) {
        let mut state = self.lock();
        state.current = generation;
        state.refused = state.refused.min(generation.saturating_sub(1));
        self.refused.store(state.refused, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
