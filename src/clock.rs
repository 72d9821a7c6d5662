//! Time. Only this module calls `SystemTime`, so that wall-clock time and monotonic time are never
//! mixed up.
//!
//! A request needs the time at some twenty places, and a reading takes as long as a hundred
//! instructions. Within a [`SharedReadings`] scope, which is one poll of a client connection, each
//! clock is read at most once.

use std::cell::Cell;
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

/// The wall-clock time, for libraries that take a `SystemTime`.
pub fn wall() -> SystemTime {
    shared_reading(|readings| &mut readings.wall, wall_reading)
}

#[expect(clippy::disallowed_methods, reason = "the only caller")]
fn wall_reading() -> SystemTime {
    SystemTime::now()
}

/// The monotonic clock: now, or since the begin of the poll of a connection, if this is called in
/// one. What takes time within one poll must be measured by `Instant::now`.
pub fn now() -> Instant {
    shared_reading(|readings| &mut readings.monotonic, Instant::now)
}

thread_local! {
    /// Some within a scope.
    static READINGS: Cell<Option<Readings>> = const { Cell::new(None) };
}

#[derive(Clone, Copy, Default)]
struct Readings {
    monotonic: Option<Instant>,
    wall: Option<SystemTime>,
}

fn shared_reading<T: Copy>(
    select: impl FnOnce(&mut Readings) -> &mut Option<T>,
    read: fn() -> T,
) -> T {
    let Some(mut readings) = READINGS.get() else {
        return read();
    };
    let reading = select(&mut readings);
    if let Some(time) = *reading {
        return time;
    }
    let time = read();
    *reading = Some(time);
    READINGS.set(Some(readings));
    time
}

/// Until it is dropped, this thread reads each clock once, when the time is first asked for.
#[derive(Debug)]
pub struct SharedReadings(());

impl SharedReadings {
    pub fn begin() -> Self {
        READINGS.set(Some(Readings::default()));
        Self(())
    }
}

impl Drop for SharedReadings {
    fn drop(&mut self) {
        READINGS.set(None);
    }
}

/// Seconds since 1970 of a wall-clock time; None before 1970.
pub fn seconds_of(time: SystemTime) -> Option<i64> {
    let span = time.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(span.as_secs()).ok()
}

fn since_epoch() -> Duration {
    wall().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A point in time on both clocks. It has passed as soon as it has on either of them: the monotonic
/// clock stops while the host is suspended, and the wall clock jumps when it is set. Either clock
/// alone could accept an expired token.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    monotonic: Instant,
    wall_millis: u64,
}

impl Deadline {
    pub fn after(span: Duration) -> Self {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self {
            monotonic: now()
                .checked_add(span)
                .unwrap_or_else(|| now() + Duration::from_secs(86_400 * 365)),
            wall_millis: unix_millis().saturating_add(millis),
        }
    }

    /// The same deadline, passed on the wall clock, as after a jump of that clock.
    #[cfg(test)]
    pub(crate) fn after_a_jump(self) -> Self {
        Self {
            wall_millis: unix_millis().saturating_sub(1),
            ..self
        }
    }

    /// The same deadline, never later, in eleven bytes. `start` is needed to unpack it.
    pub fn pack(&self, start: Instant) -> PackedDeadline {
        let monotonic = self.monotonic.saturating_duration_since(start).as_millis();
        let monotonic = u64::try_from(monotonic).unwrap_or(u64::MAX);
        PackedDeadline::new(monotonic, self.wall_millis)
    }

    /// Remaining time: the shorter one of both clocks, zero once passed.
    pub fn left(&self) -> Duration {
        let monotonic = self.monotonic.saturating_duration_since(now());
        let wall = Duration::from_millis(self.wall_millis.saturating_sub(unix_millis()));
        monotonic.min(wall)
    }

    pub fn has_passed(&self) -> bool {
        self.monotonic <= now() || self.wall_millis <= unix_millis()
    }

    /// The deadline in milliseconds since 1970.
    pub fn unix_millis(&self) -> u64 {
        self.wall_millis
    }

    /// A deadline stored across a restart, as wall-clock time only.
    pub fn at_unix_millis(millis: u64) -> Self {
        Self::after(Duration::from_millis(millis.saturating_sub(unix_millis())))
    }

    /// The deadline in seconds since 1970.
    pub fn unix_seconds(&self) -> i64 {
        i64::try_from(self.wall_millis / 1000).unwrap_or(i64::MAX)
    }
}

/// Limits a log line to one per time span, so that frequent events do not fill the log.
#[derive(Debug, Default)]
pub struct LogThrottle {
    /// Milliseconds since 1970 before which no line may be written.
    until: AtomicU64,
}

impl LogThrottle {
    /// Whether a line may be written now.
    pub fn may_log(&self, span: Duration) -> bool {
        let now = unix_millis();
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let next = |until: u64| {
            // If it is too far ahead, the clock has been set back since.
            let is_quiet = until > now && until - now <= millis;
            (!is_quiet).then(|| now.saturating_add(millis))
        };
        let (order, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        self.until.fetch_update(order, relaxed, next).is_ok()
    }
}

/// A deadline in eleven bytes, for tables of millions: milliseconds on the monotonic clock since a
/// start time that the owner keeps, and on the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct PackedDeadline {
    monotonic: [u8; 5],
    wall: [u8; 6],
}

impl PackedDeadline {
    /// Values that do not fit (34 years of run time, 8900 of wall-clock time) are cut to the maximum.
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
    let max = u64::MAX >> (64 - 8 * N);
    let bytes = number.min(max).to_le_bytes();
    std::array::from_fn(|index| bytes[index])
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
    fn each_clock_is_read_once_in_a_scope() {
        let pause = || std::thread::sleep(Duration::from_millis(2));
        let before = now();
        let scope = SharedReadings::begin();
        let (first, first_wall) = (now(), wall());
        assert!(first >= before);
        pause();
        assert_eq!((now(), wall()), (first, first_wall));
        assert!(Instant::now() > first);
        drop(scope);
        assert!(now() > first && wall() > first_wall);
        let _next = SharedReadings::begin();
        assert!(now() > first, "a scope begins without readings");
    }

    #[test]
    fn a_packed_deadline_is_the_same_to_the_millisecond_and_never_later() {
        let start = Instant::now();
        for span in [0, 1, 999, 86_400_007, 31_536_000_000] {
            let exact = Deadline::after(Duration::from_millis(span));
            let unpacked = exact.pack(start).unpack(start);
            assert_eq!(unpacked.wall_millis, exact.wall_millis);
            let lost = exact.monotonic.duration_since(unpacked.monotonic);
            assert!(unpacked.monotonic <= exact.monotonic && lost < Duration::from_millis(1));
        }
    }

    #[test]
    fn a_deadline_too_far_to_pack_is_shortened() {
        let start = Instant::now();
        let never = Deadline::after(Duration::MAX);
        let far = PackedDeadline::new(u64::MAX, u64::MAX).unpack(start);
        // Read first, because the remaining time shrinks between two reads.
        let left = never.left();
        assert!(never.pack(start).unpack(start).left() <= left);
        let years = Duration::from_secs(34 * 365 * 86_400);
        assert!(far.left() > years && far.left() < years + years / 10);
    }
}
