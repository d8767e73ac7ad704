//! Doorbells as ioeventfds.

use std::io;
use std::sync::Arc;

use devices::bus::{Doorbell, Doorbells, Space};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// Attaches doorbells to one VM.
pub struct KvmDoorbells {
    vm: Arc<VmFd>,
}

impl KvmDoorbells {
    /// For the VM of `vm`.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }
}

/// Calls `$vm.$call` with the match value in the width that the doorbell has: KVM takes the width from its type.
macro_rules! with_width {
    ($vm:expr, $call:ident, $bell:expr, $event:expr) => {{
        let addr = match $bell.space {
            Space::Memory => IoEventAddress::Mmio($bell.addr),
            Space::Port => IoEventAddress::Pio($bell.addr),
        };
        match ($bell.width, $bell.value) {
            (1, Some(v)) => $vm.$call($event, &addr, v as u8),
            (2, Some(v)) => $vm.$call($event, &addr, v as u16),
            (4, Some(v)) => $vm.$call($event, &addr, v as u32),
            (8, Some(v)) => $vm.$call($event, &addr, v),
            (0, None) => $vm.$call($event, &addr, NoDatamatch),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such doorbell")),
        }
        .map_err(io::Error::from)
    }};
}

impl Doorbells for KvmDoorbells {
    fn attach(&self, bell: Doorbell, event: &EventFd) -> io::Result<()> {
        with_width!(self.vm, register_ioevent, bell, event)
    }

    fn detach(&self, bell: Doorbell, event: &EventFd) -> io::Result<()> {
        with_width!(self.vm, unregister_ioevent, bell, event)
    }
}
