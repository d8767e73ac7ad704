//! What the boot vCPU's registers must hold at the kernel's first instruction.
//!
//! The values are plain numbers named after the processor's registers, so that any hypervisor's set-registers
//! call can be filled from them. The tables in RAM they point to (GDT, page tables) are written by
//! [`crate::linux::load`].

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout;
use devices::mem::GuestRam;

/// CR0.PE: protected mode.
const CR0_PE: u64 = 1 << 0;
/// CR0.ET: hardwired to one on every processor since the 486.
const CR0_ET: u64 = 1 << 4;
/// CR0.PG: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4.PAE.
const CR4_PAE: u64 = 1 << 5;
/// EFER.LME and EFER.LMA: long mode enabled and active.
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// RFLAGS bit 1 is always set; everything else clear, interrupts disabled.
const RFLAGS: u64 = 1 << 1;
/// IA32_MTRR_DEF_TYPE: MTRRs enabled (bit 11), default type write-back (6). Firmware leaves it so; without it
/// Linux believes that all memory is uncached and turns PAT off.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// Page table entry: present, writable.
const PTE_PRESENT_WRITE: u64 = 0b11;
/// Page directory entry: maps 2 MiB itself.
const PDE_LARGE: u64 = 1 << 7;

/// Selectors of the boot protocol: __BOOT_CS, __BOOT_DS, and a task behind them.
const SELECTOR_CODE: u16 = 0x10;
const SELECTOR_DATA: u16 = 0x18;
const SELECTOR_TASK: u16 = 0x20;
/// Null, null, code, data, task (two slots wide in long mode).
const GDT_SLOTS: usize = 6;

/// One segment register with its hidden part, in the split of `struct kvm_segment`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Descriptor type, 4 bits (Intel SDM volume 3, 3.4.5.1 and 3.5).
    pub kind: u8,
    /// Code or data (true), or a system segment (false).
    pub code_or_data: bool,
    /// Default operand size 32 bits.
    pub db: bool,
    /// 64-bit code.
    pub long: bool,
    /// Limit counts 4 KiB units in the descriptor.
    pub granularity: bool,
}

impl Segment {
    /// The 8-byte descriptor this register would have been loaded from, present, DPL 0.
    fn descriptor(&self) -> u64 {
        let base = self.base & 0xffff_ffff;
        let limit = u64::from(if self.granularity { self.limit >> 12 } else { self.limit });
        let access = 1 << 7 | u64::from(self.code_or_data) << 4 | u64::from(self.kind & 0xf);
        let flags = u64::from(self.granularity) << 3 | u64::from(self.db) << 2 | u64::from(self.long) << 1;
        (limit & 0xffff)
            | (base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 0xf) << 48
            | flags << 52
            | (base >> 24) << 56
    }

    fn code(long: bool) -> Self {
        // Type 0xb: execute, read, accessed.
        Self::flat(SELECTOR_CODE, 0xb, !long, long)
    }

    fn data() -> Self {
        // Type 3: read, write, accessed.
        Self::flat(SELECTOR_DATA, 3, true, false)
    }

    fn flat(selector: u16, kind: u8, db: bool, long: bool) -> Self {
        Self { selector, base: 0, limit: u32::MAX, kind, code_or_data: true, db, long, granularity: true }
    }

    fn task() -> Self {
        // Type 0xb: busy 32-bit or 64-bit TSS, as VM entry demands of TR. Limit 0x67: a TSS without I/O map.
        Self {
            selector: SELECTOR_TASK,
            base: 0,
            limit: 0x67,
            kind: 0xb,
            code_or_data: false,
            db: false,
            long: false,
            granularity: false,
        }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Size in bytes minus one.
    pub limit: u16,
}

/// Registers of the boot vCPU. Every general register not named here is zero; LDTR is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// First instruction.
    pub rip: u64,
    /// A small stack below 1 MiB.
    pub rsp: u64,
    /// Zero page (entries of the boot protocol), else 0.
    pub rsi: u64,
    /// PVH start info (PVH entry), else 0.
    pub rbx: u64,
    /// Interrupts disabled.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Page table root, 0 without paging.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// IA32_MTRR_DEF_TYPE (MSR 0x2ff), for every vCPU.
    pub mtrr_def_type: u64,
    /// CS.
    pub cs: Segment,
    /// DS, ES, FS, GS and SS.
    pub ds: Segment,
    /// TR.
    pub tr: Segment,
    /// GDTR.
    pub gdt: DescriptorTable,
    /// IDTR: empty.
    pub idt: DescriptorTable,
}

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Long mode, RSI points to the zero page (boot protocol, "64-bit boot protocol").
    Long64,
    /// 32-bit protected mode without paging, ESI points to the zero page (boot protocol, "32-bit boot protocol").
    Linux32,
    /// 32-bit protected mode without paging, EBX points to the start info (PVH).
    Pvh32,
}

/// A kernel ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How it is entered.
    pub kind: EntryKind,
    /// Whether the kernel needs a processor that runs 64-bit guests.
    pub needs_64bit: bool,
    /// What the boot vCPU's registers hold.
    pub cpu: CpuState,
    /// RAM the kernel occupies until it manages memory itself.
    pub kernel: layout::AddrRange,
    /// Where the initrd lies, if there is one. `size` is its exact length.
    pub initrd: Option<layout::AddrRange>,
}

impl CpuState {
    /// State for the 64-bit entry of the boot protocol.
    pub(crate) fn long64(rip: u64) -> Self {
        Self {
            rip,
            rsi: layout::ZERO_PAGE,
            cr0: CR0_PG | CR0_ET | CR0_PE,
            cr3: layout::PAGE_TABLES,
            cr4: CR4_PAE,
            efer: EFER_LME_LMA,
            ..Self::flat(true)
        }
    }

    /// State for the 32-bit entry of the boot protocol.
    pub(crate) fn linux32(eip: u32) -> Self {
        Self { rip: u64::from(eip), rsi: layout::ZERO_PAGE, cr0: CR0_ET | CR0_PE, ..Self::flat(false) }
    }

    /// State for the PVH entry.
    pub(crate) fn pvh32(eip: u32) -> Self {
        Self { rip: u64::from(eip), rbx: layout::PVH_INFO, cr0: CR0_ET | CR0_PE, ..Self::flat(false) }
    }

    fn flat(long: bool) -> Self {
        Self {
            rip: 0,
            rsp: layout::BOOT_STACK,
            rsi: 0,
            rbx: 0,
            rflags: RFLAGS,
            cr0: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            mtrr_def_type: MTRR_WRITE_BACK,
            cs: Segment::code(long),
            ds: Segment::data(),
            tr: Segment::task(),
            gdt: DescriptorTable { base: layout::GDT, limit: (GDT_SLOTS * 8 - 1) as u16 },
            idt: DescriptorTable::default(),
        }
    }

    /// Writes the GDT this state's segments were taken from, and the page tables if it has paging on.
    pub(crate) fn write_tables(&self, ram: &GuestRam) -> Result<(), GuestMemoryError> {
        let gdt: [u64; GDT_SLOTS] =
            [0, 0, self.cs.descriptor(), self.ds.descriptor(), self.tr.descriptor(), 0];
        ram.write_slice(&le_bytes(&gdt), GuestAddress(layout::GDT))?;
        if self.cr3 != 0 {
            ram.write_slice(&identity_page_tables(self.cr3), GuestAddress(self.cr3))?;
        }
        Ok(())
    }
}

/// Page tables at `root` that map the first 4 GiB one to one with 2 MiB pages.
fn identity_page_tables(root: u64) -> Vec<u8> {
    const PAGE: u64 = 4096;
    const DIRECTORIES: u64 = 4;
    let mut tables = vec![0u64; (2 + DIRECTORIES as usize) * 512];
    let (pml4, rest) = tables.split_at_mut(512);
    let (pdpt, directories) = rest.split_at_mut(512);
    if let Some(entry) = pml4.first_mut() {
        *entry = (root + PAGE) | PTE_PRESENT_WRITE;
    }
    for (entry, n) in pdpt.iter_mut().zip(0..DIRECTORIES) {
        *entry = (root + (2 + n) * PAGE) | PTE_PRESENT_WRITE;
    }
    for (entry, n) in directories.iter_mut().zip(0u64..) {
        *entry = n << 21 | PDE_LARGE | PTE_PRESENT_WRITE;
    }
    le_bytes(&tables)
}

fn le_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    fn qword(ram: &GuestRam, at: u64) -> u64 {
        ram.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn long_mode_state() {
        let cpu = CpuState::long64(0x100_0200);
        assert_eq!((cpu.rip, cpu.rsi, cpu.rbx, cpu.rflags), (0x100_0200, 0x7000, 0, 2));
        assert_eq!((cpu.cr0, cpu.cr4, cpu.efer), (0x8000_0011, 0x20, 0x500));
        assert_eq!((cpu.cs.selector, cpu.ds.selector), (0x10, 0x18));
        let ram = ram();
        cpu.write_tables(&ram).unwrap();
        // Flat 64-bit code, flat data, busy TSS; all accessed.
        assert_eq!(qword(&ram, 0x510), 0x00af_9b00_0000_ffff);
        assert_eq!(qword(&ram, 0x518), 0x00cf_9300_0000_ffff);
        assert_eq!(qword(&ram, 0x520), 0x0000_8b00_0000_0067);
        assert_eq!(cpu.gdt, DescriptorTable { base: 0x500, limit: 0x2f });
    }

    #[test]
    fn page_tables_map_four_gib_one_to_one() {
        let cpu = CpuState::long64(0);
        let ram = ram();
        cpu.write_tables(&ram).unwrap();
        for address in [0u64, 0x7000, 0x10_0000, 0x7fff_ffff, 0xfee0_0000, 0xffff_ffff] {
            let pml4e = qword(&ram, cpu.cr3 + (address >> 39) * 8);
            assert_eq!(pml4e & 0xfff, 3);
            let pdpte = qword(&ram, (pml4e & !0xfff) + (address >> 30 & 511) * 8);
            assert_eq!(pdpte & 0xfff, 3);
            let pde = qword(&ram, (pdpte & !0xfff) + (address >> 21 & 511) * 8);
            assert_eq!(pde & 0xfff, 0x83);
            assert_eq!((pde & !0xfff) | (address & 0x1f_ffff), address);
        }
        assert_eq!(qword(&ram, cpu.cr3 + 8), 0, "512 GiB and up is not mapped");
    }

    #[test]
    fn linux_32_bit_state() {
        let cpu = CpuState::linux32(0x10_0000);
        assert_eq!((cpu.rip, cpu.rsi, cpu.rbx, cpu.rflags), (0x10_0000, 0x7000, 0, 2));
        assert_eq!((cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer), (0x11, 0, 0, 0));
        assert_eq!((cpu.cs.selector, cpu.ds.selector), (0x10, 0x18));
        assert!(cpu.cs.db && !cpu.cs.long && cpu.ds.db);
    }

    #[test]
    fn pvh_state() {
        let cpu = CpuState::pvh32(0x10_0000);
        assert_eq!((cpu.rip, cpu.rbx, cpu.rsi), (0x10_0000, 0x6000, 0));
        assert_eq!((cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer), (0x11, 0, 0, 0));
        assert!(cpu.cs.db && !cpu.cs.long);
        let ram = ram();
        cpu.write_tables(&ram).unwrap();
        assert_eq!(qword(&ram, 0x510), 0x00cf_9b00_0000_ffff);
        assert_eq!(qword(&ram, layout::PAGE_TABLES), 0, "no paging, no page tables");
    }
}
