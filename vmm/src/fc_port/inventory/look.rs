//! What the machine waits for: that was looked, and what was found is told.

use std::time::{Duration, Instant};

/// How long a guest waits for a look, at most.
const MOST: Duration = Duration::from_secs(5);
/// How long the fabric has to be as it is for the first look to be over.
const QUIET: Duration = Duration::from_secs(1);
/// How long the first look waits for a target port.
const LONELY: Duration = Duration::from_secs(10);

pub(super) struct Looks {
    /// Number, begin, and when it is over at the latest.
    open: Vec<(u64, Instant, Instant)>,
    /// When ports came or went last.
    changed: Instant,
    /// When sysfs was looked at last.
    seen: Option<Instant>,
    begin: Instant,
}

impl Looks {
    /// The first begins, which may take so long.
    pub(super) fn new(now: Instant, timeout: Duration) -> Self {
        Self { open: vec![(0, now, now + timeout)], changed: now, seen: None, begin: now }
    }

    pub(super) fn changed(&mut self, now: Instant) {
        self.changed = now;
    }

    pub(super) fn saw(&mut self, now: Instant) {
        self.seen = Some(now);
    }

    pub(super) fn seen(&self) -> Option<Instant> {
        self.seen
    }

    pub(super) fn begin(&mut self, number: u64, now: Instant) {
        self.open.push((number, now, now + MOST));
    }

    /// When one is over at the latest.
    pub(super) fn next(&self) -> Option<Instant> {
        let quiet = self.open.iter().filter(|(number, ..)| *number == 0).map(|_| self.changed + QUIET);
        let quiet = quiet.filter(|quiet| self.seen.is_some_and(|seen| seen < *quiet));
        self.open.iter().map(|(.., until)| *until).chain(quiet).min()
    }

    /// The numbers of those that are over. All is told of ports since some time, if it has `settled`.
    pub(super) fn end(&mut self, now: Instant, targets: bool, settled: impl Fn(Instant) -> bool) -> Vec<u64> {
        let quiet = now >= self.changed + QUIET && (targets || now >= self.begin + LONELY);
        let over = |(number, begin, until): &mut (u64, Instant, Instant)| {
            let looked = self.seen.is_some_and(|seen| seen >= *begin);
            now >= *until || looked && settled(*begin) && (*number > 0 || quiet)
        };
        self.open.extract_if(.., over).map(|(number, ..)| number).collect()
    }
}
