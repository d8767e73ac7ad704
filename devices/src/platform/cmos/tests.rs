use super::super::fakes::{FakeAlarm, FakeClock, FakeLine, inb, outb};
use super::*;

/// 2024-02-29 23:59:57 UTC, a Thursday.
const START: i64 = 1_709_251_197;
const SEC: u64 = 1_000_000_000;

struct Bench {
    rtc: Cmos,
    line: Arc<FakeLine>,
    clock: Arc<FakeClock>,
    alarm: Arc<FakeAlarm>,
}

fn bench_at(utc_offset_secs: i32) -> Bench {
    let (line, clock, alarm) = (FakeLine::new(), FakeClock::at_unix_secs(START), FakeAlarm::new());
    let config = CmosConfig {
        ram_below_4g: 2 << 30,
        ram_above_4g: 0,
        vcpus: 4,
        boot_order: [BootDevice::HardDisk, BootDevice::CdRom, BootDevice::None],
        utc_offset_secs,
    };
    let rtc = Cmos::new(&config, line.clone(), clock.clone(), alarm.clone());
    Bench { rtc, line, clock, alarm }
}

fn bench() -> Bench {
    bench_at(0)
}

impl Bench {
    fn get(&self, index: u8) -> u8 {
        outb(&self.rtc, 0, index);
        inb(&self.rtc, 1)
    }
    fn set(&self, index: u8, value: u8) {
        outb(&self.rtc, 0, index);
        outb(&self.rtc, 1, value);
    }
    /// Century, year, month, day, weekday, hours, minutes, seconds.
    fn time(&self) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| self.get(index))
    }
    /// Lets time pass, with the wake-ups that the device asked for.
    fn run(&self, ns: u64) {
        let end = self.clock.monotonic_ns() + ns;
        while let Some(at) = self.alarm.deadline().filter(|at| *at <= end) {
            self.clock.advance_ns(at.saturating_sub(self.clock.monotonic_ns()));
            self.rtc.timer_expired();
        }
        self.clock.advance_ns(end - self.clock.monotonic_ns());
    }
}

#[test]
fn shows_the_time_in_bcd_and_rolls_over_a_leap_day() {
    let b = bench();
    assert_eq!(b.time(), [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x59, 0x57]);
    b.clock.advance_ns(3 * SEC);
    assert_eq!(b.time(), [0x20, 0x24, 0x03, 0x01, 0x06, 0x00, 0x00, 0x00]);
    assert_eq!((b.get(0x0a), b.get(0x0b), b.get(0x0d)), (0x26, 0x02, 0x80));
}

#[test]
fn local_time_is_ahead_of_utc() {
    assert_eq!(bench_at(3600).time(), [0x20, 0x24, 0x03, 0x01, 0x06, 0x00, 0x59, 0x57]);
    assert_eq!(bench_at(-5 * 3600).time(), [0x20, 0x24, 0x02, 0x29, 0x05, 0x18, 0x59, 0x57]);
}

#[test]
fn binary_and_twelve_hour_modes() {
    let b = bench();
    b.set(0x0b, 0x06);
    assert_eq!(b.time(), [20, 24, 2, 29, 5, 23, 59, 57]);
    b.set(0x0b, 0x00);
    assert_eq!(b.get(4), 0x91, "11 p.m.");
    b.set(0x0b, 0x04);
    assert_eq!(b.get(4), 0x8b);
}

#[test]
fn update_in_progress_shows_just_before_the_second() {
    let b = bench();
    assert_eq!(b.get(0x0a) & 0x80, 0);
    b.clock.advance_ns(SEC - 200_000);
    assert_eq!(b.get(0x0a) & 0x80, 0x80);
    b.clock.advance_ns(200_000);
    assert_eq!(b.get(0x0a) & 0x80, 0);
    b.set(0x0b, 0x82);
    b.clock.advance_ns(SEC - 1);
    assert_eq!(b.get(0x0a) & 0x80, 0, "no updates while SET is set");
}

#[test]
fn setting_the_time_with_set_keeps_an_offset() {
    let b = bench();
    b.set(0x0b, 0x82);
    b.clock.advance_ns(10 * SEC);
    assert_eq!(b.get(0), 0x57, "stands still");
    for (index, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58)] {
        b.set(index, value);
        assert_eq!(b.get(index), value);
    }
    b.set(0x0b, 0x02);
    assert_eq!(b.time(), [0x19, 0x99, 0x12, 0x31, 0x06, 0x23, 0x59, 0x58]);
    b.clock.advance_ns(3 * SEC);
    assert_eq!(b.time(), [0x20, 0x00, 0x01, 0x01, 0x07, 0x00, 0x00, 0x01]);
    b.clock.step_unix_secs(60);
    assert_eq!(b.get(2), 0x01, "it follows the host's clock");
}

#[test]
fn releasing_the_divider_starts_half_a_second_before_the_update() {
    // The sequence of Linux mc146818_set_time.
    let b = bench();
    b.clock.advance_ns(SEC / 10);
    b.set(0x0b, 0x82);
    b.set(0x0a, 0x76);
    b.set(0, 0x10);
    b.set(0x0b, 0x02);
    b.clock.advance_ns(5 * SEC);
    assert_eq!(b.get(0), 0x10, "the divider is held");
    b.set(0x0a, 0x26);
    b.clock.advance_ns(SEC / 2 - 1);
    assert_eq!(b.get(0), 0x10);
    b.clock.advance_ns(1);
    assert_eq!(b.get(0), 0x11);
}

#[test]
fn a_write_without_set_takes_effect_and_nonsense_does_not() {
    let b = bench();
    b.set(2, 0x30);
    assert_eq!(b.time()[5..], [0x23, 0x30, 0x57]);
    b.set(8, 0x13);
    b.set(2, 0x7a);
    assert_eq!(b.time(), [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x30, 0x57]);
}

#[test]
fn flags_are_set_without_interrupts_and_cleared_by_reading() {
    let b = bench();
    assert_eq!(b.get(0x0c), 0);
    b.clock.advance_ns(SEC);
    assert_eq!(b.get(0x0c), 0x50, "update and periodic, no IRQF");
    assert_eq!(b.get(0x0c), 0);
    assert!(!b.line.is_high());
    assert_eq!(b.alarm.deadline(), None, "no wake-ups without interrupts");
}

#[test]
fn update_interrupt_comes_each_second() {
    let b = bench();
    b.clock.advance_ns(SEC / 4);
    b.set(0x0b, 0x12);
    b.run(SEC / 2);
    assert!(!b.line.is_high());
    b.run(SEC / 4);
    assert!(b.line.is_high());
    assert_eq!(b.alarm.deadline(), None, "one pending interrupt is enough");
    assert_eq!(b.get(0x0c) & 0xb0, 0x90);
    assert!(!b.line.is_high());
    b.run(SEC);
    assert!(b.line.is_high());
    b.set(0x0b, 0x92);
    assert_eq!(b.get(0x0b), 0x82, "SET takes UIE away");
    assert!(!b.line.is_high());
}

#[test]
fn periodic_interrupt_runs_at_its_rate() {
    let b = bench();
    for (rate, hz) in [(6, 1024), (15, 2), (3, 8192), (1, 256), (2, 128)] {
        b.set(0x0a, 0x20 | rate);
        b.get(0x0c);
        b.set(0x0b, 0x42);
        b.line.take_rises();
        let mut interrupts = 0;
        let end = b.clock.monotonic_ns() + SEC;
        while let Some(at) = b.alarm.deadline().filter(|at| *at <= end) {
            b.clock.advance_ns(at - b.clock.monotonic_ns());
            b.rtc.timer_expired();
            assert_eq!(b.get(0x0c) & 0xc0, 0xc0);
            interrupts += 1;
        }
        assert_eq!(interrupts, hz, "rate {rate}");
        assert_eq!(b.line.take_rises(), hz);
        b.set(0x0b, 0x02);
    }
    b.set(0x0a, 0x20);
    b.set(0x0b, 0x42);
    assert_eq!(b.alarm.deadline(), None, "rate 0 is off");
}

#[test]
fn alarm_interrupt_at_its_time_and_with_wildcards() {
    let b = bench();
    b.set(5, 0x00);
    b.set(3, 0x00);
    b.set(1, 0x30);
    b.set(0x0b, 0x22);
    b.run(32 * SEC);
    assert!(!b.line.is_high());
    b.run(SEC);
    assert!(b.line.is_high());
    assert_eq!(b.get(0x0c) & 0xa0, 0xa0);
    for index in [5, 3, 1] {
        b.set(index, 0xff);
    }
    b.run(SEC);
    assert!(b.line.is_high(), "every second");
}

#[test]
fn alarm_follows_when_the_host_clock_is_set() {
    let b = bench();
    b.set(5, 0x06);
    b.set(3, 0x00);
    b.set(1, 0x00);
    b.set(0x0b, 0x22);
    b.clock.step_unix_secs(6 * 3600);
    b.run(11 * SEC);
    assert!(b.line.is_high());
}

#[test]
fn reset_keeps_time_and_memory_but_no_interrupts() {
    let b = bench();
    b.set(2, 0x30);
    b.set(0x0f, 0xfe);
    b.set(0x50, 0x77);
    b.set(0x0b, 0x7a);
    b.run(SEC);
    assert!(b.line.is_high());
    b.rtc.reset();
    assert!(!b.line.is_high());
    assert_eq!((b.get(0x0b), b.get(0x0c)), (0x02, 0));
    assert_eq!((b.get(2), b.get(0x0f), b.get(0x50)), (0x30, 0xfe, 0x77));
    assert_eq!(b.alarm.deadline(), None);
}

#[test]
fn ports_as_a_pc_has_them() {
    let b = bench();
    b.rtc.write(0, &[0x80 | 0x0f, 0x0a]);
    assert_eq!(b.get(0x0f), 0x0a, "one word write; bit 7 of the index is the NMI mask");
    assert_eq!(inb(&b.rtc, 0), 0xff);
    assert_eq!(b.get(0x5f), 3, "vCPUs minus one");
    for offset in [0, 1, 2, u64::MAX] {
        for width in 1..=8 {
            b.rtc.write(offset, &[0xff; 8][..width]);
            b.rtc.read(offset, &mut [0; 8][..width]);
        }
    }
}

#[test]
fn every_byte_in_every_register_is_survived() {
    let b = bench();
    for index in 0..128 {
        for value in 0..=255 {
            b.set(index, value);
            b.clock.advance_ns(SEC / 3);
            b.get(index);
            b.rtc.timer_expired();
        }
    }
}
