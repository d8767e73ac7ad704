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

use std::sync::Arc;

/// What a device asks of the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineRequest {
    /// Power off: ACPI S5.
    PowerOff,
    /// System reset, and which register asked for it (for the log).
    Reset(&'static str),
}

/// Where such requests go. Called on vCPU threads: takes note and returns at once.
pub trait MachineControl: Send + Sync {
    /// Asks for `what`; the vCPUs stop soon after.
    fn request(&self, what: MachineRequest);
}

/// Shared handle to [`MachineControl`].
pub type Machine = Arc<dyn MachineControl>;

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
