//! 100 (Continue) over HTTP/2. hyper does not send it there, and some clients (Java's) wait for it
//! with their body forever (RFC 9110, 10.1.1). So the connection's writer inserts it between two
//! of hyper's frames.
//!
//! hyper does not say which stream a request came on. It hands requests over in the order in which
//! their streams were opened, so while every opened stream has become a request, the nth stream
//! is the nth request. If a stream never becomes a request (it was malformed, or exceeded the
//! limit of streams), the connection gets no 100 any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::EXPECT;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;

/// Most opened streams that have not become requests; with more, one of them never will.
const MAX_UNMATCHED: usize = 1024;

/// A HEADERS frame without its stream identifier: length 5, END_HEADERS; then `:status` (entry 8
/// of HPACK's static table) as a literal without indexing, which changes neither side's table
/// (RFC 7541, 6.2.2).
const HEAD: [u8; 5] = [0, 0, 5, 1, 4];
const STATUS: [u8; 5] = [0x08, 3, b'1', b'0', b'0'];

/// The streams of one connection that wait for a 100.
#[derive(Debug, Default)]
pub(in crate::listener) struct PendingContinues {
    state: Mutex<ContinueState>,
    /// Whether `due` is not empty: checked at each write, without the lock.
    has_due: AtomicBool,
}

#[derive(Debug, Default)]
struct ContinueState {
    /// Streams opened since all earlier ones had become requests, in order.
    opened: Vec<u32>,
    last_opened: u32,
    /// How many of `opened` have become requests.
    accepted: usize,
    /// Expectations by number, with the index of their stream in `opened`.
    unmatched: Vec<(u64, usize)>,
    /// Expectations by number, with their streams.
    due: Vec<(u64, u32)>,
    next_number: u64,
    /// A stream has not become a request, so nothing can be matched any more.
    is_lost: bool,
}

/// A request that waits for a 100. Once this is dropped none is sent, since it would come after
/// the response.
#[derive(Debug)]
pub(in crate::listener) struct ContinueExpectation {
    continues: Arc<PendingContinues>,
    number: u64,
}

/// Whether a request waits for a 100 before it sends its body.
pub(in crate::listener) fn expects_continue(headers: &HeaderMap) -> bool {
    let is_continue = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    headers.get(EXPECT).is_some_and(is_continue)
}

impl PendingContinues {
    /// Notes that the peer has begun a header section on `stream`: a new stream, or trailers.
    pub(super) fn stream_opened(&self, stream: u32) {
        let mut state = self.state.lock();
        if state.is_lost || stream <= state.last_opened {
            return;
        }
        state.last_opened = stream;
        if state.opened.len() == MAX_UNMATCHED {
            *state = ContinueState {
                is_lost: true,
                ..ContinueState::default()
            };
            return;
        }
        state.opened.push(stream);
    }

    /// Notes that hyper has handed over the next request, which must be called for each. Some: the
    /// request waits for a 100.
    pub(in crate::listener) fn request_accepted(
        self: &Arc<Self>,
        is_expected: bool,
    ) -> Option<ContinueExpectation> {
        let mut state = self.state.lock();
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

    /// Appends the pending frames to `frames`. They must be written whole, before anything else.
    pub(super) fn append_due(&self, frames: &mut Vec<u8>) {
        for (_, stream) in self.state.lock().due.drain(..) {
            frames.extend_from_slice(&HEAD);
            frames.extend_from_slice(&stream.to_be_bytes());
            frames.extend_from_slice(&STATUS);
        }
        self.has_due.store(false, Ordering::Relaxed);
    }
}

impl Drop for ContinueExpectation {
    fn drop(&mut self) {
        let mut state = self.continues.state.lock();
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
        continues.append_due(&mut frames);
        frames
    }

    fn frame(stream: u8) -> Vec<u8> {
        [&HEAD[..], &[0, 0, 0, stream], &STATUS].concat()
    }

    #[test]
    fn a_100_is_sent_once_every_stream_has_become_a_request() {
        let continues = Arc::new(PendingContinues::default());
        continues.stream_opened(1);
        continues.stream_opened(5);
        let one = continues.request_accepted(true);
        assert!(
            one.is_some() && !continues.has_due(),
            "the request may be that of stream 5"
        );
        assert!(continues.request_accepted(false).is_none());
        assert!(continues.has_due());
        assert_eq!(due(&continues), frame(1));
        assert!(!continues.has_due());
        continues.stream_opened(5);
        continues.stream_opened(7);
        let two = continues.request_accepted(true);
        assert_eq!(due(&continues), frame(7), "5 had trailers");
        drop((one, two));
    }

    #[test]
    fn a_request_that_has_a_response_gets_no_100() {
        let continues = Arc::new(PendingContinues::default());
        continues.stream_opened(1);
        drop(continues.request_accepted(true));
        assert!(due(&continues).is_empty());
        continues.stream_opened(3);
        continues.stream_opened(5);
        drop(continues.request_accepted(true));
        let kept = continues.request_accepted(true);
        assert_eq!(due(&continues), frame(5));
        drop(kept);
    }

    #[test]
    fn a_stream_that_never_becomes_a_request_ends_the_100s_of_its_connection() {
        let continues = Arc::new(PendingContinues::default());
        continues.stream_opened(1); // refused by h2
        for stream in 1..3000_u32 {
            continues.stream_opened(2 * stream + 1);
            let _kept = continues.request_accepted(true);
            assert!(due(&continues).is_empty());
        }
        let state = continues.state.lock();
        assert!(state.is_lost && state.opened.is_empty() && state.unmatched.is_empty());
    }
}
