//! 100 (Continue) over HTTP/2. hyper sends none there, and some clients (Java's) wait for it
//! with their body for ever (RFC 9110, 10.1.1). So the connection's writer puts it between
//! two of hyper's frames.
//!
//! The surprise: hyper does not tell which stream a request came on. It hands requests over
//! in the order in which their streams were opened, so while every stream that the peer has
//! opened has become a request, the nth of the one is the nth of the other. A connection
//! where one has not (it was malformed, or one too many) gets no 100 any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::EXPECT;
use http::{HeaderMap, HeaderValue};
use parking_lot::{Mutex, MutexGuard};

/// Streams that have not become requests: beyond these, one of them never will.
const MOST_UNMATCHED: usize = 1024;

/// A HEADERS frame but for its stream: length 5, END_HEADERS; then `:status` (entry 8 of
/// HPACK's static table) as a literal that is not indexed, so that neither side's table
/// changes (RFC 7541, 6.2.2).
const HEAD: [u8; 5] = [0, 0, 5, 1, 4];
const STATUS: [u8; 5] = [0x08, 3, b'1', b'0', b'0'];

/// The streams of one connection that wait for a 100.
#[derive(Debug, Default)]
pub(in crate::listener) struct PendingContinues {
    state: Mutex<ContinueState>,
    /// Looked at with each write; the lock is not.
    has_due: AtomicBool,
}

#[derive(Debug, Default)]
struct ContinueState {
    /// Streams opened since all of them had become requests, in order.
    opened: Vec<u32>,
    last_opened: u32,
    /// How many of `opened` have become requests.
    accepted: usize,
    /// Numbers of expectations, and which of `opened` each one's stream is.
    unmatched: Vec<(u64, usize)>,
    /// Numbers of expectations, and their streams.
    due: Vec<(u64, u32)>,
    next_number: u64,
    /// A stream has not become a request: nothing is matched any more.
    is_lost: bool,
}

/// A request that waits for a 100. Once this is dropped none is sent: it would come after
/// the answer.
#[derive(Debug)]
pub(in crate::listener) struct ContinueExpectation {
    continues: Arc<PendingContinues>,
    number: u64,
}

/// Whether a request waits for a 100 before it sends its body.
pub(in crate::listener) fn expects_continue(headers: &HeaderMap) -> bool {
    let is_it = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    headers.get(EXPECT).is_some_and(is_it)
}

impl PendingContinues {
    fn lock(&self) -> MutexGuard<'_, ContinueState> {
        self.state.lock()
    }

    /// The peer has begun a header section on `stream`; trailers are on one opened before.
    pub(in crate::listener) fn opens(&self, stream: u32) {
        let mut state = self.lock();
        if state.is_lost || stream <= state.last_opened {
            return;
        }
        state.last_opened = stream;
        if state.opened.len() == MOST_UNMATCHED {
            *state = ContinueState {
                is_lost: true,
                ..ContinueState::default()
            };
            return;
        }
        state.opened.push(stream);
    }

    /// hyper has handed over the next request; each must be told of. Some: it waits.
    pub(in crate::listener) fn accepts(
        self: &Arc<Self>,
        is_expected: bool,
    ) -> Option<ContinueExpectation> {
        let mut state = self.lock();
        if state.is_lost {
            return None;
        }
        let number = state.next_number;
        if is_expected {
            let index = state.accepted;
            state.unmatched.push((number, index));
            state.next_number += 1;
        }
        state.accepted += 1;
        if state.accepted == state.opened.len() {
            let state = &mut *state;
            let unmatched = state.unmatched.drain(..);
            state
                .due
                .extend(unmatched.map(|(number, index)| (number, state.opened[index])));
            state.opened.clear();
            state.accepted = 0;
            self.has_due.store(!state.due.is_empty(), Ordering::Relaxed);
        }
        is_expected.then(|| ContinueExpectation {
            continues: Arc::clone(self),
            number,
        })
    }

    pub(super) fn has_due(&self) -> bool {
        self.has_due.load(Ordering::Relaxed)
    }

    /// Puts the frames that are due into `frames`. They go out whole, before anything else.
    pub(super) fn put_due(&self, frames: &mut Vec<u8>) {
        for (_, stream) in self.lock().due.drain(..) {
            frames.extend_from_slice(&HEAD);
            frames.extend_from_slice(&stream.to_be_bytes());
            frames.extend_from_slice(&STATUS);
        }
        self.has_due.store(false, Ordering::Relaxed);
    }
}

impl Drop for ContinueExpectation {
    fn drop(&mut self) {
        let mut state = self.continues.lock();
        let is_other = |number: u64| number != self.number;
        state.unmatched.retain(|(number, _)| is_other(*number));
        state.due.retain(|(number, _)| is_other(*number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(continues: &PendingContinues) -> Vec<u8> {
        let mut frames = Vec::new();
        continues.put_due(&mut frames);
        frames
    }

    fn frame(stream: u8) -> Vec<u8> {
        [&HEAD[..], &[0, 0, 0, stream], &STATUS].concat()
    }

    #[test]
    fn the_stream_is_told_when_every_stream_has_become_a_request() {
        let continues = Arc::new(PendingContinues::default());
        continues.opens(1);
        continues.opens(5);
        let one = continues.accepts(true);
        assert!(
            one.is_some() && !continues.has_due(),
            "5 may be the one that is there"
        );
        assert!(continues.accepts(false).is_none());
        assert!(continues.has_due());
        assert_eq!(due(&continues), frame(1));
        assert!(!continues.has_due());
        continues.opens(5);
        continues.opens(7);
        let two = continues.accepts(true);
        assert_eq!(due(&continues), frame(7), "5 had trailers");
        drop((one, two));
    }

    #[test]
    fn what_was_answered_is_not_told_to_continue() {
        let continues = Arc::new(PendingContinues::default());
        continues.opens(1);
        drop(continues.accepts(true));
        assert!(due(&continues).is_empty());
        continues.opens(3);
        continues.opens(5);
        drop(continues.accepts(true));
        let kept = continues.accepts(true);
        assert_eq!(due(&continues), frame(5));
        drop(kept);
    }

    #[test]
    fn a_stream_that_became_no_request_ends_it_for_the_connection() {
        let continues = Arc::new(PendingContinues::default());
        continues.opens(1); // refused by h2
        for stream in 1..3000_u32 {
            continues.opens(2 * stream + 1);
            let _kept = continues.accepts(true);
            assert!(due(&continues).is_empty());
        }
        let state = continues.lock();
        assert!(state.is_lost && state.opened.is_empty() && state.unmatched.is_empty());
    }
}
