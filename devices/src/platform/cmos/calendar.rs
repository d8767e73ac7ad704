//! Seconds to the registers of a calendar clock and back.

/// Seconds of a day.
pub(super) const DAY: i64 = 86_400;

/// A date and time of the proleptic Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    /// 0 to 9999.
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: i64,
    /// 1 to 31.
    pub(super) day: i64,
    /// 0 to 23.
    pub(super) hour: i64,
    /// 0 to 59.
    pub(super) minute: i64,
    /// 0 to 59.
    pub(super) second: i64,
}

impl DateTime {
    /// The date and time `secs` after 1970-01-01 00:00.
    pub(super) fn from_unix(secs: i64) -> Self {
        let (days, rest) = (secs.div_euclid(DAY), secs.rem_euclid(DAY));
        // Years start in March here, so that the leap day is the last of the year; eras are 400 years long.
        let from_0000_03_01 = days + 719_468;
        let (era, day_of_era) = (from_0000_03_01.div_euclid(146_097), from_0000_03_01.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * shifted_month + 2) / 5 + 1,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }

    /// Seconds since 1970-01-01 00:00; `None` if a field is out of range.
    pub(super) fn to_unix(self) -> Option<i64> {
        let valid = (0..=9999).contains(&self.year)
            && (1..=12).contains(&self.month)
            && (1..=self.days_of_month()).contains(&self.day)
            && (0..24).contains(&self.hour)
            && (0..60).contains(&self.minute)
            && (0..60).contains(&self.second);
        valid.then(|| {
            let year = self.year - i64::from(self.month <= 2);
            let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
            let shifted_month = if self.month > 2 { self.month - 3 } else { self.month + 9 };
            let day_of_year = (153 * shifted_month + 2) / 5 + self.day - 1;
            let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
            let days = era * 146_097 + day_of_era - 719_468;
            days * DAY + self.hour * 3600 + self.minute * 60 + self.second
        })
    }

    fn days_of_month(self) -> i64 {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        match self.month {
            2 => 28 + i64::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }
}

/// How the clock's registers show numbers: chosen by bits 2 (DM) and 1 (24/12) of register B.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub(super) binary: bool,
    pub(super) hours_24: bool,
}

/// Bit of the hours register that says "p.m." in 12-hour mode.
const PM: u8 = 0x80;

impl Format {
    /// A number from 0 to 99 as the register shows it.
    pub(super) fn encode(self, value: i64) -> u8 {
        let value = value.rem_euclid(100) as u8;
        if self.binary { value } else { ((value / 10) << 4) | (value % 10) }
    }

    /// The number in a register; `None` if its digits are not decimal ones.
    pub(super) fn decode(self, register: u8) -> Option<i64> {
        let (tens, units) = (register >> 4, register & 0x0f);
        if self.binary {
            Some(register.into())
        } else {
            (tens < 10 && units < 10).then(|| i64::from(tens) * 10 + i64::from(units))
        }
    }

    /// An hour from 0 to 23 as the register shows it.
    pub(super) fn encode_hour(self, hour: i64) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let shown = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(shown) | if hour >= 12 { PM } else { 0 }
    }

    /// The hour, 0 to 23, in a register.
    pub(super) fn decode_hour(self, register: u8) -> Option<i64> {
        if self.hours_24 {
            return self.decode(register).filter(|hour| *hour < 24);
        }
        let hour = self.decode(register & !PM).filter(|hour| (1..=12).contains(hour))?;
        Some(hour % 12 + if register & PM != 0 { 12 } else { 0 })
    }
}

/// When the alarm goes off: each field a value, or any.
#[derive(Clone, Copy, Debug)]
pub(super) struct AlarmTime {
    pub(super) hour: Option<i64>,
    pub(super) minute: Option<i64>,
    pub(super) second: Option<i64>,
}

impl AlarmTime {
    /// The alarm of the three registers, where C0h to FFh stand for any value (MC146818A, "Alarm bytes").
    /// `None` if it can never match.
    pub(super) fn decode(format: Format, hour: u8, minute: u8, second: u8) -> Option<Self> {
        let field = |register: u8, value: Option<i64>| match register {
            0xc0.. => Some(None),
            _ => value.map(Some),
        };
        let sixtieth = |register| format.decode(register).filter(|value| *value < 60);
        Some(Self {
            hour: field(hour, format.decode_hour(hour))?,
            minute: field(minute, sixtieth(minute))?,
            second: field(second, sixtieth(second))?,
        })
    }

    /// The first second after `secs` at which it goes off.
    pub(super) fn next_after(self, secs: i64) -> i64 {
        let matches = |wanted: Option<i64>, value| wanted.is_none_or(|wanted| wanted == value);
        let mut at = secs + 1;
        // Whole hours and minutes that do not match are skipped: at most 24 + 60 + 60 steps and a few.
        loop {
            let of_day = at.rem_euclid(DAY);
            if !matches(self.hour, of_day / 3600) {
                at += 3600 - of_day % 3600;
            } else if !matches(self.minute, of_day / 60 % 60) {
                at += 60 - of_day % 60;
            } else if !matches(self.second, of_day % 60) {
                at += 1;
            } else {
                return at;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(year: i64, month: i64, day: i64) -> DateTime {
        DateTime { year, month, day, hour: 23, minute: 59, second: 58 }
    }

    #[test]
    fn known_dates() {
        // Values from `date -u -d ... +%s`.
        for (at, secs) in [
            (date(1970, 1, 1), 86_398),
            (date(2000, 2, 29), 951_868_798),
            (date(2038, 1, 19), 2_147_558_398),
            (date(2100, 2, 28), 4_107_542_398),
            (date(1999, 12, 31), 946_684_798),
        ] {
            assert_eq!(at.to_unix(), Some(secs));
            assert_eq!(DateTime::from_unix(secs), at);
        }
    }

    #[test]
    fn round_trips_over_all_years() {
        let (first, last) = (-62_167_219_200, 253_402_300_799);
        let mut secs: i64 = first;
        while secs <= last {
            assert_eq!(DateTime::from_unix(secs).to_unix(), Some(secs));
            secs += 8_640_013;
        }
    }

    #[test]
    fn impossible_dates_are_refused() {
        for bad in
            [date(2023, 2, 29), date(2100, 2, 29), date(2024, 0, 1), date(2024, 13, 1), date(2024, 4, 31)]
        {
            assert_eq!(bad.to_unix(), None, "{bad:?}");
        }
        assert_eq!(DateTime { second: 60, ..date(2024, 1, 1) }.to_unix(), None);
    }

    #[test]
    fn twelve_hour_mode() {
        let format = Format { binary: false, hours_24: false };
        for (hour, register) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
            assert_eq!(format.encode_hour(hour), register);
            assert_eq!(format.decode_hour(register), Some(hour));
        }
        assert_eq!(format.decode_hour(0x13), None);
        let binary = Format { binary: true, hours_24: false };
        assert_eq!(binary.encode_hour(22), 0x8a);
        assert_eq!(binary.decode_hour(0x8a), Some(22));
    }

    #[test]
    fn alarms() {
        let format = Format { binary: false, hours_24: true };
        let alarm = |h, m, s| AlarmTime::decode(format, h, m, s).unwrap();
        assert_eq!(alarm(0xff, 0xff, 0xff).next_after(41), 42, "every second");
        assert_eq!(alarm(0xff, 0xff, 0x30).next_after(30), 90, "every minute");
        assert_eq!(alarm(0x06, 0x30, 0x00).next_after(0), 6 * 3600 + 1800);
        assert_eq!(alarm(0x00, 0x00, 0x00).next_after(0), DAY, "tomorrow");
        assert_eq!(alarm(0x23, 0x59, 0x59).next_after(DAY - 1), 2 * DAY - 1);
        assert!(AlarmTime::decode(format, 0x24, 0, 0).is_none());
        assert!(AlarmTime::decode(format, 0, 0x60, 0).is_none());
        assert!(AlarmTime::decode(format, 0, 0, 0x0a).is_none());
    }
}
