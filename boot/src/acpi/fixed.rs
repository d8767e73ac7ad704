//! Tables of fixed shape: FADT, FACS, MCFG, WAET.

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::set::{Blob, Fixup, HEADER, Table};
use super::{Machine, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout::AddrRange;

/// FADT major and minor version: ACPI 6.4.
const FADT_MAJOR: u8 = 6;
const FADT_MINOR: u8 = 4;
/// Registers of the ICH9 power management block (ICH9 datasheet 13.8.3), offsets from its base.
const PM1_EVT: u16 = 0x00;
const PM1_CNT: u16 = 0x04;
const PM_TMR: u16 = 0x08;
const GPE0: u16 = 0x20;
/// Their lengths in bytes.
const PM1_EVT_LEN: u8 = 4;
const PM1_CNT_LEN: u8 = 2;
const PM_TMR_LEN: u8 = 4;
const GPE0_LEN: u8 = 16;
/// Latencies above 100 and 1000 us say that C2 and C3 do not exist (ACPI 5.2.9).
const NO_C_STATE: u16 = 0xfff;
/// Reset control register of the chipset and the value for a full reset.
const RESET_PORT: u64 = 0xcf9;
const RESET_VALUE: u8 = 0x0f;
/// CMOS index of the century.
const CENTURY: u8 = 0x32;
/// IA-PC boot flags (ACPI 5.2.9.3) bit 1: a keyboard controller exists.
const BOOT_8042: u16 = 1 << 1;
/// From this many vCPUs on logical APIC addressing needs the cluster model.
const FLAT_APIC_MAX: usize = 8;
/// Offsets of the pointers in the FADT.
const FADT_FIRMWARE_CTRL: u32 = 36;
const FADT_DSDT: u32 = 40;
const FADT_X_DSDT: u32 = 140;
/// WAET flag bit 1: one read of the PM timer suffices.
const WAET_PM_TIMER_GOOD: u32 = 1 << 1;

fn io(port: u16, length: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, length * 8, 0, access, u64::from(port))
}

/// The FADT with FACS and DSDT as offsets (see [`fadt_pointers`]). X_FIRMWARE_CTRL stays 0: only one of the
/// two FACS fields may be used, and the FACS lies below 4 GiB.
pub(super) fn fadt(machine: &Machine, facs: u32, dsdt: u32) -> Table {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    fadt.firmware_ctrl = facs.into();
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.fadt_minor_version = FADT_MINOR;
    fadt.sci_int = u16::from(machine.sci).into();

    let [evt, cnt, timer, gpe0] = [PM1_EVT, PM1_CNT, PM_TMR, GPE0].map(|offset| machine.pm_base | offset);
    fadt.pm1a_evt_blk = u32::from(evt).into();
    fadt.pm1a_cnt_blk = u32::from(cnt).into();
    fadt.pm_tmr_blk = u32::from(timer).into();
    fadt.gpe0_blk = u32::from(gpe0).into();
    fadt.pm1_evt_len = PM1_EVT_LEN;
    fadt.pm1_cnt_len = PM1_CNT_LEN;
    fadt.pm_tmr_len = PM_TMR_LEN;
    fadt.gpe0_blk_len = GPE0_LEN;
    fadt.x_pm1a_evt_blk = io(evt, PM1_EVT_LEN, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io(cnt, PM1_CNT_LEN, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = io(timer, PM_TMR_LEN, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = io(gpe0, GPE0_LEN, AccessSize::ByteAccess);

    fadt.p_lvl2_lat = NO_C_STATE.into();
    fadt.p_lvl3_lat = NO_C_STATE.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = if machine.i8042 { BOOT_8042 } else { 0 }.into();
    fadt.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    // A clear PwrButton bit announces the fixed power button; a set SlpButton bit denies the fixed sleep
    // button.
    let mut flags = Flags::Wbinvd as u32
        | Flags::ProcC1 as u32
        | Flags::SlpButton as u32
        | Flags::ResetRegSup as u32
        | Flags::UsePlatformClock as u32;
    if machine.apic_ids.len() > FLAT_APIC_MAX {
        flags |= Flags::ForceApicClusterModel as u32;
    }
    fadt.flags = flags.into();

    let mut bytes = Vec::new();
    fadt.finalize().to_aml_bytes(&mut bytes);
    Table::new(*b"FACP", FADT_MAJOR).bytes(bytes.get(HEADER..).unwrap_or_default())
}

/// The FADT's three pointers: FACS, and the DSDT twice, 32-bit and 64-bit.
pub(super) fn fadt_pointers(fixups: &mut Vec<Fixup>, fadt: u32) {
    fixups.extend([(FADT_FIRMWARE_CTRL, 4), (FADT_DSDT, 4), (FADT_X_DSDT, 8)].map(|(offset, size)| {
        Fixup::Pointer { blob: Blob::Tables, offset: fadt + offset, size, target: Blob::Tables }
    }));
}

/// The FACS: no firmware waking, no global lock users.
pub(super) fn facs() -> Vec<u8> {
    let mut facs = FACS::new();
    facs.version = 2;
    let mut bytes = Vec::new();
    facs.to_aml_bytes(&mut bytes);
    bytes
}

/// The MCFG: one segment, from bus 0.
pub(super) fn mcfg(ecam: AddrRange) -> Table {
    Table::new(*b"MCFG", 1)
        .bytes(&[0; 8])
        .bytes(&ecam.base.to_le_bytes())
        .bytes(&[0, 0, 0, last_bus(ecam)])
        .bytes(&[0; 4])
}

/// Number of the last bus in an ECAM area of 1 to 256 MiB.
pub(super) fn last_bus(ecam: AddrRange) -> u8 {
    (ecam.size >> 20).saturating_sub(1).min(255) as u8
}

/// The Windows ACPI emulated devices table.
pub(super) fn waet() -> Table {
    Table::new(*b"WAET", 1).bytes(&WAET_PM_TIMER_GOOD.to_le_bytes())
}
