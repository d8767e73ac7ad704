//! What the kernel is told: the zero page (boot protocol) or the start info (PVH).

use devices::mem::GuestRam;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::e820::E820Map;
use crate::layout::{self, AddrRange, CMDLINE, PVH_INFO, ZERO_PAGE};

/// `type_of_loader`: a loader without an assigned number.
const LOADER_UNKNOWN: u8 = 0xff;
/// Version of the start info with the memory map.
const START_INFO_VERSION: u32 = 1;
/// The module list follows the start info, the memory map follows the list.
const PVH_MODULES: u64 = PVH_INFO + 0x40;
const PVH_MEMMAP: u64 = PVH_INFO + 0x80;

/// Facts both forms carry.
pub(super) struct Given<'a> {
    pub(super) map: &'a E820Map,
    pub(super) initrd: Option<AddrRange>,
    pub(super) rsdp: u64,
}

impl Given<'_> {
    /// Writes `boot_params` with `header` completed as the boot protocol demands of a loader.
    pub(super) fn write_zero_page(
        &self,
        ram: &GuestRam,
        header: &setup_header,
    ) -> Result<(), GuestMemoryError> {
        let mut params = boot_params { hdr: *header, acpi_rsdp_addr: self.rsdp, ..Default::default() };
        params.hdr.type_of_loader = LOADER_UNKNOWN;
        params.hdr.cmd_line_ptr = CMDLINE as u32;
        params.hdr.setup_data = 0;
        // Both fit: the initrd ends below 4 GiB.
        let initrd = self.initrd.unwrap_or(AddrRange { base: 0, size: 0 });
        params.hdr.ramdisk_image = initrd.base as u32;
        params.hdr.ramdisk_size = initrd.size as u32;

        let mut table = params.e820_table;
        for (slot, entry) in table.iter_mut().zip(self.map.entries()) {
            *slot =
                boot_e820_entry { addr: entry.range.base, size: entry.range.size, r#type: entry.kind as u32 };
        }
        params.e820_entries = self.map.entries().len().min(table.len()) as u8;
        params.e820_table = table;
        ram.write_obj(params, GuestAddress(ZERO_PAGE))
    }

    /// Writes `hvm_start_info` with its module list and memory map.
    pub(super) fn write_start_info(&self, ram: &GuestRam) -> Result<(), GuestMemoryError> {
        let entry_size = size_of::<hvm_memmap_table_entry>() as u64;
        let room = (layout::PVH_INFO_END - PVH_MEMMAP) / entry_size;
        let entries = self.map.entries().iter().take(room as usize);
        let info = hvm_start_info {
            magic: XEN_HVM_START_MAGIC_VALUE,
            version: START_INFO_VERSION,
            nr_modules: u32::from(self.initrd.is_some()),
            modlist_paddr: if self.initrd.is_some() { PVH_MODULES } else { 0 },
            cmdline_paddr: CMDLINE,
            rsdp_paddr: self.rsdp,
            memmap_paddr: PVH_MEMMAP,
            memmap_entries: entries.len() as u32,
            ..Default::default()
        };
        ram.write_obj(info, GuestAddress(PVH_INFO))?;
        if let Some(initrd) = self.initrd {
            let module = hvm_modlist_entry { paddr: initrd.base, size: initrd.size, ..Default::default() };
            ram.write_obj(module, GuestAddress(PVH_MODULES))?;
        }
        for (entry, n) in entries.zip(0u64..) {
            let row = hvm_memmap_table_entry {
                addr: entry.range.base,
                size: entry.range.size,
                type_: entry.kind as u32,
                reserved: 0,
            };
            ram.write_obj(row, GuestAddress(PVH_MEMMAP + n * entry_size))?;
        }
        Ok(())
    }
}
