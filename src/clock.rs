//! Time. The only caller of `SystemTime`: everything else asks here, so that
//! wall time and monotonic time are never mixed up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Seconds since 1970 on this host's wall clock.
pub fn unix_seconds() -> i64 {
    i64::try_from(since_epoch().as_secs()).unwrap_or(i64::MAX)
}

/// Milliseconds since 1970 on this host's wall clock.
pub fn unix_millis() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// Microseconds since 1970 on this host's wall clock.
pub fn unix_micros() -> u64 {
    u64::try_from(since_epoch().as_micros()).unwrap_or(u64::MAX)
}

/// The wall clock itself, for libraries that want one.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Seconds since 1970 of a wall-clock time; None before 1970.
pub fn seconds_of(time: SystemTime) -> Option<i64> {
    let span = time.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(span.as_secs()).ok()
}

fn since_epoch() -> Duration {
    wall().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A moment in the future, kept on both clocks. It has passed as soon as either
/// says so: the monotonic clock stands still while a host is suspended, the wall
/// clock jumps when somebody sets it. Either alone would serve a dead token.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    monotonic: Instant,
    wall_millis: u64,
}

impl Deadline {
    pub fn after(span: Duration) -> Self {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self {
            monotonic: Instant::now()
                .checked_add(span)
                .unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400 * 365)),
            wall_millis: unix_millis().saturating_add(millis),
        }
    }

    /// The same deadline with its wall clock half already passed, as after a jump.
    #[cfg(test)]
    pub(crate) fn after_a_jump(self) -> Self {
        Self {
            wall_millis: unix_millis().saturating_sub(1),
            ..self
        }
    }

    /// The same deadline, never later, in the least room; `start` brings it back.
    pub fn pack(&self, start: Instant) -> PackedDeadline {
        let monotonic = self.monotonic.saturating_duration_since(start).as_millis();
        let monotonic = u64::try_from(monotonic).unwrap_or(u64::MAX);
        PackedDeadline::new(monotonic, self.wall_millis)
    }

    /// Time left: the smaller of the two clocks' opinions; zero once passed.
    pub fn left(&self) -> Duration {
        let monotonic = self.monotonic.saturating_duration_since(Instant::now());
        let wall = Duration::from_millis(self.wall_millis.saturating_sub(unix_millis()));
        monotonic.min(wall)
    }

    pub fn has_passed(&self) -> bool {
        self.monotonic <= Instant::now() || self.wall_millis <= unix_millis()
    }

    /// The same moment in milliseconds since 1970.
    pub fn unix_millis(&self) -> u64 {
        self.wall_millis
    }

    /// A moment kept across a restart, when only the wall clock was left to keep it.
    pub fn at_unix_millis(millis: u64) -> Self {
        Self::after(Duration::from_millis(millis.saturating_sub(unix_millis())))
    }

    /// The same moment as seconds since 1970.
    pub fn unix_seconds(&self) -> i64 {
        i64::try_from(self.wall_millis / 1000).unwrap_or(i64::MAX)
    }
}

/// Lets one log line through per span, so that what happens often does not fill the log.
#[derive(Debug, Default)]
pub struct LogThrottle {
    /// Milliseconds since 1970 before which nothing more is said.
    until: AtomicU64,
}

impl LogThrottle {
    /// Whether a line may be written now.
    pub fn may_log(&self, span: Duration) -> bool {
        let now = unix_millis();
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let next = |until: u64| {
            // One too far ahead was written before the clock was set back.
            let is_quiet = until > now && until - now <= millis;
            (!is_quiet).then(|| now.saturating_add(millis))
        };
        let (order, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        self.until.fetch_update(order, relaxed, next).is_ok()
    }
}

/// A deadline in eleven bytes, for those who keep millions: milliseconds on the
/// monotonic clock since a start that its keeper knows, and on the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct PackedDeadline {
    monotonic: [u8; 5],
    wall: [u8; 6],
}

impl PackedDeadline {
    /// What does not fit (34 years of running, 8900 of wall time) ends sooner.
    pub fn new(since_start_millis: u64, wall_millis: u64) -> Self {
        Self {
            monotonic: low_bytes(since_start_millis),
            wall: low_bytes(wall_millis),
        }
    }

    pub fn unpack(self, start: Instant) -> Deadline {
        Deadline {
            monotonic: start + Duration::from_millis(number(self.monotonic)),
            wall_millis: number(self.wall),
        }
    }
}

fn low_bytes<const N: usize>(number: u64) -> [u8; N] {
    let most = u64::MAX >> (64 - 8 * N);
    let bytes = number.min(most).to_le_bytes();
    std::array::from_fn(|place| bytes[place])
}

fn number<const N: usize>(bytes: [u8; N]) -> u64 {
    let mut all = [0; 8];
    all[..N].copy_from_slice(&bytes);
    u64::from_le_bytes(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_passes_when_either_clock_says_so() {
        let live = Deadline::after(Duration::from_secs(60));
        assert!(!live.has_passed());
        assert!(live.after_a_jump().has_passed());
        let monotonic_gone = Deadline {
            monotonic: Instant::now(),
            ..live
        };
        assert!(monotonic_gone.has_passed());
    }

    #[test]
    fn a_packed_deadline_is_the_same_to_the_millisecond_and_never_later() {
        let start = Instant::now();
        for span in [0, 1, 999, 86_400_007, 31_536_000_000] {
            let exact = Deadline::after(Duration::from_millis(span));
            let kept = exact.pack(start).unpack(start);
            assert_eq!(kept.wall_millis, exact.wall_millis);
            let lost = exact.monotonic.duration_since(kept.monotonic);
            assert!(kept.monotonic <= exact.monotonic && lost < Duration::from_millis(1));
        }
    }

    #[test]
    fn a_deadline_too_far_to_pack_ends_sooner() {
        let start = Instant::now();
        let never = Deadline::after(Duration::MAX);
        let far = PackedDeadline::new(u64::MAX, u64::MAX).unpack(start);
        // Asked first: what is asked later has less left by itself.
        let left = never.left();
        assert!(never.pack(start).unpack(start).left() <= left);
        let years = Duration::from_secs(34 * 365 * 86_400);
        assert!(far.left() > years && far.left() < years + years / 10);
    }
}
