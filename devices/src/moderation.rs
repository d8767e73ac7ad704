//! When to interrupt a guest for completions: not for each, while it is about to send more or more are about to come.
//!
//! An interrupt costs a guest some exits besides its own work. With one command at a time there is nothing to wait for. A
//! driver that sends command after command is not waiting for any of them: it is told when it pauses, or when enough is
//! done, or after as long as some commands take to send. Where each command is done before the driver can send the next,
//! nothing tells the one from the other: now and then a completion is held back for a moment, to see whether another command
//! comes all the same.
//!
//! All that is worth no more than an interrupt costs, which goes by what a wake-up costs on this host: where a device takes
//! long, commands lie far apart because each waits for the one before, and to wait for more would only slow them down.

use std::time::{Duration, Instant};

/// Completions without an interrupt at most. It is the number that MegaRAID boards report (interrupt throttle count).
const COUNT_MAX: u32 = 16;
/// Longest wait for more completions.
const DELAY_MAX: Duration = Duration::from_millis(1);
/// Longest wait while the driver sends, and that at least when it is not known yet how fast it does.
const SENDING_MAX: Duration = Duration::from_millis(4);
const SENDING_MIN: Duration = Duration::from_micros(20);
/// Signs that the driver sends commands without waiting for those before: how many count, what one is worth, and from
/// where on it is believed.
const SIGNS_MAX: u8 = 16;
const SIGN: u8 = 2;
const SIGNS: u8 = 4;
/// What another command is worth that comes while a completion is held back to see that.
const PROOF: u8 = 8;
/// Interrupts until a completion is held back for that: after a success, and at most.
const PROBE_AFTER: u32 = 64;
const PROBE_AFTER_MAX: u32 = 1024;

/// What the driver has not been told yet, and how it sends commands.
#[derive(Debug)]
pub struct Moderation {
    /// Waits for more completions also while the driver does not send: each interrupt costs it much.
    patient: bool,
    untold: u32,
    /// Since when.
    since: Option<Instant>,
    /// Longest pause between two commands for which a completion is held back.
    worth: Duration,
    /// From the queue to the completion, averaged over the last few.
    service: Duration,
    last_arrival: Option<Instant>,
    /// Between commands that did not wait for each other, averaged over the last few.
    gap: Duration,
    signs: u8,
    /// Between all commands, averaged over the last few.
    pace: Duration,
    /// The next completion is held back to see whether a command comes all the same.
    probing: bool,
    /// Interrupts until then.
    probe_after: u32,
    told: u32,
}

impl Moderation {
    /// A `patient` one waits, besides, until half of what the driver waits for is done, or a quarter of the time that commands
    /// take at present has passed.
    ///
    /// `bound` is how long it pays on this host to look for work instead of sleeping.
    pub fn new(patient: bool, bound: Duration) -> Self {
        Self {
            patient,
            worth: if patient { bound * 2 } else { bound / 2 },
            untold: 0,
            since: None,
            service: Duration::ZERO,
            last_arrival: None,
            gap: Duration::ZERO,
            signs: 0,
            pace: Duration::ZERO,
            probing: false,
            probe_after: PROBE_AFTER / 4,
            told: 0,
        }
    }

    /// `count` commands were taken, while `running` others were under way.
    pub fn arrived(&mut self, now: Instant, count: u32, running: u32) {
        if count == 0 {
            return;
        }
        let before = self.last_arrival.unwrap_or(now);
        let gap = now.saturating_duration_since(before).min(DELAY_MAX) / count;
        self.pace = (self.pace * 7 + gap) / 8;
        if count > 1 || running + self.untold > 0 {
            self.gap = (self.gap * 7 + gap) / 8;
            self.signs = (self.signs + SIGN).min(SIGNS_MAX);
            if self.probing {
                self.gap = self.gap.max(gap);
                self.signs = self.signs.max(PROOF);
                (self.probing, self.probe_after, self.told) = (false, PROBE_AFTER, 0);
            }
        } else {
            self.signs = self.signs.saturating_sub(1);
        }
        self.last_arrival = Some(now);
    }

    /// Completions were posted; `taken`: when their commands had been taken.
    pub fn completed(&mut self, now: Instant, taken: impl Iterator<Item = Instant>) {
        for taken in taken {
            let time = now.saturating_duration_since(taken);
            self.service = (self.service * 7 + time) / 8;
            self.untold += 1;
            self.since.get_or_insert(now);
        }
    }

    /// Whether there is nothing to tell.
    pub fn is_idle(&self) -> bool {
        self.untold == 0
    }

    /// Whether it is time to interrupt while `running` commands are under way; with `waiting`, there are more to take.
    pub fn is_due(&self, now: Instant, running: u32, waiting: bool) -> bool {
        if self.untold == 0 || self.untold >= COUNT_MAX {
            return self.untold > 0;
        }
        let age = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if waiting || self.is_sending(now) {
            return age >= (self.gap * COUNT_MAX).min(self.worth * 4).clamp(SENDING_MIN, SENDING_MAX);
        }
        if self.probing {
            return age >= (self.pace * 2).min(DELAY_MAX).min(self.worth);
        }
        !self.patient || self.untold >= running.min(COUNT_MAX) || age >= (self.service / 4).min(DELAY_MAX)
    }

    /// Whether the driver is likely to send the next command in a moment.
    fn is_sending(&self, now: Instant) -> bool {
        let pause = self.gap * 2;
        let recent = |last| now.saturating_duration_since(last) < pause;
        self.signs >= SIGNS && pause <= self.worth && self.last_arrival.is_some_and(recent)
    }

    /// The driver was told of all.
    pub fn signalled(&mut self) {
        self.untold = 0;
        self.since = None;
        if self.probing {
            (self.probing, self.probe_after) = (false, (self.probe_after * 2).min(PROBE_AFTER_MAX));
            self.told = 0;
        } else if self.signs < SIGNS {
            self.told += 1;
            self.probing = self.told >= self.probe_after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const US: Duration = Duration::from_micros(1);

    /// After commands of 8 ms each.
    fn warm(start: Instant) -> Moderation {
        let mut moderation = Moderation::new(true, MS);
        moderation.completed(start + 8 * MS, std::iter::repeat_n(start, 100));
        assert!(moderation.service > 7 * MS);
        moderation.signalled();
        moderation
    }

    #[test]
    fn the_last_command_is_told_at_once() {
        let now = Instant::now();
        let mut moderation = warm(now);
        assert!(!moderation.is_due(now, 0, false), "nothing to tell");
        moderation.completed(now, [now].into_iter());
        assert!(moderation.is_due(now, 0, false));
        assert!(moderation.is_due(now, 1, false), "half of what the driver waits for");
        assert!(!moderation.is_due(now, 2, false));
        let mut eager = Moderation::new(false, MS);
        eager.completed(now, [now].into_iter());
        assert!(eager.is_due(now, 1000, false));
    }

    #[test]
    fn half_or_sixteen_or_some_time() {
        let now = Instant::now();
        for (running, enough) in [(4, 4), (31, 16), (1000, 16)] {
            let mut moderation = warm(now);
            for count in 1..=enough {
                assert!(!moderation.is_due(now, running, false));
                moderation.completed(now, [now - 8 * MS].into_iter());
                assert_eq!(moderation.is_due(now, running, false), count == enough);
            }
            moderation.signalled();
            assert!(moderation.is_idle() && !moderation.is_due(now + MS, 0, false));
        }
        let mut moderation = warm(now);
        moderation.completed(now, [now - 8 * MS].into_iter());
        let late = |moderation: &Moderation, now| moderation.is_due(now, 1000, false);
        assert!(!late(&moderation, now + MS - US / 1000), "a quarter of 8 ms is more than 1 ms");
        assert!(late(&moderation, now + MS));
        let mut quick = Moderation::new(true, MS);
        quick.completed(now, std::iter::repeat_n(now - 80 * US, 10));
        assert!(!late(&quick, now + 10 * US));
        assert!(late(&quick, now + 20 * US));
    }

    /// One command after the other, `each` apart, all done at once, `told` whenever it is due.
    fn send(moderation: &mut Moderation, start: Instant, each: Duration, count: u32) -> (Instant, u32) {
        let (mut now, mut told) = (start, 0);
        for n in 0..count {
            moderation.arrived(now, 1, 0);
            moderation.completed(now, [now].into_iter());
            // The next one has come before this one could be told.
            if moderation.is_due(now, 0, n + 1 < count) {
                moderation.signalled();
                told += 1;
            }
            now += each;
        }
        (now, told)
    }

    #[test]
    fn a_driver_that_sends_is_told_when_it_pauses() {
        for patient in [false, true] {
            let mut moderation = Moderation::new(patient, MS);
            let (now, _) = send(&mut moderation, Instant::now(), 10 * US, 64);
            moderation.signalled();
            let (now, told) = send(&mut moderation, now + MS, 10 * US, 64);
            assert_eq!(told, 4, "sixteen at a time");
            // Three more, and a pause.
            for n in 0..3 {
                moderation.arrived(now + n * 10 * US, 1, 0);
                moderation.completed(now + n * 10 * US, [now].into_iter());
                assert!(!moderation.is_due(now + n * 10 * US, 0, false), "{n}");
            }
            assert!(moderation.is_due(now + 20 * US + 4 * moderation.gap, 0, false));
        }
    }

    #[test]
    fn a_driver_that_waits_for_each_is_told_of_each() {
        let mut moderation = Moderation::new(false, MS);
        let (mut now, _) = send(&mut moderation, Instant::now(), 10 * US, 64);
        let mut held = 0;
        moderation.signalled();
        for n in 0..40 {
            now += 50 * US;
            moderation.arrived(now, 1, 0);
            now += 10 * US;
            moderation.completed(now, [now].into_iter());
            held += u32::from(n >= 16 && !moderation.is_due(now, 0, false));
            moderation.signalled();
        }
        assert!(held <= 1, "it is known by now, and looked at again once");
    }

    /// A driver that sends a command every 100 us whatever is told, and one that waits; each is done after 10 us.
    #[test]
    fn a_driver_that_is_always_behind_is_found_out() {
        for waits in [false, true] {
            let mut moderation = Moderation::new(true, MS);
            let (mut now, mut told, mut late) = (Instant::now(), 0, Duration::ZERO);
            for _ in 0..2000 {
                moderation.arrived(now, 1, 0);
                let next = now + 100 * US;
                now += 10 * US;
                moderation.completed(now, [now - 10 * US].into_iter());
                while (waits || now < next) && !moderation.is_idle() {
                    if moderation.is_due(now, 0, false) {
                        moderation.signalled();
                        told += 1;
                    } else {
                        late += US;
                        now += US;
                    }
                }
                now = if waits { now + 90 * US } else { next };
            }
            if waits {
                assert_eq!(told, 2000);
                assert!(late < Duration::from_millis(3), "{late:?} of 200 ms");
            } else {
                assert!(told < 250, "{told} interrupts for 2000 commands");
            }
        }
    }

    /// Four commands at a time on a device that takes a millisecond: each is sent because one was told.
    #[test]
    fn a_slow_device_is_not_made_slower() {
        let mut moderation = Moderation::new(false, 50 * US);
        let mut now = Instant::now();
        for n in 0..200 {
            moderation.arrived(now, 1, 3);
            now += 250 * US;
            moderation.completed(now, [now].into_iter());
            assert!(moderation.is_due(now, 3, false), "{n}");
            moderation.signalled();
        }
    }

    #[test]
    fn nobody_waits_for_long() {
        let mut moderation = Moderation::new(false, MS);
        let (now, _) = send(&mut moderation, Instant::now(), 200 * US, 64);
        moderation.signalled();
        moderation.arrived(now, 1, 0);
        moderation.completed(now, [now].into_iter());
        assert!(!moderation.is_due(now, 0, true));
        assert!(moderation.is_due(now + 4 * MS, 0, true));
    }
}
