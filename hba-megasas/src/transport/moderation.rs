//! When to interrupt for completions: as on the boards, not for each while more are about to come.
//!
//! An interrupt costs a guest some exits besides its own work. With one command at a time there is nothing to wait
//! for. With many, an interrupt comes when half of what the driver waits for is done, or 16 completions, or a quarter
//! of the time that commands take at present.

use std::time::{Duration, Instant};

/// Completions without interrupt at most. It is the number that the boards report (interrupt throttle count).
const COUNT_MAX: u32 = 16;
/// Longest wait for more.
const DELAY_MAX: Duration = Duration::from_millis(1);

/// What the driver has not been told yet, and how long commands take.
#[derive(Debug, Default)]
pub(crate) struct Moderation {
    untold: u32,
    /// Since when.
    since: Option<Instant>,
    /// From the queue to the completion, averaged over the last few.
    service: Duration,
}

impl Moderation {
    /// Completions were posted; `taken`: when their commands had been taken.
    pub(crate) fn completed(&mut self, now: Instant, taken: impl Iterator<Item = Instant>) {
        for taken in taken {
            let time = now.saturating_duration_since(taken);
            self.service = (self.service * 7 + time) / 8;
            self.untold += 1;
            self.since.get_or_insert(now);
        }
    }

    /// Whether there is nothing to tell.
    pub(crate) fn is_idle(&self) -> bool {
        self.untold == 0
    }

    /// Whether it is time to interrupt while `running` commands are under way.
    pub(crate) fn is_due(&self, now: Instant, running: u32) -> bool {
        self.untold > 0 && (self.untold >= running.min(COUNT_MAX) || self.is_late(now))
    }

    /// Whether the oldest completion has waited long enough.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        let delay = (self.service / 4).min(DELAY_MAX);
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= delay)
    }

    /// The driver was told of all.
    pub(crate) fn signalled(&mut self) {
        self.untold = 0;
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// After commands of 8 ms each.
    fn warm(start: Instant) -> Moderation {
        let mut moderation = Moderation::default();
        moderation.completed(start + 8 * MS, std::iter::repeat_n(start, 100));
        assert!(moderation.service > 7 * MS);
        moderation.signalled();
        moderation
    }

    #[test]
    fn the_last_command_is_told_at_once() {
        let now = Instant::now();
        let mut moderation = warm(now);
        assert!(!moderation.is_due(now, 0), "nothing to tell");
        moderation.completed(now, [now].into_iter());
        assert!(moderation.is_due(now, 0));
        assert!(moderation.is_due(now, 1), "half of what the driver waits for");
        assert!(!moderation.is_due(now, 2));
    }

    #[test]
    fn half_or_sixteen_or_some_time() {
        let now = Instant::now();
        for (running, enough) in [(4, 4), (31, 16), (1000, 16)] {
            let mut moderation = warm(now);
            for count in 1..=enough {
                assert!(!moderation.is_due(now, running));
                moderation.completed(now, [now - 8 * MS].into_iter());
                assert_eq!(moderation.is_due(now, running), count == enough);
            }
            moderation.signalled();
            assert!(moderation.is_idle() && !moderation.is_late(now + MS));
        }
        let mut moderation = warm(now);
        moderation.completed(now, [now - 8 * MS].into_iter());
        assert!(
            !moderation.is_late(now + MS - Duration::from_nanos(1)),
            "a quarter of 8 ms is more than 1 ms"
        );
        assert!(moderation.is_late(now + MS) && moderation.is_due(now + MS, 1000));
        let mut quick = Moderation::default();
        quick.completed(now, std::iter::repeat_n(now - Duration::from_micros(80), 100));
        assert!(!quick.is_late(now + Duration::from_micros(10)));
        assert!(quick.is_late(now + Duration::from_micros(20)));
    }
}
