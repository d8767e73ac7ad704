//! Doorbells: guest writes that signal an event descriptor inside the hypervisor, without waking a vCPU thread.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// Which address space an access goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Guest physical addresses.
    Memory,
    /// I/O ports.
    Port,
}

/// A write that rings: address, width and, where `value` is given, exactly that value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Guest physical address or port of the write.
    pub addr: u64,
    /// Address space of `addr`.
    pub space: Space,
    /// Width of the write in bytes (1, 2, 4 or 8); 0 for any width, which the hypervisor answers fastest.
    pub width: u8,
    /// The value that rings; `None` for any.
    pub value: Option<u64>,
}

/// What turns matching guest writes into signals of an event descriptor (KVM: ioeventfd).
pub trait Doorbells: Send + Sync {
    /// Starts to signal `event` for writes that match. Such writes no longer reach the bus.
    fn attach(&self, bell: Doorbell, event: &EventFd) -> io::Result<()>;
    /// Ends it; the pair must be one that was attached.
    fn detach(&self, bell: Doorbell, event: &EventFd) -> io::Result<()>;
}
