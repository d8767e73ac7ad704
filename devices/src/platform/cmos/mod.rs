//! The real-time clock and its battery-backed memory: Motorola MC146818A data sheet ("DS") behind ports 70h and 71h.

mod calendar;
mod memory;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::calendar::{AlarmTime, DateTime, Format};
use super::clock::{Alarm, Clock, NS_PER_SEC};
use super::{read_bytes, write_bytes};
use crate::bus::BusDevice;
use crate::irq::IrqLine;

pub use memory::{BootDevice, CmosConfig};

/// First of the two ports: index, then data.
pub const CMOS_BASE: u64 = 0x70;
/// Number of ports.
pub const CMOS_LEN: u64 = 2;
/// Interrupt of the clock.
pub const RTC_IRQ: u32 = 8;

// The clock's registers (DS figure 10) and the century byte that the FADT names.
const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const A_UIP: u8 = 0x80;
/// Divider bits 11x hold the divider chain in reset.
const A_DIVIDER_RESET: u8 = 0x60;
const A_RATE: u8 = 0x0f;
/// 32768 Hz time base, 1024 Hz periodic rate.
const A_DEFAULT: u8 = 0x26;

const B_SET: u8 = 0x80;
const B_UIE: u8 = 0x10;
const B_SQWE: u8 = 0x08;
const B_BINARY: u8 = 0x04;
const B_24H: u8 = 0x02;

// Interrupt flags of register C; the enable bits of register B have the same places.
const C_PERIODIC: u8 = 0x40;
const C_ALARM: u8 = 0x20;
const C_UPDATE: u8 = 0x10;
const C_ANY: u8 = C_PERIODIC | C_ALARM | C_UPDATE;
const C_IRQF: u8 = 0x80;
/// Valid RAM and time: the battery is never flat.
const D_VRT: u8 = 0x80;

/// UIP rises this long before the time changes (DS table 6).
const UIP_NS: u64 = 244_140;
/// The first update follows this long after the divider is released (DS, "Divider control").
const RELEASE_NS: i128 = NS_PER_SEC as i128 / 2;
/// Frequency of the time base in Hz.
const BASE_HZ: u128 = 32_768;
/// Longest sleep of the alarm interrupt, so that it follows when the host's clock is set.
const ALARM_RECHECK_NS: u64 = 10 * NS_PER_SEC;

/// The clock and its 128 bytes.
///
/// Time is the host's plus an offset, which a guest that sets the clock changes. Nothing runs between accesses except
/// when an interrupt is enabled and not yet pending: then the alarm wakes [`Self::timer_expired`].
pub struct Cmos {
    state: Mutex<State>,
    line: Arc<dyn IrqLine>,
    clock: Arc<dyn Clock>,
    alarm: Arc<dyn Alarm>,
}

struct State {
    index: u8,
    memory: [u8; memory::SIZE],
    /// The clock's time minus the host's, while it runs.
    offset_ns: i128,
    /// Interrupt flags, as in register C.
    flags: u8,
    /// Second up to which update and alarm flags are set.
    noted_secs: i64,
    /// Monotonic time at which the periodic rate was chosen, and how many periods since then are noted.
    periodic_start_ns: u64,
    noted_periods: u64,
    high: bool,
}

/// One look at the host's clocks.
#[derive(Clone, Copy)]
struct Now {
    monotonic_ns: u64,
    unix_ns: i128,
}

impl Cmos {
    /// A clock as at first power-on. `line` is its interrupt; `alarm` wakes [`Self::timer_expired`].
    pub fn new(
        config: &CmosConfig,
        line: Arc<dyn IrqLine>,
        clock: Arc<dyn Clock>,
        alarm: Arc<dyn Alarm>,
    ) -> Self {
        let mut state = State {
            index: 0,
            memory: memory::contents(config),
            offset_ns: i128::from(config.utc_offset_secs) * i128::from(NS_PER_SEC),
            flags: 0,
            noted_secs: 0,
            periodic_start_ns: clock.monotonic_ns(),
            noted_periods: 0,
            high: false,
        };
        state.set(REG_A, A_DEFAULT);
        state.set(REG_B, B_24H);
        state.noted_secs = state.time_secs(clock.unix_ns());
        Self { state: Mutex::new(state), line, clock, alarm }
    }

    /// To be called when the alarm went off.
    pub fn timer_expired(&self) {
        let mut state = self.lock();
        self.settle(&mut state, self.now());
    }

    /// System reset: interrupts are disabled and cleared; time and memory stay (DS, "RESET").
    pub fn reset(&self) {
        let mut state = self.lock();
        let reg_b = state.get(REG_B);
        state.set(REG_B, reg_b & !(C_ANY | B_SQWE));
        state.flags = 0;
        self.settle(&mut state, self.now());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now { monotonic_ns: self.clock.monotonic_ns(), unix_ns: self.clock.unix_ns() }
    }

    /// Sets flags that have become due, drives the line, and asks for the next wake-up.
    fn settle(&self, state: &mut State, now: Now) {
        state.note_events(now);
        let high = state.flags & state.get(REG_B) & C_ANY != 0;
        if high != state.high {
            state.high = high;
            self.line.set_level(high);
        }
        self.alarm.set(state.next_event(now));
    }

    fn read_data(&self, state: &mut State) -> u8 {
        let now = self.now();
        match state.index {
            REG_A => state.get(REG_A) | if state.update_in_progress(now.unix_ns) { A_UIP } else { 0 },
            REG_C => {
                state.note_events(now);
                let irqf = if state.flags & state.get(REG_B) & C_ANY != 0 { C_IRQF } else { 0 };
                let value = state.flags | irqf;
                state.flags = 0;
                self.settle(state, now);
                value
            }
            REG_D => D_VRT,
            index if is_time(index) && !state.frozen() => state.time_register(index, now.unix_ns),
            index => state.get(index),
        }
    }

    fn write_data(&self, state: &mut State, value: u8) {
        let now = self.now();
        state.note_events(now);
        match state.index {
            REG_A => {
                let rate = state.get(REG_A) & A_RATE;
                state.control(REG_A, value & !A_UIP, now.unix_ns);
                if value & A_RATE != rate {
                    state.periodic_start_ns = now.monotonic_ns;
                    state.noted_periods = 0;
                }
            }
            REG_B => {
                // Setting SET takes UIE away (DS, "UIE").
                let kept = if value & B_SET != 0 { value & !B_UIE } else { value };
                state.control(REG_B, kept, now.unix_ns);
            }
            REG_C | REG_D => {}
            index if is_time(index) => state.write_time(index, value, now.unix_ns),
            index => state.set(index, value),
        }
        self.settle(state, now);
    }
}

fn is_time(index: u8) -> bool {
    matches!(index, SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY)
}

impl State {
    fn get(&self, index: u8) -> u8 {
        self.memory.get(usize::from(index)).copied().unwrap_or(0xff)
    }

    fn set(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.memory.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    fn format(&self) -> Format {
        let reg_b = self.get(REG_B);
        Format { binary: reg_b & B_BINARY != 0, hours_24: reg_b & B_24H != 0 }
    }

    fn divider_reset(&self) -> bool {
        self.get(REG_A) & A_DIVIDER_RESET == A_DIVIDER_RESET
    }

    /// The time registers are plain memory while the guest sets them.
    fn frozen(&self) -> bool {
        self.get(REG_B) & B_SET != 0 || self.divider_reset()
    }

    fn time_ns(&self, unix_ns: i128) -> i128 {
        unix_ns + self.offset_ns
    }

    fn time_secs(&self, unix_ns: i128) -> i64 {
        i64::try_from(self.time_ns(unix_ns).div_euclid(NS_PER_SEC.into())).unwrap_or(0)
    }

    /// Nanoseconds into the current second.
    fn phase_ns(&self, unix_ns: i128) -> u64 {
        self.time_ns(unix_ns).rem_euclid(NS_PER_SEC.into()) as u64
    }

    fn update_in_progress(&self, unix_ns: i128) -> bool {
        !self.frozen() && self.phase_ns(unix_ns) >= NS_PER_SEC - UIP_NS
    }

    fn time_register(&self, index: u8, unix_ns: i128) -> u8 {
        let (secs, format) = (self.time_secs(unix_ns), self.format());
        let time = DateTime::from_unix(secs);
        match index {
            SECONDS => format.encode(time.second),
            MINUTES => format.encode(time.minute),
            HOURS => format.encode_hour(time.hour),
            // 1970-01-01 was a Thursday; Sunday is 1.
            DAY_OF_WEEK => format.encode((secs.div_euclid(calendar::DAY) + 4).rem_euclid(7) + 1),
            DAY_OF_MONTH => format.encode(time.day),
            MONTH => format.encode(time.month),
            YEAR => format.encode(time.year),
            _ => format.encode(time.year.div_euclid(100)),
        }
    }

    /// Writes A or B, and stops or starts the clock if that says so.
    fn control(&mut self, index: u8, value: u8, unix_ns: i128) {
        let (was_frozen, was_divider_reset) = (self.frozen(), self.divider_reset());
        let shown = self.shown_time(unix_ns);
        self.set(index, value);
        match (was_frozen, self.frozen()) {
            (false, true) => self.keep_time(&shown),
            (true, false) => {
                let released = was_divider_reset && !self.divider_reset();
                let phase = if released { RELEASE_NS } else { self.phase_ns(unix_ns).into() };
                self.adopt_time(unix_ns, phase);
            }
            _ => {}
        }
    }

    /// The time registers as they read now.
    fn shown_time(&self, unix_ns: i128) -> [(u8, u8); 8] {
        [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY]
            .map(|index| (index, self.time_register(index, unix_ns)))
    }

    fn keep_time(&mut self, shown: &[(u8, u8)]) {
        shown.iter().for_each(|(index, value)| self.set(*index, *value));
    }

    /// Lets the clock run on from the time in the registers. A time that does not exist is ignored.
    fn adopt_time(&mut self, unix_ns: i128, phase_ns: i128) {
        let format = self.format();
        let number = |index| format.decode(self.get(index));
        let set = || {
            let (century, year) = (number(CENTURY)?, number(YEAR).filter(|year| *year < 100)?);
            let time = DateTime {
                year: century * 100 + year,
                month: number(MONTH)?,
                day: number(DAY_OF_MONTH)?,
                hour: format.decode_hour(self.get(HOURS))?,
                minute: number(MINUTES)?,
                second: number(SECONDS)?,
            };
            time.to_unix()
        };
        if let Some(secs) = set() {
            self.offset_ns = i128::from(secs) * i128::from(NS_PER_SEC) + phase_ns - unix_ns;
        }
        self.noted_secs = self.time_secs(unix_ns);
    }

    fn write_time(&mut self, index: u8, value: u8, unix_ns: i128) {
        if self.frozen() {
            self.set(index, value);
            return;
        }
        let shown = self.shown_time(unix_ns);
        self.keep_time(&shown);
        self.set(index, value);
        self.adopt_time(unix_ns, self.phase_ns(unix_ns).into());
    }

    fn alarm_time(&self) -> Option<AlarmTime> {
        AlarmTime::decode(
            self.format(),
            self.get(HOURS_ALARM),
            self.get(MINUTES_ALARM),
            self.get(SECONDS_ALARM),
        )
    }

    /// Length of the periodic interrupt in ticks of the time base; `None` when it is off (DS table 5).
    fn period_ticks(&self) -> Option<u128> {
        match self.get(REG_A) & A_RATE {
            0 => None,
            // The two lowest codes repeat 256 and 128 Hz.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
        .filter(|_| !self.divider_reset())
    }

    fn note_events(&mut self, now: Now) {
        if let Some(ticks) = self.period_ticks() {
            let elapsed = u128::from(now.monotonic_ns.saturating_sub(self.periodic_start_ns));
            let periods = (elapsed * BASE_HZ / (ticks * u128::from(NS_PER_SEC))) as u64;
            if periods > self.noted_periods {
                self.flags |= C_PERIODIC;
                self.noted_periods = periods;
            }
        }
        if self.frozen() {
            return;
        }
        let secs = self.time_secs(now.unix_ns);
        if secs > self.noted_secs {
            self.flags |= C_UPDATE;
            if self.alarm_time().is_some_and(|alarm| alarm.next_after(self.noted_secs) <= secs) {
                self.flags |= C_ALARM;
            }
        }
        // Also when the host's clock went back.
        self.noted_secs = secs;
    }

    /// When the next interrupt is due that is enabled and not pending yet, in monotonic time.
    fn next_event(&self, now: Now) -> Option<u64> {
        let wanted = self.get(REG_B) & !self.flags;
        let periodic = self.period_ticks().filter(|_| wanted & C_PERIODIC != 0).map(|ticks| {
            let due = u128::from(self.noted_periods + 1) * ticks * u128::from(NS_PER_SEC);
            self.periodic_start_ns.saturating_add(due.div_ceil(BASE_HZ) as u64)
        });
        let until_update = NS_PER_SEC - self.phase_ns(now.unix_ns);
        let running = !self.frozen();
        let update = (running && wanted & C_UPDATE != 0).then_some(until_update);
        let alarm = self.alarm_time().filter(|_| running && wanted & C_ALARM != 0).map(|alarm| {
            let whole = alarm.next_after(self.noted_secs) - self.noted_secs - 1;
            let ns =
                u64::try_from(whole).unwrap_or(0).saturating_mul(NS_PER_SEC).saturating_add(until_update);
            ns.min(ALARM_RECHECK_NS)
        });
        let timed = [update, alarm].into_iter().flatten().map(|ns| now.monotonic_ns.saturating_add(ns));
        timed.chain(periodic).min()
    }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        read_bytes(offset, data, |port| match port {
            1 => self.read_data(&mut state),
            // The index is write-only.
            _ => 0xff,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        write_bytes(offset, data, |port, value| match port {
            // Bit 7 masks NMI on a PC; there is none here.
            0 => state.index = value & 0x7f,
            1 => self.write_data(&mut state, value),
            _ => {}
        });
    }

    fn name(&self) -> &str {
        "rtc"
    }
}

#[cfg(test)]
mod tests;
