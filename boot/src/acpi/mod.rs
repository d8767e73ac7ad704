//! ACPI tables of the machine: q35 host bridge, ICH9 LPC bridge with its power management block, no SMM.
//!
//! One generator serves both ways to boot. Tables are blobs of bytes with a list of [`Fixup`]s: a directly
//! booted machine applies them in process ([`TableSet::install`]), firmware applies them by fw_cfg's table
//! loader ([`TableSet::loader_script`]). Firmware chooses where ECAM and PCI windows lie, so for firmware the
//! tables must be built when the guest first asks for them, from what the chipset registers then say.
//!
//! FADT, FACS, DSDT, MADT, MCFG (with ECAM), WAET, RSDT, XSDT; RSDP revision 2.

mod dsdt;
mod fixed;
mod links;
mod madt;
mod set;
#[cfg(test)]
mod tests;

use thiserror::Error;

use crate::layout::{self, AddrRange, RamLayout};

pub use set::{Blob, Fixup, InstallError, Placement, TableSet};

/// OEM ID of every table and of the RSDP.
const OEM_ID: [u8; 6] = *b"VMM   ";
/// OEM table ID of every table: the FADT's must equal the RSDT's (ACPI 5.2.9).
const OEM_TABLE_ID: [u8; 8] = *b"VMMQ35  ";
/// OEM revision of every table.
const OEM_REVISION: u32 = 1;
/// Most vCPUs with a name of their own in the DSDT: C000 to CFFF.
const MAX_CPUS: usize = 4096;

/// A serial port on the ISA bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComPort {
    /// First of its eight I/O ports.
    pub base: u16,
    /// ISA interrupt, 0 to 15.
    pub irq: u8,
}

impl ComPort {
    /// COM1.
    pub const COM1: Self = Self { base: 0x3f8, irq: 4 };
}

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct Machine {
    /// APIC ID of each vCPU, strictly ascending. The position is the ACPI processor UID.
    pub apic_ids: Vec<u32>,
    /// PCI Express configuration space, 1 MiB for each bus; `None` when it is off.
    pub ecam: Option<AddrRange>,
    /// PCI memory windows below 4 GiB, besides the VGA window, which always belongs to PCI.
    pub mem32: Vec<AddrRange>,
    /// PCI memory window above 4 GiB.
    pub mem64: Option<AddrRange>,
    /// I/O base of the power management block (128 bytes, 128-aligned).
    pub pm_base: u16,
    /// GSI of the system control interrupt: level, active high.
    pub sci: u8,
    /// Serial ports, COM1 first.
    pub com_ports: Vec<ComPort>,
    /// Keyboard controller at 0x60/0x64 with keyboard (IRQ 1) and mouse (IRQ 12).
    pub i8042: bool,
    /// fw_cfg at 0x510 is visible to the operating system.
    pub fw_cfg: bool,
    /// ISA IRQ 0 arrives at I/O APIC pin 2 instead of pin 0. Must match the interrupt routing of the
    /// hypervisor.
    pub irq0_to_gsi2: bool,
    /// GSI of PCI slot (0 to 31) and pin (0 = INTA# to 3 = INTD#) on bus 0.
    pub intx_gsi: fn(slot: u8, pin: u8) -> u32,
}

impl Machine {
    /// The machine that direct boot sets up: ECAM and PCI windows as in [`crate::layout`], PM block at 0x600,
    /// SCI 9, COM1 and a keyboard controller, no fw_cfg, IRQ 0 at pin 0.
    pub fn direct_boot(
        layout: &RamLayout,
        phys_bits: u8,
        apic_ids: Vec<u32>,
        intx_gsi: fn(u8, u8) -> u32,
    ) -> Self {
        Self {
            apic_ids,
            ecam: Some(layout::ECAM),
            mem32: vec![layout::MEM32],
            mem64: layout.mem64_window(phys_bits),
            pm_base: 0x600,
            sci: 9,
            com_ports: vec![ComPort::COM1],
            i8042: true,
            fw_cfg: false,
            irq0_to_gsi2: false,
            intx_gsi,
        }
    }

    /// Builds all tables.
    ///
    /// # Errors
    /// When the description contradicts itself; see [`MachineError`].
    pub fn tables(&self) -> Result<TableSet, MachineError> {
        self.check()?;
        let mut builder = set::Builder::default();
        // The FACS comes first: it needs the blob's own alignment of 64.
        let facs = builder.raw(&fixed::facs());
        let dsdt = builder.table(dsdt::dsdt(self));
        let mut listed = vec![builder.table_with(fixed::fadt(self, facs, dsdt), fixed::fadt_pointers)];
        listed.push(builder.table(madt::madt(self)));
        if let Some(ecam) = self.ecam {
            listed.push(builder.table(fixed::mcfg(ecam)));
        }
        listed.push(builder.table(fixed::waet()));
        Ok(builder.finish(&listed))
    }

    fn check(&self) -> Result<(), MachineError> {
        if self.apic_ids.is_empty() || self.apic_ids.len() > MAX_CPUS {
            return Err(MachineError::CpuCount(self.apic_ids.len()));
        }
        if !self.apic_ids.is_sorted_by(|a, b| a < b) {
            return Err(MachineError::ApicIds);
        }
        let misplaced = |range: &&AddrRange| range.size == 0 || range.end() > layout::FOUR_GIB;
        if let Some(range) = self.mem32.iter().find(misplaced) {
            return Err(MachineError::Window(range.base));
        }
        if let Some(range) = self.mem64.filter(|range| range.size == 0 || range.base < layout::FOUR_GIB) {
            return Err(MachineError::Window(range.base));
        }
        let bus = 1u64 << 20;
        let whole = |range: &AddrRange| {
            range.base.is_multiple_of(bus)
                && range.size.is_multiple_of(bus)
                && range.size != 0
                && range.size <= bus << 8
        };
        if let Some(range) = self.ecam.filter(|range| !whole(range) || range.end() > layout::FOUR_GIB) {
            return Err(MachineError::Ecam(range.base));
        }
        if !self.pm_base.is_multiple_of(128) || self.pm_base == 0 {
            return Err(MachineError::PmBase(self.pm_base));
        }
        Ok(())
    }
}

/// A machine that cannot be described.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MachineError {
    /// No vCPU or too many.
    #[error("{0} vCPUs: ACPI tables describe 1 to 4096")]
    CpuCount(usize),
    /// APIC IDs repeat or are out of order.
    #[error("APIC IDs must be strictly ascending")]
    ApicIds,
    /// A PCI window that is empty or on the wrong side of 4 GiB.
    #[error("PCI window at {0:#x} is empty or crosses 4 GiB")]
    Window(u64),
    /// ECAM that is not whole buses below 4 GiB.
    #[error("PCI Express configuration space at {0:#x} is not 1 to 256 whole buses below 4 GiB")]
    Ecam(u64),
    /// Power management block not on its natural boundary.
    #[error("power management block at I/O port {0:#x} is not 128-aligned")]
    PmBase(u16),
}
