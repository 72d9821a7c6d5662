//! Clocks, and a histogram of durations.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Durations of look-ups, in nanoseconds.
pub(crate) struct Pauses {
    pub(crate) each: Vec<u32>,
    /// One bucket per ten nanoseconds; the last one counts all longer durations.
    counts: Vec<u64>,
    long: Vec<u32>,
    pub(crate) longest_plain: u64,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            each: Vec::with_capacity(1 << 16),
            counts: vec![0; 2000],
            long: Vec::new(),
            longest_plain: 0,
        }
    }
}

impl Pauses {
    pub(crate) fn fold(&mut self) {
        for took in self.each.drain(..) {
            match self.counts.get_mut(took as usize / 10) {
                Some(count) => *count += 1,
                None => self.long.push(took),
            }
        }
    }

    fn at(&self, part: f64) -> u32 {
        let total = self.counts.iter().sum::<u64>() + self.long.len() as u64;
        let mut left = (total as f64 * part) as u64;
        for (tens, count) in self.counts.iter().enumerate() {
            if left < *count {
                return tens as u32 * 10;
            }
            left -= count;
        }
        let mut long = self.long.clone();
        long.sort_unstable();
        long.get(left as usize)
            .or(long.last())
            .copied()
            .unwrap_or(0)
    }

    pub(crate) fn text(&self) -> String {
        let total = self.counts.iter().sum::<u64>() + self.long.len() as u64;
        let [half, p99, p999] = [0.5, 0.99, 0.999].map(|part| self.at(part));
        let (longest, plain) = (self.at(1.0) / 1000, self.longest_plain / 1000);
        format!(
            "{total} look-ups: half {half} ns, p99 {p99} ns, p99.9 {p999} ns, longest {longest} µs \
             (with waiting for a core {plain} µs)"
        )
    }
}

/// Nanoseconds during which this thread was ready to run but had no core.
pub(crate) fn waited_for_a_core() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited = text.split_whitespace().nth(1);
    waited.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Wall time, and this thread's processor time.
pub(crate) struct Watch {
    wall: Instant,
    core: Duration,
}

impl Watch {
    pub(crate) fn start() -> Self {
        Self {
            wall: Instant::now(),
            core: on_a_core(),
        }
    }

    pub(crate) fn each(&self, count: usize) -> String {
        let (wall, core) = (self.wall.elapsed(), on_a_core() - self.core);
        let each = |span: Duration| span.as_nanos() / count.max(1) as u128;
        format!(
            "{} ns on a core ({} ns by the clock)",
            each(core),
            each(wall)
        )
    }

    pub(crate) fn text(&self) -> String {
        let (wall, core) = (self.wall.elapsed(), on_a_core() - self.core);
        format!("{core:?} on a core ({wall:?} by the clock)")
    }
}

fn on_a_core() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
