//! ACPI power management registers: the fixed hardware of ACPI 6.5, section 4.8, laid out as in the ICH9
//! (Intel 316972, section 13.8). System management mode does not exist here, so ACPI mode is always on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::clock::{Alarm, Clock, NS_PER_SEC};
use super::{Machine, MachineRequest, read_bytes, write_bytes};
use crate::bus::BusDevice;
use crate::irq::IrqLine;

/// Ports the block decodes, from PMBASE on.
pub const PM_LEN: u64 = 128;
/// Offset of PM1_STS and PM1_EN.
pub const PM1_EVT: u64 = 0x00;
/// Offset of PM1_CNT.
pub const PM1_CNT: u64 = 0x04;
/// Offset of the power management timer.
pub const PM_TMR: u64 = 0x08;
/// Offset of the general purpose event block 0: half status, half enable.
pub const GPE0: u64 = 0x20;
/// Length of the general purpose event block 0 in bytes.
pub const GPE0_LEN: u64 = 16;
/// Global system interrupt of the SCI: level, active high.
pub const SCI_GSI: u32 = 9;

const PM1_EN: u64 = 0x02;
const GPE0_EN: u64 = GPE0 + GPE0_LEN / 2;
const GPE0_LAST: u64 = GPE0 + GPE0_LEN - 1;
/// SMI_EN of the ICH9. Firmware that finds APMC_EN set takes SMM for initialised and leaves it alone.
const SMI_EN: u64 = 0x30;
const APMC_EN: u8 = 0x20;

// PM1 status and enable bits (ACPI tables 4.11 and 4.12).
const TMR: u16 = 1 << 0;
const GBL: u16 = 1 << 5;
const PWRBTN: u16 = 1 << 8;
const RTC: u16 = 1 << 10;
const ENABLE_BITS: u16 = TMR | GBL | PWRBTN | RTC;

// PM1 control bits (ACPI table 4.13); SLP_TYP and SLP_EN lie in the high byte.
const SCI_EN: u8 = 1 << 0;
const CONTROL_LOW: u8 = 0b0000_0010;
const SLP_EN_HIGH: u8 = 1 << 5;
const SLP_TYP_HIGH: u8 = 0b0001_1100;
/// SLP_TYP of soft-off, as the `\_S5` package of the DSDT says.
pub const SLP_TYP_S5: u8 = 0;

/// Frequency of the power management timer in Hz (ACPI 4.8.3.3).
const PM_TIMER_HZ: u64 = 3_579_545;
const PM_TIMER_MASK: u32 = 0x00ff_ffff;
/// TMR_STS is set whenever bit 23 of the timer changes.
const HALF_WRAP_SHIFT: u32 = 23;

/// The register block at PMBASE.
///
/// Reading the timer takes no lock: firmware and operating systems spin on it.
pub struct PowerManagement {
    regs: Mutex<Regs>,
    sci: Arc<dyn IrqLine>,
    machine: Machine,
    clock: Arc<dyn Clock>,
    alarm: Arc<dyn Alarm>,
}

#[derive(Default)]
struct Regs {
    status: u16,
    enable: u16,
    control: [u8; 2],
    gpe_status: u64,
    gpe_enable: u64,
    /// Half wraps of the timer that TMR_STS already accounts for.
    half_wraps: u64,
    high: bool,
}

impl PowerManagement {
    /// The block after reset. `sci` is the system control interrupt; `alarm` wakes [`Self::timer_expired`].
    pub fn new(
        sci: Arc<dyn IrqLine>,
        machine: Machine,
        clock: Arc<dyn Clock>,
        alarm: Arc<dyn Alarm>,
    ) -> Self {
        let regs = Regs { half_wraps: ticks(clock.as_ref()) >> HALF_WRAP_SHIFT, ..Regs::default() };
        Self { regs: Mutex::new(regs), sci, machine, clock, alarm }
    }

    /// Presses and releases the power button. Returns whether the guest listens: false means that no operating system
    /// has enabled the button, and nothing happens.
    pub fn press_power_button(&self) -> bool {
        let mut regs = self.lock();
        let listens = regs.enable & PWRBTN != 0;
        if listens {
            regs.status |= PWRBTN;
            self.update_sci(&mut regs);
        }
        listens
    }

    /// The clock asks for an interrupt. What sleeps wakes by this bit: Linux has the clock's own interrupt off meanwhile.
    fn clock_interrupts(&self) {
        let mut regs = self.lock();
        regs.status |= RTC;
        self.update_sci(&mut regs);
    }

    /// Raises general purpose event `number` (0 to 63; others do nothing).
    pub fn raise_gpe(&self, number: u8) {
        let mut regs = self.lock();
        regs.gpe_status |= 1u64.checked_shl(number.into()).unwrap_or(0);
        self.update_sci(&mut regs);
    }

    /// To be called when the alarm went off.
    pub fn timer_expired(&self) {
        let mut regs = self.lock();
        self.note_timer(&mut regs);
        self.update_sci(&mut regs);
        self.set_alarm(&regs);
    }

    /// System reset. The timer runs on.
    pub fn reset(&self) {
        let mut regs = self.lock();
        *regs = Regs { high: regs.high, half_wraps: self.half_wraps(), ..Regs::default() };
        self.update_sci(&mut regs);
        self.set_alarm(&regs);
    }

    fn lock(&self) -> MutexGuard<'_, Regs> {
        self.regs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn timer(&self) -> u32 {
        // The low 24 bits are the register.
        (ticks(self.clock.as_ref()) & u64::from(PM_TIMER_MASK)) as u32
    }

    fn half_wraps(&self) -> u64 {
        ticks(self.clock.as_ref()) >> HALF_WRAP_SHIFT
    }

    fn note_timer(&self, regs: &mut Regs) {
        let now = self.half_wraps();
        if now != regs.half_wraps {
            regs.half_wraps = now;
            regs.status |= TMR;
        }
    }

    /// A wake-up is needed only for an interrupt that the guest has not got yet.
    fn set_alarm(&self, regs: &Regs) {
        let wanted = regs.enable & TMR != 0 && regs.status & TMR == 0;
        let next = u128::from(regs.half_wraps + 1) << HALF_WRAP_SHIFT;
        let ns = (next * u128::from(NS_PER_SEC)).div_ceil(u128::from(PM_TIMER_HZ));
        self.alarm.set(if wanted { u64::try_from(ns).ok() } else { None });
    }

    fn update_sci(&self, regs: &mut Regs) {
        let high = regs.status & regs.enable != 0 || regs.gpe_status & regs.gpe_enable != 0;
        if high != regs.high {
            regs.high = high;
            self.sci.set_level(high);
        }
    }

    /// Writes SLP_TYP and SLP_EN, which share the high byte of PM1_CNT. SLP_EN is write-only.
    fn write_sleep(&self, regs: &mut Regs, value: u8) {
        let typ = (value & SLP_TYP_HIGH) >> 2;
        regs.control[1] = value & SLP_TYP_HIGH;
        if value & SLP_EN_HIGH == 0 {
            return;
        }
        if typ == SLP_TYP_S5 {
            self.machine.request(MachineRequest::PowerOff);
        } else {
            crate::log_limited!(debug, "sleep type {typ} is not offered; the guest stays awake");
        }
    }
}

/// The interrupt of the real-time clock on its way through the power management block, which notes it in RTC_STS
/// (Intel 316972, 13.8.3.1).
pub struct ClockLine {
    line: Arc<dyn IrqLine>,
    pm: Arc<PowerManagement>,
}

impl ClockLine {
    /// The wire from the clock to `line`.
    pub fn new(line: Arc<dyn IrqLine>, pm: Arc<PowerManagement>) -> Self {
        Self { line, pm }
    }
}

impl IrqLine for ClockLine {
    fn set_level(&self, high: bool) {
        self.line.set_level(high);
        if high {
            self.pm.clock_interrupts();
        }
    }

    fn pulse(&self) {
        self.line.pulse();
        self.pm.clock_interrupts();
    }
}

/// Ticks of the timer since the clock's start.
fn ticks(clock: &dyn Clock) -> u64 {
    let ticks = u128::from(clock.monotonic_ns()) * u128::from(PM_TIMER_HZ) / u128::from(NS_PER_SEC);
    // Fewer than nanoseconds, so it fits.
    ticks as u64
}

/// Byte `n` (0 is the lowest) of a register.
fn byte(value: u64, n: u64) -> u8 {
    value.to_le_bytes().get(n as usize).copied().unwrap_or(0)
}

/// The bits that a byte written at byte `n` names in a 64-bit register.
fn bits(value: u8, n: u64) -> u64 {
    u64::from(value).checked_shl(n as u32 * 8).unwrap_or(0)
}

impl Regs {
    fn read(&self, offset: u64) -> u8 {
        match offset {
            PM1_EVT..PM1_EN => byte(self.status.into(), offset),
            PM1_EN..PM1_CNT => byte(self.enable.into(), offset - PM1_EN),
            PM1_CNT => self.control[0] | SCI_EN,
            0x05 => self.control[1],
            GPE0..GPE0_EN => byte(self.gpe_status, offset - GPE0),
            GPE0_EN..=GPE0_LAST => byte(self.gpe_enable, offset - GPE0_EN),
            SMI_EN => APMC_EN,
            // Reserved registers of the block, among them SMI_STS and the TCO timer's.
            _ => 0,
        }
    }
}

impl BusDevice for PowerManagement {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let timer = self.timer();
        if offset == PM_TMR && data.len() == 4 {
            data.copy_from_slice(&timer.to_le_bytes());
            return;
        }
        let mut regs = self.lock();
        self.note_timer(&mut regs);
        self.update_sci(&mut regs);
        read_bytes(offset, data, |at| match at {
            0x08..=0x0b => byte(timer.into(), at - PM_TMR),
            PM_LEN.. => 0xff,
            _ => regs.read(at),
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut regs = self.lock();
        self.note_timer(&mut regs);
        write_bytes(offset, data, |at, value| match at {
            // Status bits are cleared by writing ones.
            PM1_EVT..PM1_EN => regs.status &= !(bits(value, at) as u16),
            PM1_EN..PM1_CNT => {
                let n = at - PM1_EN;
                let kept = regs.enable & !(bits(0xff, n) as u16);
                regs.enable = kept | bits(value, n) as u16 & ENABLE_BITS;
            }
            PM1_CNT => regs.control[0] = value & CONTROL_LOW,
            0x05 => self.write_sleep(&mut regs, value),
            GPE0..GPE0_EN => regs.gpe_status &= !bits(value, at - GPE0),
            GPE0_EN..=GPE0_LAST => {
                let n = at - GPE0_EN;
                regs.gpe_enable = regs.gpe_enable & !bits(0xff, n) | bits(value, n);
            }
            _ => {}
        });
        self.update_sci(&mut regs);
        self.set_alarm(&regs);
    }

    fn name(&self) -> &str {
        "acpi-pm"
    }
}

#[cfg(test)]
mod tests {
    use super::super::fakes::{FakeAlarm, FakeClock, FakeLine, FakeMachine};
    use super::*;

    struct Bench {
        pm: PowerManagement,
        sci: Arc<FakeLine>,
        machine: Arc<FakeMachine>,
        clock: Arc<FakeClock>,
        alarm: Arc<FakeAlarm>,
    }

    fn bench() -> Bench {
        let (sci, machine) = (FakeLine::new(), FakeMachine::new());
        let (clock, alarm) = (FakeClock::at_unix_secs(0), FakeAlarm::new());
        let pm = PowerManagement::new(sci.clone(), machine.clone(), clock.clone(), alarm.clone());
        Bench { pm, sci, machine, clock, alarm }
    }

    impl Bench {
        fn inw(&self, offset: u64) -> u16 {
            let mut data = [0; 2];
            self.pm.read(offset, &mut data);
            u16::from_le_bytes(data)
        }
        fn inl(&self, offset: u64) -> u32 {
            let mut data = [0; 4];
            self.pm.read(offset, &mut data);
            u32::from_le_bytes(data)
        }
        fn outw(&self, offset: u64, value: u16) {
            self.pm.write(offset, &value.to_le_bytes());
        }
    }

    #[test]
    fn registers_at_reset() {
        let b = bench();
        assert_eq!((b.inw(0), b.inw(2), b.inw(4)), (0, 0, 1), "SCI_EN is always set");
        assert_eq!(b.inl(0x30), 0x20, "SMM looks initialised");
        assert_eq!((b.inl(0x20), b.inl(0x28), b.inl(0x34)), (0, 0, 0));
    }

    #[test]
    fn the_clock_wakes_who_listens() {
        let b = bench();
        let irq8 = FakeLine::new();
        let Bench { pm, sci, machine: _, .. } = b;
        let pm = Arc::new(pm);
        let line = ClockLine::new(irq8.clone(), pm.clone());
        let status = || {
            let mut data = [0; 2];
            pm.read(0, &mut data);
            u16::from_le_bytes(data)
        };
        line.set_level(true);
        assert_eq!((irq8.is_high(), sci.is_high(), status()), (true, false, 0x0400), "RTC_EN is off");
        line.set_level(false);
        assert_eq!((irq8.is_high(), status()), (false, 0x0400), "until the guest takes note");
        pm.write(0, &0x0400u16.to_le_bytes());
        pm.write(2, &0x0400u16.to_le_bytes());
        assert!(!sci.is_high());
        line.set_level(true);
        assert_eq!((sci.is_high(), status()), (true, 0x0400));
        pm.write(0, &0x0400u16.to_le_bytes());
        assert!(!sci.is_high());
    }

    #[test]
    fn timer_counts_at_its_frequency_in_24_bits() {
        let b = bench();
        assert_eq!(b.inl(8), 0);
        b.clock.advance_ns(1_000_000_000);
        assert_eq!(b.inl(8), 3_579_545);
        b.clock.advance_ns(4_000_000_000);
        assert_eq!(b.inl(8), (5 * 3_579_545) % (1 << 24));
        assert_eq!(b.inw(8), (((5 * 3_579_545) % (1 << 24)) & 0xffff) as u16, "narrow reads work too");
        b.pm.write(8, &[0; 4]);
        assert_eq!(b.inl(8), (5 * 3_579_545) % (1 << 24), "read-only");
    }

    #[test]
    fn timer_status_follows_bit_23() {
        let b = bench();
        b.outw(2, 0x0001);
        let half_wrap_ns = (1u64 << 23) * 1_000_000_000 / 3_579_545 + 1;
        assert_eq!(b.alarm.deadline(), Some(half_wrap_ns));
        b.clock.advance_ns(half_wrap_ns);
        b.pm.timer_expired();
        assert!(b.sci.is_high());
        assert_eq!(b.inw(0), 0x0001);
        assert_eq!(b.alarm.deadline(), None, "no wake-ups until the guest takes note");
        b.outw(0, 0x0001);
        assert!(!b.sci.is_high());
        assert_eq!(b.inw(0), 0);
        assert!(b.alarm.deadline().unwrap() > half_wrap_ns);
        b.outw(2, 0);
        assert_eq!(b.alarm.deadline(), None);
    }

    #[test]
    fn power_button_reaches_only_a_guest_that_enabled_it() {
        let b = bench();
        assert!(!b.pm.press_power_button());
        assert_eq!(b.inw(0), 0);
        b.outw(2, 0x0100);
        assert_eq!(b.inw(2), 0x0100);
        assert!(b.pm.press_power_button() && b.sci.is_high());
        assert_eq!(b.inw(0), 0x0100);
        b.outw(0, 0x0020);
        assert!(b.sci.is_high(), "another bit was cleared");
        b.outw(0, 0x0100);
        assert!(!b.sci.is_high());
    }

    #[test]
    fn soft_off_needs_slp_en_and_type_0() {
        let b = bench();
        b.outw(4, 0x0001);
        b.outw(4, 0x2401);
        assert_eq!(b.machine.take(), [], "S3 is not offered");
        assert_eq!(b.inw(4), 0x0401, "SLP_EN reads as zero");
        b.outw(4, 0x2000);
        assert_eq!(b.machine.take(), [MachineRequest::PowerOff]);
        assert_eq!(b.inw(4), 0x0001);
        b.pm.write(5, &[0x20]);
        assert_eq!(b.machine.take(), [MachineRequest::PowerOff], "a byte write is enough");
    }

    #[test]
    fn general_purpose_events_drive_the_sci() {
        let b = bench();
        b.pm.raise_gpe(9);
        assert_eq!(b.inl(0x20), 0x200);
        assert!(!b.sci.is_high());
        b.pm.write(0x29, &[0x02]);
        assert!(b.sci.is_high());
        b.pm.write(0x20, &[0x00, 0x02]);
        assert!(!b.sci.is_high());
        assert_eq!((b.inl(0x20), b.inl(0x28)), (0, 0x200));
        b.pm.raise_gpe(64);
        assert_eq!((b.inl(0x20), b.inl(0x24)), (0, 0));
    }

    #[test]
    fn reset_clears_all_and_lowers_the_sci() {
        let b = bench();
        b.outw(2, 0x0521);
        b.pm.press_power_button();
        b.pm.reset();
        assert!(!b.sci.is_high());
        assert_eq!((b.inw(0), b.inw(2), b.inw(4)), (0, 0, 1));
        assert_eq!(b.alarm.deadline(), None);
    }

    #[test]
    fn any_access_is_survived() {
        let b = bench();
        for offset in (0..130).chain([u64::MAX - 3]) {
            for width in 1..=8 {
                b.pm.write(offset, &[0xff; 8][..width]);
                b.pm.read(offset, &mut [0; 8][..width]);
            }
        }
        assert_eq!(b.inw(2), 0x0521, "only defined enable bits exist");
    }
}
