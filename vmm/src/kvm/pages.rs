//! Pages of registers as read-only memory slots.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::pci::{PageWindow, RegisterPage};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

/// The first memory slot for pages: those of RAM and firmware are fewer.
const FIRST_SLOT: u32 = 64;
/// Pages at most; the smallest number of slots that any KVM has is above 500.
const PAGES_MAX: u32 = 256;

/// Shows pages to the guest of one VM. Reads never exit then; writes exit as where there is no memory, and doorbells ring.
pub struct KvmPages {
    vm: Arc<VmFd>,
    /// The slot of each page that is shown, by address. Holds the pages.
    shown: Mutex<BTreeMap<u64, (u32, Arc<RegisterPage>)>>,
}

impl KvmPages {
    /// For the VM of `vm`.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, shown: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (u32, Arc<RegisterPage>)>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets `slot` to the page, or to nothing when `len` is 0.
    fn set(&self, slot: u32, base: u64, page: &RegisterPage, len: u64) -> io::Result<()> {
        let entry = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: base,
            memory_size: len,
            userspace_addr: page.host_address() as u64,
        };
        // SAFETY: the page stays where it is until it is dropped, which `shown` puts off until the slot is empty, or
        // for ever; the guest only reads it.
        #[allow(unsafe_code)]
        let done = unsafe { self.vm.set_user_memory_region(entry) };
        done.map_err(io::Error::from)
    }
}

impl PageWindow for KvmPages {
    fn show(&self, base: u64, page: &Arc<RegisterPage>) -> io::Result<()> {
        let mut shown = self.lock();
        let free = |slot: &u32| shown.values().all(|(other, _)| other != slot);
        let slot = (FIRST_SLOT..FIRST_SLOT + PAGES_MAX).find(free);
        let slot = slot.ok_or_else(|| io::Error::other("all memory slots for register pages are taken"))?;
        self.set(slot, base, page, RegisterPage::LEN)?;
        shown.insert(base, (slot, page.clone()));
        Ok(())
    }

    fn hide(&self, base: u64) {
        let mut shown = self.lock();
        let Some((slot, page)) = shown.get(&base).cloned() else { return };
        match self.set(slot, base, &page, 0) {
            Ok(()) => drop(shown.remove(&base)),
            Err(error) => devices::log_limited!(error, "KVM keeps the register page at {base:#x}: {error}"),
        }
    }
}

impl Drop for KvmPages {
    /// The VM may be there for longer than the pages.
    fn drop(&mut self) {
        let bases: Vec<u64> = self.lock().keys().copied().collect();
        bases.into_iter().for_each(|base| self.hide(base));
        // What KVM keeps must stay where it is.
        std::mem::take(&mut *self.lock()).into_values().for_each(std::mem::forget);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use boot::RamLayout;
    use kvm_ioctls::VcpuExit;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::kvm::{Backing, Hypervisor, allocate_ram};

    const PAGE: u64 = 0x8000_0000;

    /// Reads the page and writes what it read, over and over. In protected mode with flat segments.
    const CODE: [u8; 12] = [
        0xa1, 0x30, 0x00, 0x00, 0x80, // mov eax, [80000030h]
        0xa3, 0xa0, 0x00, 0x00, 0x80, // mov [800000a0h], eax
        0xeb, 0xf4, // jmp to the start
    ];

    #[test]
    fn reads_stay_in_the_guest_and_writes_leave_it() {
        let vm = Hypervisor::open(Path::new("/dev/kvm")).unwrap().create_vm().unwrap();
        let ram = allocate_ram(&vm, &RamLayout::new(4 << 20).unwrap(), Backing::Anonymous, None).unwrap();
        ram.write_slice(&CODE, GuestAddress(0x1000)).unwrap();
        let page = Arc::new(RegisterPage::new().unwrap());
        let pages = KvmPages::new(vm.clone());
        pages.show(PAGE, &page).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let mut special = vcpu.get_sregs().unwrap();
        special.cr0 |= 1;
        for segment in [&mut special.cs, &mut special.ds] {
            (segment.base, segment.limit, segment.g, segment.db) = (0, u32::MAX, 1, 1);
        }
        vcpu.set_sregs(&special).unwrap();
        let mut registers = vcpu.get_regs().unwrap();
        (registers.rip, registers.rflags) = (0x1000, 2);
        vcpu.set_regs(&registers).unwrap();
        for value in [1, 0x8000_0000_u32] {
            page.set(0x30, value);
            match vcpu.run().unwrap() {
                VcpuExit::MmioWrite(at, data) => {
                    assert_eq!((at, data), (PAGE + 0xa0, &value.to_le_bytes()[..]))
                }
                other => panic!("not the write: {other:?}"),
            }
            assert_eq!(page.get(0xa0), 0, "the guest does not write to it");
        }
        pages.hide(PAGE);
        match vcpu.run().unwrap() {
            VcpuExit::MmioRead(at, _) => assert_eq!(at, PAGE + 0x30),
            other => panic!("not the read: {other:?}"),
        }
        pages.show(PAGE + 0x1000, &page).unwrap();
        pages.show(PAGE, &page).unwrap();
        assert!(pages.show(PAGE, &page).is_err(), "one page at an address");
        drop(pages);
        assert_eq!(Arc::strong_count(&page), 1, "and nobody holds it any more");
    }
}
