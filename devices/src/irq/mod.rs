//! Interrupts as devices raise them. The hypervisor (or a test) implements these traits.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// A wire into the interrupt controllers: one global system interrupt (GSI).
pub trait IrqLine: Send + Sync {
    /// Drives the line. Level-triggered users keep it high until the cause is gone; repeating a level is harmless.
    fn set_level(&self, high: bool);
    /// Gives one edge: low, high, low.
    fn pulse(&self);
}

/// The address and data of a message-signalled interrupt (PCI 3.0, 6.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Message Address, 64 bits.
    pub address: u64,
    /// Message Data.
    pub data: u32,
}

/// One message-signalled interrupt on its way to the guest.
pub trait MsiVector: Send + Sync {
    /// Says where the message goes from now on. Called when the guest programs or unmasks the vector.
    fn route(&self, message: MsiMessage) -> io::Result<()>;
    /// Delivers the message once. Cheap, from any thread. A vector that was never routed delivers nothing.
    fn trigger(&self);
    /// The descriptor whose signal delivers the message, where there is one, for other processes and the kernel.
    fn eventfd(&self) -> Option<&EventFd>;
}

/// Hands out message-signalled interrupts.
pub trait MsiAllocator: Send + Sync {
    /// One more vector; fails when the interrupt routing table is full.
    fn allocate(&self) -> io::Result<Arc<dyn MsiVector>>;
}
