//! Where the accesses of vCPUs go.

use std::sync::Arc;

use devices::bus::Bus;
use devices::mem::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::trace;

/// The two address spaces of devices, and RAM for looking at.
pub struct Buses {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub memory: Arc<Bus>,
    /// Guest RAM.
    pub ram: Arc<GuestRam>,
}

impl Buses {
    /// A read of 1, 2 or 4 bytes from a port.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(u64::from(port), data);
        if trace::is_on() {
            trace::port(&self.ports, "in", port, data);
        }
    }

    /// A write of 1, 2 or 4 bytes to a port.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        if trace::is_on() {
            trace::port(&self.ports, "out", port, data);
        }
        self.ports.write(u64::from(port), data);
    }

    /// A read of 1 to 8 bytes from memory that is not RAM.
    pub fn memory_read(&self, addr: u64, data: &mut [u8]) {
        self.memory.read(addr, data);
        if trace::is_on() {
            trace::memory(&self.memory, "rd", addr, data);
        }
    }

    /// A write of 1 to 8 bytes to memory that is not RAM.
    pub fn memory_write(&self, addr: u64, data: &[u8]) {
        if trace::is_on() {
            trace::memory(&self.memory, "wr", addr, data);
        }
        self.memory.write(addr, data);
    }

    /// Whether there is RAM for the guest, whether the host has memory for it or not.
    pub fn is_ram(&self, addr: u64) -> bool {
        self.ram.address_in_range(GuestAddress(addr))
    }

    /// Copies RAM for a report; returns whether there is RAM.
    pub fn peek(&self, addr: u64, into: &mut [u8]) -> bool {
        self.ram.read_slice(into, GuestAddress(addr)).is_ok()
    }
}
