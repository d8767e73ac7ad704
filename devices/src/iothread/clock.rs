//! The time of a round of an I/O thread.
//!
//! Where the host's clock is not the processor's own counter (hpet, acpi_pm, some hypervisors' clocks), to read it takes a trip to a
//! device, microseconds, more than a whole command. What is done in one round therefore happens at one time, that at which the
//! thread came back from the kernel, and while it looks for work it reads the clock for half of its time at most.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// After so many readings, what one costs is measured again: the host may change its clock (a watchdog finds the counter unstable).
const READINGS_PER_MEASUREMENT: u64 = 1 << 16;
/// Looks for work between two readings at most.
const LOOKS_MAX: u32 = 1024;

/// The clock as the thread sees it.
pub(super) struct Clock {
    source: fn() -> Instant,
    now: Cell<Option<Instant>>,
    readings: Cell<u64>,
    /// What a reading costs.
    cost: Cell<Duration>,
    /// Looks for work since the last reading, and how many there are until the next.
    looks: Cell<u32>,
    every: Cell<u32>,
}

impl Clock {
    pub(super) fn new(source: fn() -> Instant) -> Self {
        Self {
            source,
            now: Cell::new(None),
            readings: Cell::new(0),
            cost: Cell::new(Duration::ZERO),
            looks: Cell::new(0),
            every: Cell::new(1),
        }
    }

    /// The time of this round: read when it is asked for the first time since [`Self::forget`].
    pub(super) fn now(&self) -> Instant {
        if let Some(now) = self.now.get() {
            return now;
        }
        let now = self.read();
        self.looks.set(0);
        self.now.set(Some(now));
        now
    }

    /// Another round begins, or so much time has passed as if.
    pub(super) fn forget(&self) {
        self.now.set(None);
    }

    /// The time after one more look for work. It is read anew when the looks since the last reading took as long as that does:
    /// it is behind by two to three readings at most.
    pub(super) fn looked(&self) -> Instant {
        let looks = self.looks.get().saturating_add(1);
        self.looks.set(looks);
        if looks < self.every.get() {
            return self.now();
        }
        let before = self.now.take();
        let now = self.now();
        if let Some(before) = before {
            let (spent, cost) = (now.saturating_duration_since(before), self.cost.get());
            // A reading is in that time itself.
            if spent < cost * 2 {
                self.every.set((looks * 2).min(LOOKS_MAX));
            } else if spent > cost * 3 {
                self.every.set((looks / 2).max(1));
            }
        }
        now
    }

    fn read(&self) -> Instant {
        let readings = self.readings.get();
        self.readings.set(readings.wrapping_add(1));
        if readings.is_multiple_of(READINGS_PER_MEASUREMENT) {
            self.measure();
        }
        (self.source)()
    }

    /// The shortest of a few, as the thread may lose its processor meanwhile.
    fn measure(&self) {
        let times: [Instant; 5] = std::array::from_fn(|_| (self.source)());
        let costs = times.iter().zip(times.iter().skip(1)).map(|(a, b)| b.saturating_duration_since(*a));
        self.cost.set(costs.min().unwrap_or_default());
    }

    /// How often it was read, without measurements.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn readings(&self) -> u64 {
        self.readings.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NS: Duration = Duration::from_nanos(1);

    thread_local! {
        static START: Instant = Instant::now();
        /// The time, and what it costs to read it, in nanoseconds.
        static TIME: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    }

    fn pass(ns: u64) {
        let (now, cost) = TIME.get();
        TIME.set((now + ns, cost));
    }

    fn source() -> Instant {
        let (_, cost) = TIME.get();
        pass(cost);
        START.with(|start| *start) + Duration::from_nanos(TIME.get().0)
    }

    fn at_cost(cost: u64) -> Clock {
        TIME.set((0, cost));
        Clock::new(source)
    }

    #[test]
    fn one_reading_a_round() {
        let clock = at_cost(10);
        let first = clock.now();
        pass(1000);
        assert_eq!((clock.now(), clock.readings()), (first, 1));
        clock.forget();
        assert_eq!((clock.now() - first, clock.readings()), (1010 * NS, 2));
    }

    /// Looks of 100 ns for a millisecond, and how far behind the time was at most.
    fn look(clock: &Clock) -> (u64, Duration) {
        let (mut looks, mut behind) = (0, Duration::ZERO);
        let begin = TIME.get().0;
        clock.forget();
        clock.now();
        while TIME.get().0 < begin + 1_000_000 {
            pass(100);
            let known = clock.looked();
            let real = START.with(|start| *start) + Duration::from_nanos(TIME.get().0);
            behind = behind.max(real - known);
            looks += 1;
        }
        (looks, behind)
    }

    #[test]
    fn looking_for_work_is_not_mostly_reading_the_clock() {
        for cost in [25, 200, 1500, 10_000] {
            let clock = at_cost(cost);
            look(&clock);
            let before = clock.readings();
            let (looks, behind) = look(&clock);
            let readings = clock.readings() - before;
            assert!(readings * cost <= 600_000, "{cost}: {readings} readings, {looks} looks");
            assert!(behind <= Duration::from_nanos(3 * cost + 200), "{cost}: {behind:?} behind");
        }
        let clock = at_cost(25);
        let (looks, _) = look(&clock);
        assert_eq!(clock.readings(), looks + 1, "nothing is spared where it costs nothing");
    }

    #[test]
    fn a_clock_that_becomes_slow_is_noticed() {
        let clock = at_cost(25);
        for _ in 0..READINGS_PER_MEASUREMENT {
            clock.forget();
            clock.now();
        }
        TIME.set((0, 1500));
        clock.forget();
        clock.now();
        clock.forget();
        clock.now();
        assert_eq!(clock.cost.get(), 1500 * NS);
    }
}
