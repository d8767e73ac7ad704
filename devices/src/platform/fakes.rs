//! What the machine would give the devices, recorded, for the tests of this module.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::clock::{Alarm, Clock};
use super::sink::Sink;
use super::{MachineControl, MachineRequest};
use crate::bus::BusDevice;
use crate::irq::IrqLine;

/// An interrupt line: its level, and how often it rose.
#[derive(Default)]
pub(super) struct FakeLine {
    level: AtomicBool,
    rises: AtomicU32,
}

impl FakeLine {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }
    pub(super) fn is_high(&self) -> bool {
        self.level.load(Ordering::SeqCst)
    }
    /// Rising edges since the last call.
    pub(super) fn take_rises(&self) -> u32 {
        self.rises.swap(0, Ordering::SeqCst)
    }
}

impl IrqLine for FakeLine {
    fn set_level(&self, high: bool) {
        if !self.level.swap(high, Ordering::SeqCst) && high {
            self.rises.fetch_add(1, Ordering::SeqCst);
        }
    }
    fn pulse(&self) {
        self.set_level(false);
        self.set_level(true);
        self.set_level(false);
    }
}

/// Notes what devices ask of the machine.
#[derive(Default)]
pub(super) struct FakeMachine(Mutex<Vec<MachineRequest>>);

impl FakeMachine {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }
    pub(super) fn take(&self) -> Vec<MachineRequest> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl MachineControl for FakeMachine {
    fn request(&self, what: MachineRequest) {
        self.0.lock().unwrap().push(what);
    }
}

/// A clock that stands still until it is told to go on: (monotonic ns, Unix ns).
pub(super) struct FakeClock(Mutex<(u64, i128)>);

impl FakeClock {
    pub(super) fn at_unix_secs(secs: i64) -> Arc<Self> {
        Arc::new(Self(Mutex::new((0, i128::from(secs) * 1_000_000_000))))
    }
    pub(super) fn advance_ns(&self, ns: u64) {
        let mut now = self.0.lock().unwrap();
        now.0 += ns;
        now.1 += i128::from(ns);
    }
    /// Someone sets the host's clock.
    pub(super) fn step_unix_secs(&self, secs: i64) {
        self.0.lock().unwrap().1 += i128::from(secs) * 1_000_000_000;
    }
}

impl Clock for FakeClock {
    fn monotonic_ns(&self) -> u64 {
        self.0.lock().unwrap().0
    }
    fn unix_ns(&self) -> i128 {
        self.0.lock().unwrap().1
    }
}

/// Remembers the deadline.
#[derive(Default)]
pub(super) struct FakeAlarm(Mutex<Option<u64>>);

impl FakeAlarm {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }
    pub(super) fn deadline(&self) -> Option<u64> {
        *self.0.lock().unwrap()
    }
}

impl Alarm for FakeAlarm {
    fn set(&self, deadline_ns: Option<u64>) {
        *self.0.lock().unwrap() = deadline_ns;
    }
}

/// Keeps what was printed.
#[derive(Default)]
pub(super) struct FakeSink(Mutex<Vec<u8>>);

impl FakeSink {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Sink for FakeSink {
    fn put(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

/// Byte accesses, as the guest's `in` and `out` make them.
pub(super) fn inb(device: &dyn BusDevice, offset: u64) -> u8 {
    let mut byte = [0x5a];
    device.read(offset, &mut byte);
    byte[0]
}

/// See [`inb`].
pub(super) fn outb(device: &dyn BusDevice, offset: u64, value: u8) {
    device.write(offset, &[value]);
}
