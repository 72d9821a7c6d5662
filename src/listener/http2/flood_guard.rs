//! A budget for HTTP/2 frames that cost the gateway work and the peer nothing.
//!
//! The h2 crate bounds the memory of such floods and ends the connection for some of them. It
//! tolerates SETTINGS, PING, PRIORITY, unknown frames, empty DATA, and resets of streams that are
//! already being processed, without limit.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::continues::PendingContinues;

const PREFACE: usize = 24;
const HEADER: usize = 9;

/// Most frames at once, and the time in which a peer earns one back. A client that does not read
/// response bodies resets each stream, so a thousand a second is not a flood.
const BURST: u32 = 1000;
const EVERY: Duration = Duration::from_millis(1);
/// Window updates that are free of charge: two for the connection and two for the stream with each
/// request, and one for each so many bytes written.
const UPDATES_PER_REQUEST: u32 = 4;
const BYTES_PER_UPDATE: usize = 512;
/// Most free window updates that can accumulate; more than any client needs to open its windows
/// at the start.
const MAX_UPDATES: u32 = 100_000;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// Follows the frame headers of one HTTP/2 connection.
#[derive(Debug)]
pub(in crate::listener) struct Http2FloodGuard {
    /// Bytes until the next frame header.
    skip: usize,
    header: [u8; HEADER],
    /// How many bytes of `header` have been received.
    received: usize,
    budget: u32,
    earned_until: Instant,
    updates: u32,
    /// Bytes written that do not make up a free update yet.
    written: usize,
    /// Receives each opened stream.
    continues: Arc<PendingContinues>,
}

/// The peer has spent its budget.
#[derive(Debug, thiserror::Error)]
#[error("flood of HTTP/2 control frames")]
pub(in crate::listener) struct FloodDetected;

impl Http2FloodGuard {
    pub(in crate::listener) fn new(continues: Arc<PendingContinues>) -> Self {
        Self {
            continues,
            skip: PREFACE,
            header: [0; HEADER],
            received: 0,
            budget: BURST,
            earned_until: Instant::now(),
            updates: 0,
            written: 0,
        }
    }

    /// Notes that bytes were written: the peer may open its window for more.
    pub(in crate::listener) fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        let earned = self.written / BYTES_PER_UPDATE;
        self.written %= BYTES_PER_UPDATE;
        self.earn(u32::try_from(earned).unwrap_or(MAX_UPDATES));
    }

    fn earn(&mut self, updates: u32) {
        self.updates = self.updates.saturating_add(updates).min(MAX_UPDATES);
    }

    /// Checks `bytes`, which follow directly after those of the last call.
    pub(in crate::listener) fn check(&mut self, mut bytes: &[u8]) -> Result<(), FloodDetected> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEADER - self.received).min(bytes.len());
            self.header[self.received..self.received + taken].copy_from_slice(&bytes[..taken]);
            self.received += taken;
            bytes = &bytes[taken..];
            if self.received == HEADER {
                self.frame()?;
            }
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), FloodDetected> {
        let [a, b, c, kind, flags, ..] = self.header;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.received = 0;
        self.skip = length;
        let is_free = match kind {
            DATA => length > 0 || flags & END_STREAM != 0,
            HEADERS => {
                let [.., a, b, c, d] = self.header;
                self.continues
                    .stream_opened(u32::from_be_bytes([a & 0x7f, b, c, d]));
                self.earn(UPDATES_PER_REQUEST);
                true
            }
            // The h2 crate counts or refuses these itself.
            PUSH_PROMISE | GOAWAY | CONTINUATION => true,
            WINDOW_UPDATE if self.updates > 0 => {
                self.updates -= 1;
                true
            }
            _ => false,
        };
        if is_free { Ok(()) } else { self.spend() }
    }

    fn spend(&mut self) -> Result<(), FloodDetected> {
        if self.budget == 0 {
            let now = Instant::now();
            let earned = now.duration_since(self.earned_until).as_millis() / EVERY.as_millis();
            let earned = u32::try_from(earned).unwrap_or(BURST).min(BURST);
            if earned == 0 {
                return Err(FloodDetected);
            }
            self.budget = earned;
            self.earned_until = now;
        }
        self.budget -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RST_STREAM: u8 = 3;
    const PING: u8 = 6;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, 0, 0, 0, 0, 1];
        bytes.resize(HEADER + usize::from(length), 0xaa);
        bytes
    }

    fn started() -> Http2FloodGuard {
        let mut guard = Http2FloodGuard::new(Arc::default());
        guard.check(&[0; PREFACE]).unwrap();
        guard
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_pings_or_resets_is_noticed() {
        for kind in [PING, RST_STREAM, WINDOW_UPDATE, 4, 2, 77] {
            let mut guard = started();
            let seen = (0..5000).position(|_| guard.check(&frame(kind, 8)).is_err());
            assert_eq!(seen, Some(BURST as usize));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_connection_is_not_a_flood() {
        let mut guard = started();
        for _ in 0..100_000 {
            guard.check(&frame(HEADERS, 40)).unwrap();
            guard.check(&frame(DATA, 200)).unwrap();
            for _ in 0..UPDATES_PER_REQUEST {
                guard.check(&frame(WINDOW_UPDATE, 4)).unwrap();
            }
        }
        // A client that sends a window update for each KiB it reads.
        guard.wrote(16 * 1024 * 1024);
        for _ in 0..2 * 16 * 1024 {
            guard.check(&frame(WINDOW_UPDATE, 4)).unwrap();
        }
        for _ in 0..10_000 {
            guard.check(&frame(PING, 8)).unwrap();
            tokio::time::advance(EVERY).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_counted_wherever_the_reads_split_them() {
        let mut guard = started();
        let many: Vec<u8> = (0..BURST + 1).flat_map(|_| frame(PING, 8)).collect();
        let (last, rest) = many.split_last_chunk::<17>().map(|(a, b)| (b, a)).unwrap();
        for byte in rest {
            guard.check(std::slice::from_ref(byte)).unwrap();
        }
        assert!(guard.check(last).is_err());
    }
}
