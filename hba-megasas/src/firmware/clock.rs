//! The controller's clock: seconds since 2000-01-01 00:00 UTC, which the driver may set.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds from 1970 to 2000.
const EPOCH: i64 = 946_684_800;
const DAY: i64 = 86_400;

/// A date and time as GET_TIME and SET_TIME carry it: year (16 bits), month, day, hour, minute, second.
pub(crate) type Packed = [u8; 8];

/// The clock.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// What the driver set it ahead of the host's, in seconds.
    ahead: AtomicI64,
}

impl Clock {
    /// A clock that is so many seconds ahead of the host's.
    pub(crate) fn new(ahead: i64) -> Self {
        Self { ahead: AtomicI64::new(ahead) }
    }

    /// What it is ahead of the host's, in seconds.
    pub(crate) fn ahead(&self) -> i64 {
        self.ahead.load(Ordering::Relaxed)
    }

    fn host() -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX).saturating_sub(EPOCH)
    }

    /// Seconds since 2000.
    pub(crate) fn seconds(&self) -> u32 {
        let now = Self::host().saturating_add(self.ahead());
        u32::try_from(now.max(0)).unwrap_or(u32::MAX)
    }

    /// Date and time.
    pub(crate) fn packed(&self) -> Packed {
        pack(self.seconds())
    }

    /// Sets the clock; false when it is no date.
    pub(crate) fn set(&self, packed: Packed) -> bool {
        let Some(seconds) = unpack(packed) else { return false };
        self.ahead.store(seconds.saturating_sub(Self::host()), Ordering::Relaxed);
        true
    }
}

/// Days from 2000-01-01 to the first of `month` (1 to 12) of `year` (2000 or later).
fn days_before(year: i64, month: i64) -> i64 {
    const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let past = year - 2000;
    // Leap years before this one; 2000 is one.
    let leaps = if past == 0 { 0 } else { (past - 1) / 4 - (past - 1) / 100 + (past - 1) / 400 + 1 };
    let this = i64::from(month > 2 && is_leap(year));
    let months = usize::try_from(month - 1).ok().and_then(|month| BEFORE.get(month));
    past * 365 + leaps + months.copied().unwrap_or(0) + this
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn pack(seconds: u32) -> Packed {
    let (days, rest) = (i64::from(seconds) / DAY, seconds % DAY as u32);
    let mut year = 2000 + days / 366;
    while days_before(year + 1, 1) <= days {
        year += 1;
    }
    let month = (1..=12).rev().find(|&month| days_before(year, month) <= days).unwrap_or(1);
    let day = days - days_before(year, month) + 1;
    let [low, high] = (year as u16).to_le_bytes();
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    [low, high, month as u8, day as u8, hour as u8, minute as u8, second as u8, 0]
}

fn unpack(packed: Packed) -> Option<i64> {
    let [low, high, month, day, hour, minute, second, _] = packed;
    let year = i64::from(u16::from_le_bytes([low, high]));
    let (month, day) = (i64::from(month), i64::from(day));
    let valid = (2000..=2135).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    let days = || days_before(year, month) + day - 1;
    valid.then(|| days() * DAY + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(pack(0), [0xd0, 7, 1, 1, 0, 0, 0, 0]);
        // 2000-02-29 23:59:59 and a second later.
        assert_eq!(pack(60 * 86_400 - 1), [0xd0, 7, 2, 29, 23, 59, 59, 0]);
        assert_eq!(pack(60 * 86_400), [0xd0, 7, 3, 1, 0, 0, 0, 0]);
        // 2024-03-01 12:34:56 is 1709296496 after 1970.
        let seconds = 1_709_296_496 - 946_684_800;
        assert_eq!(pack(seconds), [0xe8, 7, 3, 1, 12, 34, 56, 0]);
        assert_eq!(unpack([0xe8, 7, 3, 1, 12, 34, 56, 0]), Some(i64::from(seconds)));
        for seconds in (0..4_200_000_000_u32).step_by(999_983) {
            assert_eq!(unpack(pack(seconds)), Some(i64::from(seconds)));
        }
    }

    #[test]
    fn setting() {
        let clock = Clock::default();
        assert!(clock.set([0xda, 7, 5, 6, 7, 8, 9, 0]));
        assert_eq!(clock.packed()[..6], [0xda, 7, 5, 6, 7, 8]);
        for bad in [[0; 8], [0xff; 8], [0xda, 7, 13, 1, 0, 0, 0, 0], [0xda, 7, 1, 1, 24, 0, 0, 0]] {
            assert!(!clock.set(bad));
        }
    }
}
