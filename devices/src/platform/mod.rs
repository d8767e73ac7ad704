//! The small devices of a PC board: serial port, clock, keyboard controller, power management.

pub mod clock;
pub mod cmos;
pub mod fw_cfg;
pub mod i8042;

pub mod pm;
pub mod ports;
pub mod serial;
pub mod sink;

#[cfg(test)]
mod fakes;

pub use crate::machine::{Machine, MachineControl, MachineRequest};

/// Answers a read byte by byte: byte-wide devices on an I/O bus see a wide access as one for each port.
fn read_bytes(offset: u64, data: &mut [u8], mut read: impl FnMut(u64) -> u8) {
    let mut port = offset;
    for byte in data {
        *byte = read(port);
        port = port.wrapping_add(1);
    }
}

/// The same for writes, lowest port first.
fn write_bytes(offset: u64, data: &[u8], mut write: impl FnMut(u64, u8)) {
    let mut port = offset;
    for &byte in data {
        write(port, byte);
        port = port.wrapping_add(1);
    }
}
