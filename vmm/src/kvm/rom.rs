//! Read-only memory: host memory in a KVM slot that the guest can read and run but not write.

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, VolatileMemory};

use super::ram::RamError;

/// A mapped ROM. Lives as long as the VM: the guest may read it at any time.
pub struct Rom {
    _memory: MmapRegion,
}

/// Gives the VM a ROM of `bytes`, whole pages, at `address` in memory slot `slot`. Writes by the guest come out as
/// accesses to memory that is not RAM.
pub fn map_rom(vm: &VmFd, slot: u32, address: u64, bytes: &[u8]) -> Result<Rom, RamError> {
    let memory = MmapRegion::new(bytes.len())?;
    let copied = memory.as_volatile_slice().write_slice(bytes, 0);
    copied.map_err(|error| RamError::Layout(error.to_string()))?;
    let entry = kvm_userspace_memory_region {
        slot,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: address,
        memory_size: memory.len() as u64,
        userspace_addr: memory.as_ptr().addr() as u64,
    };
    // SAFETY: the memory stays mapped as long as the `Rom`, which the machine holds until its vCPUs are gone.
    #[allow(unsafe_code)]
    let done = unsafe { vm.set_user_memory_region(entry) };
    done.map_err(|e| RamError::Slot { addr: address, len: entry.memory_size, source: e.into() })?;
    Ok(Rom { _memory: memory })
}
