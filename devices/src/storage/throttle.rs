//! Limits of rate: so many operations or bytes in a second, with bursts.
//!
//! Each limit is a token bucket, kept as the time at which it will be full again (the generic cell rate algorithm,
//! ITU-T I.371). A request books its place when it comes and then waits for it: first come first served, exact on
//! average, and nothing is allocated.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::iothread::Io;

/// Nanoseconds of a second.
const SECOND: u128 = 1_000_000_000;

/// Limits of one disk. `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Operations in a second.
    pub iops: Option<u64>,
    /// Reads in a second.
    pub iops_read: Option<u64>,
    /// Writes in a second, with zeroing.
    pub iops_write: Option<u64>,
    /// Bytes in a second.
    pub bps: Option<u64>,
    /// Bytes read in a second.
    pub bps_read: Option<u64>,
    /// Bytes written in a second.
    pub bps_write: Option<u64>,
    /// After a pause, what this time allows may come at once.
    pub burst: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            iops: None,
            iops_read: None,
            iops_write: None,
            bps: None,
            bps_read: None,
            bps_write: None,
            burst: Duration::from_millis(100),
        }
    }
}

/// One limit.
struct Bucket {
    rate: u64,
    /// How long filling it takes, in nanoseconds.
    burst: u64,
    /// When it will be full, in nanoseconds times `rate`, so that nothing is lost to rounding.
    full: Mutex<u128>,
}

impl Bucket {
    fn new(rate: u64, burst: Duration) -> Self {
        let burst = u64::try_from(burst.as_nanos()).unwrap_or(u64::MAX);
        Self { rate: rate.max(1), burst, full: Mutex::new(0) }
    }

    /// Takes `cost` tokens at `now`; returns how long to wait for them. Times are in nanoseconds.
    fn take(&self, now: u64, cost: u64) -> u64 {
        let rate = u128::from(self.rate);
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let booked = (*full).max(u128::from(now) * rate);
        *full = booked + u128::from(cost) * SECOND;
        let due = (booked / rate).saturating_sub(u128::from(self.burst));
        u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(now)
    }
}

/// What a request does, for the limits of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// The buckets of a disk.
struct Buckets {
    /// All operations, reads, writes.
    operations: [Option<Bucket>; 3],
    /// All bytes, bytes read, bytes written.
    bytes: [Option<Bucket>; 3],
}

impl Buckets {
    fn new(limits: &Limits) -> Self {
        let buckets =
            |rates: [Option<u64>; 3]| rates.map(|rate| rate.map(|rate| Bucket::new(rate, limits.burst)));
        Self {
            operations: buckets([limits.iops, limits.iops_read, limits.iops_write]),
            bytes: buckets([limits.bps, limits.bps_read, limits.bps_write]),
        }
    }

    /// Books a request of `bytes` at `now`; returns how long it must wait. Times are in nanoseconds.
    fn book(&self, now: u64, direction: Direction, bytes: u64) -> u64 {
        let ours = |[all, read, write]: &[Option<Bucket>; 3], cost| {
            let one = if direction == Direction::Read { read } else { write };
            let waits = [all, one].map(|bucket| bucket.as_ref().map_or(0, |bucket| bucket.take(now, cost)));
            waits.into_iter().max().unwrap_or(0)
        };
        ours(&self.operations, 1).max(ours(&self.bytes, bytes))
    }
}

/// The limits of one disk, at work. Flushes do not wait.
pub(super) struct Throttle {
    buckets: Buckets,
    start: Instant,
}

impl Throttle {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { buckets: Buckets::new(limits), start: Instant::now() }
    }

    /// Waits until a request of `bytes` may go.
    pub(super) async fn wait(&self, io: &Io, direction: Direction, bytes: u64) {
        // That of the round will do: what is booked a little early is a little longer in coming, and the next one not later.
        let now = io.now().saturating_duration_since(self.start);
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let wait = self.buckets.book(now, direction, bytes);
        if wait > 0 {
            io.sleep(Duration::from_nanos(wait)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::ToGuest;
    use crate::storage::{BlockBackend, ByteOffset, Guarded};
    use crate::testing::conformance::check;
    use crate::testing::{RamDisk, on_io_thread};

    const MS: u64 = 1_000_000;

    #[test]
    fn the_average_is_exact() {
        // 7 does not divide a second: whatever rounding loses would add up.
        for rate in [1, 7, 1000, 999_983] {
            let bucket = Bucket::new(rate, Duration::ZERO);
            let count = rate * 50 + 1;
            let last = (0..count).map(|_| bucket.take(0, 1)).last().unwrap();
            assert_eq!(last, 50 * 1000 * MS, "rate {rate}");
        }
        // One at a time, each as soon as it may.
        let bucket = Bucket::new(7, Duration::ZERO);
        let mut now = 0;
        (0..=700).for_each(|_| now += bucket.take(now, 1));
        assert!((100_000 * MS..=100_000 * MS + 700).contains(&now), "{now}");
    }

    #[test]
    fn a_burst_is_allowed_after_a_pause_and_not_more() {
        let bucket = Bucket::new(100, Duration::from_millis(100));
        // Full at the start: ten are free, and the one that empties it.
        let waits: Vec<u64> = (0..14).map(|_| bucket.take(5000 * MS, 1) / MS).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 20, 30]);
        // A second later it is full again, and not fuller.
        let waits: Vec<u64> = (0..13).map(|_| bucket.take(7000 * MS, 1) / MS).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 20]);
        // One that is larger than the bucket goes, and the next pays for it.
        let bucket = Bucket::new(1000, Duration::from_millis(100));
        assert_eq!(bucket.take(1000 * MS, 5000), 0);
        assert_eq!(bucket.take(1000 * MS, 1), 4900 * MS);
    }

    #[test]
    fn each_limit_counts_what_it_names() {
        let book = |limits: Limits, direction, bytes| {
            let buckets = Buckets::new(&Limits { burst: Duration::ZERO, ..limits });
            buckets.book(0, direction, bytes);
            buckets.book(0, direction, bytes) / MS
        };
        let none = Limits::default();
        let (read, write) = (Direction::Read, Direction::Write);
        assert_eq!(book(none, read, 1 << 20), 0);
        for direction in [read, write] {
            assert_eq!(book(Limits { iops: Some(10), ..none }, direction, 1 << 20), 100);
            assert_eq!(book(Limits { bps: Some(1 << 20), ..none }, direction, 1 << 19), 500);
        }
        assert_eq!(book(Limits { iops_read: Some(10), ..none }, read, 0), 100);
        assert_eq!(book(Limits { iops_read: Some(10), ..none }, write, 0), 0);
        assert_eq!(book(Limits { iops_write: Some(10), ..none }, write, 0), 100);
        assert_eq!(book(Limits { iops_write: Some(10), ..none }, read, 0), 0);
        assert_eq!(book(Limits { bps_read: Some(1000), ..none }, read, 500), 500);
        assert_eq!(book(Limits { bps_read: Some(1000), ..none }, write, 500), 0);
        assert_eq!(book(Limits { bps_write: Some(1000), ..none }, write, 500), 500);
        assert_eq!(book(Limits { iops: Some(10), bps: Some(1000), ..none }, write, 500), 500);
    }

    #[test]
    fn a_throttled_disk_conforms_and_is_slow() {
        on_io_thread(|io| async move {
            let fast = Limits { iops: Some(1_000_000), ..Limits::default() };
            check(&io, &Guarded::new(RamDisk::new(1 << 20), Some(&fast), None), 3, 100).await;
            let slow = Limits { iops_read: Some(100), burst: Duration::ZERO, ..Limits::default() };
            let disk = Guarded::new(RamDisk::new(1 << 20), Some(&slow), None);
            let start = Instant::now();
            for _ in 0..11 {
                disk.read(&io, ByteOffset(0), ToGuest::empty()).await.unwrap();
            }
            assert!(start.elapsed() >= Duration::from_millis(100));
        });
    }
}
