//! Registers that a guest reads without leaving its processor: a page of host memory that the hypervisor shows it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, VolatileMemory};

/// The first 4 KiB of a window, for reading. The device keeps it like its registers, reading which has no effect.
#[derive(Debug)]
pub struct RegisterPage {
    memory: MmapRegion,
}

impl RegisterPage {
    /// Bytes of the page.
    pub const LEN: u64 = 0x1000;

    /// A page of zeros; fails when the host has no memory.
    pub fn new() -> io::Result<Self> {
        let memory = MmapRegion::new(Self::LEN as usize).map_err(io::Error::other)?;
        Ok(Self { memory })
    }

    /// The dword at `offset` is `value` from now on. Does nothing beyond the page, or where no dword begins.
    pub fn set(&self, offset: u16, value: u32) {
        let _ = self.memory.as_volatile_slice().store(value.to_le(), offset.into(), Ordering::Release);
    }

    /// The dword at `offset`, as the guest reads it; 0 beyond the page.
    pub fn get(&self, offset: u16) -> u32 {
        let value = self.memory.as_volatile_slice().load(offset.into(), Ordering::Acquire);
        u32::from_le(value.unwrap_or(0))
    }

    /// Where it is in this process. It stays there as long as it lives.
    pub fn host_address(&self) -> usize {
        self.memory.as_ptr().addr()
    }
}

/// Shows pages to the guest: a hypervisor, or a fake of it.
pub trait PageWindow: Send + Sync {
    /// From now on reads at `base` (a multiple of the page's length) and after are answered from `page`; writes go
    /// where they did. Without it they reach the device, which answers the same.
    fn show(&self, base: u64, page: &Arc<RegisterPage>) -> io::Result<()>;
    /// No longer at `base`.
    fn hide(&self, base: u64);
}
