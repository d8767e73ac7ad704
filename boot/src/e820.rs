//! The memory map, in the order and with the type numbers of the e820 BIOS call (ACPI 15.1), used alike by
//! the zero page, PVH and fw_cfg.

use crate::layout::{AddrRange, BIOS, EBDA, ECAM, FOUR_GIB, HIGH_RAM, KVM_PAGES, RamLayout};

/// What an address range is (ACPI table 15.3). PVH uses the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Type {
    /// Usable RAM.
    Ram = 1,
    /// Must not be used.
    Reserved = 2,
    /// ACPI tables: usable once the tables have been read.
    AcpiReclaimable = 3,
}

/// One range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// Guest physical addresses.
    pub range: AddrRange,
    /// What they are.
    pub kind: E820Type,
}

/// A memory map: ranges in address order, none empty, none overlapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct E820Map {
    entries: Vec<E820Entry>,
}

impl E820Map {
    /// The map of a directly booted machine. `acpi` is what the ACPI tables occupy: the end of low RAM.
    ///
    /// The legacy window 0xa0000-0xdffff is in no entry, as on any PC: nothing lives there, and PCI may use
    /// it.
    pub fn direct_boot(ram: &RamLayout, acpi: AddrRange) -> Self {
        let mut map = Self { entries: Vec::with_capacity(10) };
        map.push(AddrRange::new(0, EBDA), E820Type::Ram);
        map.push(AddrRange::new(EBDA, 0xa_0000), E820Type::Reserved);
        map.push(BIOS, E820Type::Reserved);
        map.push(AddrRange::new(HIGH_RAM, acpi.base), E820Type::Ram);
        map.push(acpi, E820Type::AcpiReclaimable);
        map.push(AddrRange::new(acpi.end(), ram.low_top()), E820Type::Ram);
        map.push(ECAM, E820Type::Reserved);
        map.push(KVM_PAGES, E820Type::Reserved);
        map.push_high(ram);
        map
    }

    /// What firmware gets as fw_cfg file `etc/e820`: RAM as mapped, and KVM's own pages. Firmware carves its
    /// own areas, ECAM and ACPI tables out itself.
    pub fn firmware(ram: &RamLayout) -> Self {
        let mut map = Self { entries: Vec::with_capacity(3) };
        map.push(AddrRange::new(0, ram.low_top()), E820Type::Ram);
        map.push(KVM_PAGES, E820Type::Reserved);
        map.push_high(ram);
        map
    }

    fn push_high(&mut self, ram: &RamLayout) {
        self.push(AddrRange::new(FOUR_GIB, ram.end()), E820Type::Ram);
    }

    fn push(&mut self, range: AddrRange, kind: E820Type) {
        if range.size != 0 {
            self.entries.push(E820Entry { range, kind });
        }
    }

    /// The entries in address order.
    pub fn entries(&self) -> &[E820Entry] {
        &self.entries
    }

    /// The packed 20-byte form: base u64, length u64, type u32, all little-endian. This is the layout of the
    /// zero page's table and of fw_cfg's `etc/e820`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.entries.len() * 20);
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.range.base.to_le_bytes());
            bytes.extend_from_slice(&entry.range.size.to_le_bytes());
            bytes.extend_from_slice(&(entry.kind as u32).to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(map: &E820Map) -> Vec<(u64, u64, u32)> {
        map.entries().iter().map(|e| (e.range.base, e.range.end(), e.kind as u32)).collect()
    }

    #[test]
    fn direct_boot_map() {
        let ram = RamLayout::new(3 << 30).unwrap();
        let map = E820Map::direct_boot(&ram, AddrRange::new(0x7fff_0000, 0x8000_0000));
        assert_eq!(
            rows(&map),
            [
                (0, 0x9_fc00, 1),
                (0x9_fc00, 0xa_0000, 2),
                (0xe_0000, 0x10_0000, 2),
                (0x10_0000, 0x7fff_0000, 1),
                (0x7fff_0000, 0x8000_0000, 3),
                (0xb000_0000, 0xc000_0000, 2),
                (0xfeff_c000, 0xff00_0000, 2),
                (0x1_0000_0000, 0x1_4000_0000, 1),
            ]
        );
    }

    #[test]
    fn no_high_ram_no_high_entry() {
        let ram = RamLayout::new(64 << 20).unwrap();
        let map = E820Map::direct_boot(&ram, AddrRange::new(0x3ff_0000, 0x400_0000));
        assert_eq!(rows(&map).last(), Some(&(0xfeff_c000, 0xff00_0000, 2)));
        for pair in map.entries().windows(2) {
            assert!(pair[0].range.end() <= pair[1].range.base);
        }
    }

    #[test]
    fn firmware_map_bytes() {
        let ram = RamLayout::new((2 << 30) + (1 << 20)).unwrap();
        let bytes = E820Map::firmware(&ram).to_bytes();
        assert_eq!(bytes.len(), 60);
        assert_eq!(bytes[..20], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[20..40], [0, 0xc0, 0xff, 0xfe, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(bytes[40..60], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
