//! MADT (ACPI 5.2.12): vCPUs, the I/O APIC and how ISA interrupts reach it.

use super::Machine;
use super::set::Table;
use crate::layout;

/// Revision that belongs to ACPI 6.3 and 6.4.
const REVISION: u8 = 5;
/// Flag of the table: the machine also has the two 8259 controllers.
const PCAT_COMPAT: u32 = 1;
/// Flag of a processor: usable.
const ENABLED: u32 = 1;
/// Processors from this APIC ID or UID on need the x2APIC form.
const X2APIC_FROM: u32 = 255;
/// MPS INTI flags (table 5.26): level-triggered, active high.
const LEVEL_HIGH: u16 = 0x000d;
/// Bus defaults.
const CONFORMS: u16 = 0;
/// ISA interrupts besides the SCI that the PIRQ router uses, so that they are level-triggered too.
pub(super) const PIRQ_ISA: [u8; 3] = [5, 10, 11];
/// NMI arrives at this pin of each local APIC.
const NMI_LINT: u8 = 1;

pub(super) fn madt(machine: &Machine) -> Table {
    let mut table = Table::new(*b"APIC", REVISION)
        .bytes(&(layout::LOCAL_APIC as u32).to_le_bytes())
        .bytes(&PCAT_COMPAT.to_le_bytes());
    let mut x2apic = false;
    for (&id, uid) in machine.apic_ids.iter().zip(0u32..) {
        // IDs ascend strictly, so a small ID implies a small UID.
        table = if id < X2APIC_FROM {
            local_apic(table, uid as u8, id as u8)
        } else {
            x2apic = true;
            local_x2apic(table, uid, id)
        };
    }
    table = io_apic(table);
    if machine.irq0_to_gsi2 {
        table = source_override(table, 0, 2, CONFORMS);
    }
    let mut level: Vec<u8> = PIRQ_ISA.into_iter().chain([machine.sci]).collect();
    level.sort_unstable();
    level.dedup();
    for irq in level {
        table = source_override(table, irq, u32::from(irq), LEVEL_HIGH);
    }
    table = table.bytes(&[4, 6, 0xff]).bytes(&CONFORMS.to_le_bytes()).bytes(&[NMI_LINT]);
    if x2apic {
        table = table
            .bytes(&[0x0a, 12])
            .bytes(&CONFORMS.to_le_bytes())
            .bytes(&u32::MAX.to_le_bytes())
            .bytes(&[NMI_LINT, 0, 0, 0]);
    }
    table
}

/// Type 0, processor local APIC.
fn local_apic(table: Table, uid: u8, id: u8) -> Table {
    table.bytes(&[0, 8, uid, id]).bytes(&ENABLED.to_le_bytes())
}

/// Type 9, processor local x2APIC.
fn local_x2apic(table: Table, uid: u32, id: u32) -> Table {
    table
        .bytes(&[9, 16, 0, 0])
        .bytes(&id.to_le_bytes())
        .bytes(&ENABLED.to_le_bytes())
        .bytes(&uid.to_le_bytes())
}

/// Type 1, I/O APIC 0 with GSI 0 on.
fn io_apic(table: Table) -> Table {
    table.bytes(&[1, 12, 0, 0]).bytes(&(layout::IO_APIC as u32).to_le_bytes()).bytes(&[0; 4])
}

/// Type 2, interrupt source override of ISA interrupt `irq`.
fn source_override(table: Table, irq: u8, gsi: u32, flags: u16) -> Table {
    table.bytes(&[2, 10, 0, irq]).bytes(&gsi.to_le_bytes()).bytes(&flags.to_le_bytes())
}
