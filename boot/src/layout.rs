//! Every fixed guest physical address of a directly booted machine, and where RAM lies.
//!
//! ```text
//!   0x0000_0500  GDT                        \
//!   0x0000_6000  PVH start info, modules, memory map
//!   0x0000_7000  zero page (boot_params)     > ours until the kernel has read them; ordinary RAM in the map
//!   0x0000_8000  boot stack
//!   0x0000_9000  page tables (6 pages)
//!   0x0002_0000  command line (64 KiB)      /
//!   0x0009_fc00  extended BIOS data area, reserved, empty
//!   0x000a_0000  legacy VGA window: no RAM is announced up to 0x000e_0000
//!   0x000e_0000  BIOS area, reserved: the RSDP, SMBIOS from 0x000f_0000
//!   0x0010_0000  RAM: kernel, ..., initrd, ACPI tables at the very top of low RAM
//!   low RAM top  at most 2 GiB
//!   0xb000_0000  PCI Express configuration space (256 MiB)
//!   0xc000_0000  32-bit PCI window up to 0xfebf_ffff
//!   0xfec0_0000  I/O APIC, ..., local APIC, KVM's own pages
//!   4 GiB        rest of RAM, then the 64-bit PCI window
//! ```

use std::ops::Range;

use thiserror::Error;
use vm_memory::GuestAddress;

/// Global descriptor table of the boot vCPU.
pub const GDT: u64 = 0x500;
/// PVH start info; its module list and memory map follow in the same page.
pub const PVH_INFO: u64 = 0x6000;
/// End (exclusive) of the page that [`PVH_INFO`] starts.
pub const PVH_INFO_END: u64 = 0x7000;
/// Linux `boot_params`, one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer of the boot vCPU; the stack grows down towards [`ZERO_PAGE`]'s end.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Identity page tables for the first 4 GiB: PML4, PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes set aside for the command line with its NUL.
pub const CMDLINE_SIZE: u64 = 0x1_0000;
/// End of usable conventional memory; the kilobyte up to 640 KiB is where a BIOS keeps its data.
pub const EBDA: u64 = 0x9_fc00;
/// Legacy VGA window. Never RAM for the guest.
pub const VGA: AddrRange = AddrRange { base: 0xa_0000, size: 0x2_0000 };
/// BIOS area below 1 MiB, where operating systems search for the RSDP (ACPI 5.2.5.1).
pub const BIOS: AddrRange = AddrRange { base: 0xe_0000, size: 0x2_0000 };
/// Where direct boot puts the RSDP.
pub const RSDP: u64 = BIOS.base;
/// Where direct boot puts the SMBIOS entry point: operating systems search from here to 1 MiB.
pub const SMBIOS: u64 = 0xf_0000;
/// First address a kernel may be loaded to.
pub const HIGH_RAM: u64 = 0x10_0000;
/// RAM below 4 GiB ends here at the latest.
pub const MAX_LOW_TOP: u64 = 2 << 30;
/// Where RAM continues when there is more than [`MAX_LOW_TOP`].
pub const FOUR_GIB: u64 = 4 << 30;
/// PCI Express enhanced configuration space: 256 buses of 1 MiB, where SeaBIOS puts it too.
pub const ECAM: AddrRange = AddrRange { base: 0xb000_0000, size: 0x1000_0000 };
/// 32-bit PCI memory window.
pub const MEM32: AddrRange = AddrRange { base: 0xc000_0000, size: 0xfec0_0000 - 0xc000_0000 };
/// I/O APIC registers.
pub const IO_APIC: u64 = 0xfec0_0000;
/// Root complex register block of the ICH9 (a stub of zeroes).
pub const RCBA: AddrRange = AddrRange { base: 0xfed1_c000, size: 0x4000 };
/// Local APIC registers.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// KVM's identity-map page (for `KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// KVM's three task-state pages (for `KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xfeff_d000;
/// Both of KVM's areas together.
pub const KVM_PAGES: AddrRange = AddrRange { base: KVM_IDENTITY_MAP, size: 0x4000 };
/// Least guest RAM direct boot accepts.
pub const MIN_RAM: u64 = 4 << 20;

/// A range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddrRange {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl AddrRange {
    /// The range from `base` up to, not including, `end`; empty when `end` is not above `base`.
    pub const fn new(base: u64, end: u64) -> Self {
        Self { base, size: end.saturating_sub(base) }
    }

    /// First address after the range.
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }

    /// Whether `address` lies in the range.
    pub const fn contains(&self, address: u64) -> bool {
        address >= self.base && address < self.end()
    }

    /// The same range in the standard library's form.
    pub const fn as_range(&self) -> Range<u64> {
        self.base..self.end()
    }
}

/// A RAM size this machine cannot have.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// Too small for any kernel.
    #[error("memory of {0} bytes is too small: give the machine at least 4 MiB")]
    TooSmall(u64),
    /// Not whole pages.
    #[error("memory of {0} bytes is not a multiple of 4096: round it to a whole number of MiB")]
    Unaligned(u64),
    /// More than the address space holds.
    #[error("memory of {0} bytes is more than a 52-bit physical address space holds: give the machine less")]
    TooLarge(u64),
    /// Its end is beyond what the processor addresses.
    #[error(
        "memory reaches to {end:#x}, and this host's processor maps {bits} address bits for guests: give the machine at \
         most {most} MiB"
    )]
    Unreachable {
        /// First address after all RAM.
        end: u64,
        /// Bits of a guest's physical address.
        bits: u8,
        /// The most that there can be, in MiB.
        most: u64,
    },
}

/// Where guest RAM lies: from 0 to [`RamLayout::low_top`], the rest from 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamLayout {
    low: u64,
    high: u64,
}

impl RamLayout {
    /// Splits `bytes` of RAM: up to 2 GiB below 4 GiB, the rest from 4 GiB.
    ///
    /// # Errors
    /// When `bytes` is not page-aligned, below 4 MiB, or beyond 52 address bits.
    pub fn new(bytes: u64) -> Result<Self, LayoutError> {
        if bytes < MIN_RAM {
            return Err(LayoutError::TooSmall(bytes));
        }
        if bytes > (1 << 52) - FOUR_GIB {
            return Err(LayoutError::TooLarge(bytes));
        }
        if !bytes.is_multiple_of(4096) {
            return Err(LayoutError::Unaligned(bytes));
        }
        let low = bytes.min(MAX_LOW_TOP);
        Ok(Self { low, high: bytes - low })
    }

    /// Whether a processor with `bits` physical address bits reaches all of it.
    ///
    /// # Errors
    /// When it does not. The guest could not map what is beyond, and would find out by a fault.
    pub fn within(&self, bits: u8) -> Result<(), LayoutError> {
        let top = 1u64 << bits.clamp(32, 52);
        if self.high == 0 || self.end() <= top {
            return Ok(());
        }
        let most = (MAX_LOW_TOP + top - FOUR_GIB) >> 20;
        Err(LayoutError::Unreachable { end: self.end(), bits, most })
    }

    /// All RAM in bytes.
    pub fn total(&self) -> u64 {
        self.low + self.high
    }

    /// First address after low RAM.
    pub fn low_top(&self) -> u64 {
        self.low
    }

    /// RAM from 4 GiB, when there is any.
    pub fn high(&self) -> Option<AddrRange> {
        (self.high != 0).then_some(AddrRange { base: FOUR_GIB, size: self.high })
    }

    /// First address after all RAM, never below 4 GiB.
    pub fn end(&self) -> u64 {
        FOUR_GIB + self.high
    }

    /// The regions to map, in address order: low RAM as one region (the legacy holes included: cut
    /// [`VGA`] out of the memory slot if a VGA device claims it), then high RAM.
    pub fn regions(&self) -> Vec<(GuestAddress, usize)> {
        let mut regions = vec![(GuestAddress(0), self.low as usize)];
        if let Some(high) = self.high() {
            regions.push((GuestAddress(high.base), high.size as usize));
        }
        regions
    }

    /// The 64-bit PCI window for a processor with `phys_bits` physical address bits: the top eighth of the
    /// address space like OVMF, or what lies above RAM when RAM reaches into that. `None` when nothing is
    /// left.
    pub fn mem64_window(&self, phys_bits: u8) -> Option<AddrRange> {
        const ALIGN: u64 = 1 << 30;
        let top = 1u64 << phys_bits.clamp(32, 52);
        let base = (top - top / 8).max(self.end().next_multiple_of(ALIGN));
        (base < top).then_some(AddrRange::new(base, top))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_splits_at_two_gib() {
        let small = RamLayout::new(512 << 20).unwrap();
        assert_eq!((small.low_top(), small.high(), small.end()), (0x2000_0000, None, 0x1_0000_0000));
        assert_eq!(small.regions(), [(GuestAddress(0), 0x2000_0000)]);

        let exact = RamLayout::new(2 * GIB).unwrap();
        assert_eq!((exact.low_top(), exact.high()), (0x8000_0000, None));

        let big = RamLayout::new(6 * GIB).unwrap();
        assert_eq!(big.low_top(), 0x8000_0000);
        assert_eq!(big.high(), Some(AddrRange { base: 0x1_0000_0000, size: 0x1_0000_0000 }));
        assert_eq!(big.regions()[1], (GuestAddress(0x1_0000_0000), 0x1_0000_0000));
        assert_eq!(big.total(), 6 * GIB);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert_eq!(RamLayout::new(1 << 20), Err(LayoutError::TooSmall(1 << 20)));
        assert_eq!(RamLayout::new((64 << 20) + 512), Err(LayoutError::Unaligned((64 << 20) + 512)));
        assert_eq!(RamLayout::new(u64::MAX), Err(LayoutError::TooLarge(u64::MAX)));
    }

    #[test]
    fn memory_beyond_the_processor_is_refused() {
        let most = RamLayout::new(62 * GIB).unwrap();
        assert_eq!(most.within(36), Ok(()));
        let error = RamLayout::new(62 * GIB + 4096).unwrap().within(36).unwrap_err();
        assert_eq!(
            error.to_string(),
            "memory reaches to 0x1000001000, and this host's processor maps 36 address bits for guests: \
             give the machine at most 63488 MiB"
        );
        assert_eq!(RamLayout::new(2 * GIB).unwrap().within(32), Ok(()));
        assert!(RamLayout::new(3 * GIB).unwrap().within(32).is_err());
    }

    #[test]
    fn pci_windows_follow_the_map() {
        assert_eq!(MEM32.end(), 0xfec0_0000);
        assert_eq!(ECAM.end(), MEM32.base);
        assert_eq!(KVM_PAGES.end(), 0xff00_0000);
        let ram = RamLayout::new(GIB).unwrap();
        assert_eq!(ram.mem64_window(40), Some(AddrRange::new(0xe0_0000_0000, 0x100_0000_0000)));
        // RAM reaches into the top eighth: the window starts above it.
        let ram = RamLayout::new(62 * GIB).unwrap();
        assert_eq!(ram.mem64_window(36), None);
        let ram = RamLayout::new(60 * GIB + 4096).unwrap();
        assert_eq!(ram.mem64_window(36), Some(AddrRange::new(63 * GIB, 64 * GIB)));
    }

    #[test]
    fn low_memory_structures_do_not_overlap() {
        let areas = [
            AddrRange::new(GDT, GDT + 0x30),
            AddrRange::new(PVH_INFO, PVH_INFO_END),
            AddrRange::new(ZERO_PAGE, ZERO_PAGE + 4096),
            AddrRange::new(0x8000, BOOT_STACK + 0x10),
            AddrRange::new(PAGE_TABLES, PAGE_TABLES + 6 * 4096),
            AddrRange::new(CMDLINE, CMDLINE + CMDLINE_SIZE),
            AddrRange::new(EBDA, 0xa_0000),
            VGA,
            BIOS,
            AddrRange::new(HIGH_RAM, MIN_RAM),
        ];
        for pair in areas.windows(2) {
            assert!(pair[0].end() <= pair[1].base, "{pair:x?}");
        }
    }
}
