//! Limits of rate: so many operations or bytes in a second, with bursts.
//!
//! Each limit is a token bucket, kept as the time at which it will be full again (the generic cell rate algorithm,
//! ITU-T I.371). A request books its place when it is the first of its direction and then waits for it: first come first
//! served, exact on average, and nothing is allocated when warm.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
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

    /// Gives back what was taken and is not needed.
    fn give_back(&self, cost: u64) {
        let mut full = lock(&self.full);
        *full = full.saturating_sub(u128::from(cost) * SECOND);
    }

    /// Takes `cost` tokens at `now`; returns how long to wait for them. Times are in nanoseconds.
    fn take(&self, now: u64, cost: u64) -> u64 {
        let rate = u128::from(self.rate);
        let mut full = lock(&self.full);
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

    /// Those that a request of `bytes` takes from, and how much.
    fn of(&self, direction: Direction, bytes: u64) -> impl Iterator<Item = (&Bucket, u64)> {
        let one = if direction == Direction::Read { 1 } else { 2 };
        let pick = move |(number, bucket): (usize, _)| (number == 0 || number == one).then_some(bucket);
        let operations =
            self.operations.iter().enumerate().filter_map(pick).flatten().map(|bucket| (bucket, 1));
        let bytes =
            self.bytes.iter().enumerate().filter_map(pick).flatten().map(move |bucket| (bucket, bytes));
        operations.chain(bytes)
    }

    /// Books a request of `bytes` at `now`; returns how long it must wait. Times are in nanoseconds.
    fn book(&self, now: u64, direction: Direction, bytes: u64) -> u64 {
        self.of(direction, bytes).map(|(bucket, cost)| bucket.take(now, cost)).max().unwrap_or(0)
    }

    /// Gives back what such a request has booked.
    fn give_back(&self, direction: Direction, bytes: u64) {
        self.of(direction, bytes).for_each(|(bucket, cost)| bucket.give_back(cost));
    }
}

/// The limits of one disk, at work. Flushes do not wait.
///
/// Reads and writes have a line each, and only the first in a line has booked: what gives up behind it has taken nothing.
pub(super) struct Throttle {
    buckets: Buckets,
    lines: [Mutex<Line>; 2],
    start: Instant,
}

/// Requests of one direction, in the order in which they came.
#[derive(Default)]
struct Line {
    waiting: VecDeque<(u64, Option<Waker>)>,
    /// Number of the next that comes.
    next: u64,
    /// When the last that went was to go: the next could have booked then, however late its thread is.
    went: u64,
}

/// A place in a line.
struct Place<'a> {
    line: &'a Mutex<Line>,
    number: u64,
}

impl<'a> Place<'a> {
    fn last(line: &'a Mutex<Line>) -> Self {
        let mut state = lock(line);
        let number = state.next;
        state.next += 1;
        state.waiting.push_back((number, None));
        drop(state);
        Self { line, number }
    }

    /// Waits until it is the first; returns when the one before went.
    async fn first(&self) -> u64 {
        poll_fn(|cx| {
            // Dropped after the lock: a waker may be the last that a task has.
            let _before;
            let mut line = lock(self.line);
            if line.waiting.front().is_none_or(|(number, _)| *number == self.number) {
                return Poll::Ready(line.went);
            }
            let mine = line.waiting.binary_search_by_key(&self.number, |(number, _)| *number);
            if let Some((_, waker)) = mine.ok().and_then(|at| line.waiting.get_mut(at))
                && !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                _before = waker.replace(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = lock(self.line);
        let Ok(at) = line.waiting.binary_search_by_key(&self.number, |(number, _)| *number) else { return };
        let gone = line.waiting.remove(at);
        let next = line.waiting.front_mut().filter(|_| at == 0).and_then(|(_, waker)| waker.take());
        drop(line);
        drop(gone);
        if let Some(next) = next {
            next.wake();
        }
    }
}

/// What a request has booked, which is given back unless it goes.
struct Booking<'a> {
    buckets: &'a Buckets,
    direction: Direction,
    bytes: u64,
    goes: bool,
}

impl Drop for Booking<'_> {
    fn drop(&mut self) {
        if !self.goes {
            self.buckets.give_back(self.direction, self.bytes);
        }
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Throttle {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { buckets: Buckets::new(limits), lines: Default::default(), start: Instant::now() }
    }

    /// Nanoseconds since the start. The time of the round will do: what is booked a little early is a little longer in coming,
    /// and the next one not later.
    fn now(&self, io: &Io) -> u64 {
        u64::try_from(io.now().saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Waits until a request of `bytes` may go. Who gives up while it waits has taken nothing.
    pub(super) async fn wait(&self, io: &Io, direction: Direction, bytes: u64) {
        let came = self.now(io);
        let [reads, writes] = &self.lines;
        let place = Place::last(if direction == Direction::Read { reads } else { writes });
        let from = place.first().await.max(came);
        let due = from.saturating_add(self.buckets.book(from, direction, bytes));
        let mut booking = Booking { buckets: &self.buckets, direction, bytes, goes: false };
        let wait = due.saturating_sub(self.now(io));
        if wait > 0 {
            io.sleep(Duration::from_nanos(wait)).await;
        }
        booking.goes = true;
        lock(place.line).went = due;
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

    /// Whoever gives up what waits, and sends it again, pays for what goes.
    #[test]
    fn what_never_went_costs_nothing() {
        on_io_thread(|io| async move {
            let slow = Limits { iops_read: Some(10), burst: Duration::ZERO, ..Limits::default() };
            let disk = Guarded::new(RamDisk::new(1 << 20), Some(&slow), None);
            let mut given_up: Vec<_> =
                (0..100).map(|_| Box::pin(disk.read(&io, ByteOffset(0), ToGuest::empty()))).collect();
            std::future::poll_fn(|cx| {
                given_up.iter_mut().for_each(|read| drop(read.as_mut().poll(cx)));
                std::task::Poll::Ready(())
            })
            .await;
            drop(given_up);
            let start = Instant::now();
            disk.read(&io, ByteOffset(0), ToGuest::empty()).await.unwrap();
            let waited = start.elapsed();
            // One of them went.
            assert!((80..300).contains(&waited.as_millis()), "{waited:?}");
        });
    }

    /// Nor does anybody get ahead by it: what is left keeps the rate.
    #[test]
    fn who_gives_up_gathers_no_burst() {
        on_io_thread(|io| async move {
            let slow = Limits { iops: Some(100), burst: Duration::ZERO, ..Limits::default() };
            let disk = Guarded::new(RamDisk::new(1 << 20), Some(&slow), None);
            let read = || Box::pin(disk.read(&io, ByteOffset(0), ToGuest::empty()));
            let start = Instant::now();
            let mut waiting: Vec<_> = (0..20).map(|_| read()).collect();
            let mut done = 0;
            for round in 0..20 {
                std::future::poll_fn(|cx| {
                    waiting.retain_mut(|read| {
                        let ready = read.as_mut().poll(cx).is_ready();
                        done += u32::from(ready);
                        !ready
                    });
                    std::task::Poll::Ready(())
                })
                .await;
                // All but the last, and others behind it.
                if round < 19 {
                    waiting.drain(..waiting.len() - 1);
                    waiting.extend((0..19).map(|_| read()));
                }
            }
            while let Some(mut next) = waiting.pop() {
                drop(waiting.drain(..));
                next.as_mut().await.unwrap();
                done += 1;
            }
            let most = 2 + start.elapsed().as_millis() / 10;
            assert!(u128::from(done) <= most, "{done} of {most}");
        });
    }
}
