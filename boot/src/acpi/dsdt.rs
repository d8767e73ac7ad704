//! DSDT: the PCI host bridge, the ISA devices behind the LPC bridge, vCPUs, power off.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If,
    Local, Memory32Fixed, Method, Name, NotEqual, ONE, Or, Package, Path, ResourceTemplate, Return, Scope,
    Store, Uuid, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::fixed::last_bus;
use super::links;
use super::set::Table;
use super::{ComPort, Machine};
use crate::layout;

/// Revision 2: integers have 64 bits.
const REVISION: u8 = 2;
/// PCI host bridge capabilities (PCI Firmware Specification 3.3, 4.5.1).
const OSC_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// What the operating system may control: SHPC hot-plug, PME, AER, PCI Express capabilities; not native
/// hot-plug.
const OSC_GRANTED: u8 = 0x1e;
/// _OSC result bits in the first dword (ACPI 6.2.11.1): unknown UUID, unknown revision, some request denied.
const OSC_BAD_UUID: u8 = 1 << 2;
const OSC_BAD_REVISION: u8 = 1 << 3;
const OSC_MASKED: u8 = 1 << 4;
/// Ports of configuration mechanism #1, in the middle of PCI's I/O space.
const CONFIG_PORTS: u16 = 0xcf8;
/// LPC bridge 00:1f.0.
const LPC_ADDRESS: u32 = 0x1f_0000;
/// Ports of the power management block.
const PM_PORTS: u8 = 0x80;
/// fw_cfg: present, functioning, not shown to the user.
const STA_HIDDEN: u8 = 0x0b;

/// AML already in binary form.
pub(super) struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

impl Raw {
    pub(super) fn of(parts: &[&dyn Aml]) -> Self {
        let mut bytes = Vec::new();
        for part in parts {
            part.to_aml_bytes(&mut bytes);
        }
        Self(bytes)
    }
}

/// IRQ descriptor, two-byte form: edge-triggered, active high, exclusive (ACPI 6.4.2.1).
struct IsaIrq(u8);

impl Aml for IsaIrq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1u16.checked_shl(u32::from(self.0)).unwrap_or(0));
    }
}

pub(super) fn path(name: &str) -> Path {
    Path::new(name)
}

fn ports(base: u16, length: u8) -> IO {
    IO::new(base, base, 1, length)
}

/// `Name(name, value)`.
pub(super) fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(path(name), value)
}

pub(super) fn dsdt(machine: &Machine) -> Table {
    // S5, soft off: SLP_TYP 0.
    let s5 = name("_S5_", &Package::new(vec![&ZERO, &ZERO, &ZERO, &ZERO]));
    let mut devices = vec![host_bridge(machine), motherboard(machine)];
    if machine.fw_cfg {
        devices.push(fw_cfg());
    }
    devices.extend((0u32..).take(machine.apic_ids.len()).map(processor));
    let scope = Scope::new(path("_SB_"), devices.iter().map(|device| device as &dyn Aml).collect());
    Table::new(*b"DSDT", REVISION).bytes(&Raw::of(&[&s5, &links::interrupt_model(), &scope]).0)
}

/// `Device(name) { parts }`.
pub(super) fn device(name: &str, parts: &[&dyn Aml]) -> Raw {
    Raw::of(&[&Device::new(path(name), parts.to_vec())])
}

/// `If (predicate) { parts }`.
pub(super) fn when(predicate: &dyn Aml, parts: &[&dyn Aml]) -> Raw {
    Raw::of(&[&If::new(predicate, parts.to_vec())])
}

/// `_CRS` with these descriptors.
fn resources(descriptors: &[&dyn Aml]) -> Name {
    name("_CRS", &ResourceTemplate::new(descriptors.to_vec()))
}

fn host_bridge(machine: &Machine) -> Raw {
    device(
        "PCI0",
        &[
            &name("_HID", &EISAName::new("PNP0A08")),
            &name("_CID", &EISAName::new("PNP0A03")),
            &name("_UID", &ZERO),
            &osc(),
            &host_bridge_resources(machine),
            &links::routing(machine),
            &lpc_bridge(machine),
        ],
    )
}

/// What the host bridge passes on to PCI.
fn host_bridge_resources(machine: &Machine) -> Name {
    let last = machine.ecam.map_or(255, last_bus);
    let memory = |cacheable, range: layout::AddrRange| {
        // The caller has checked that the range is not empty and ends at or below 4 GiB.
        AddressSpace::new_memory(cacheable, true, range.base as u32, (range.end() - 1) as u32, None)
    };
    let vga = memory(AddressSpaceCacheable::Cacheable, layout::VGA);
    let low: Vec<_> =
        machine.mem32.iter().map(|&range| memory(AddressSpaceCacheable::NotCacheable, range)).collect();
    let high = machine.mem64.map(|range| {
        AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, range.base, range.end() - 1, None)
    });
    let buses = AddressSpace::new_bus_number(0u16, u16::from(last));
    let config = ports(CONFIG_PORTS, 8);
    let io_below = AddressSpace::new_io(0u16, CONFIG_PORTS - 1, None);
    let io_above = AddressSpace::new_io(CONFIG_PORTS + 8, 0xffff, None);
    let mut windows: Vec<&dyn Aml> = vec![&buses, &config, &io_below, &io_above, &vga];
    windows.extend(low.iter().map(|window| window as &dyn Aml));
    windows.extend(high.iter().map(|window| window as &dyn Aml));
    resources(&windows)
}

/// `_OSC`: grants control of what the operating system asks for, within [`OSC_GRANTED`].
fn osc() -> Raw {
    let (status, control) = (path("CDW1"), path("CDW3"));
    let report = |bit: u8| Raw::of(&[&Or::new(&status, &status, &bit)]);
    let for_pci = when(
        &Equal::new(&Arg(0), &Uuid::new(OSC_UUID)),
        &[
            &CreateDWordField::new(&control, &Arg(3), &8u8),
            &And::new(&Local(0), &control, &OSC_GRANTED),
            &when(&NotEqual::new(&Arg(1), &ONE), &[&report(OSC_BAD_REVISION)]),
            &when(&NotEqual::new(&control, &Local(0)), &[&report(OSC_MASKED)]),
            &Store::new(&control, &Local(0)),
        ],
    );
    let bad_uuid = report(OSC_BAD_UUID);
    let otherwise = Else::new(vec![&bad_uuid]);
    let status_field = CreateDWordField::new(&status, &Arg(3), &ZERO);
    let result = Return::new(&Arg(3));
    // Serialized, because it creates names: two callers must not be inside at once.
    Raw::of(&[&Method::new(path("_OSC"), 4, true, vec![&status_field, &for_pci, &otherwise, &result])])
}

fn lpc_bridge(machine: &Machine) -> Raw {
    let mut children = vec![Raw::of(&[&name("_ADR", &LPC_ADDRESS)]), links::registers()];
    children.push(isa_device("RTC_", "PNP0B00", &[&ports(0x70, 2), &IsaIrq(8)]));
    children.extend(links::links());
    if machine.i8042 {
        children.push(isa_device("KBD_", "PNP0303", &[&ports(0x60, 1), &ports(0x64, 1), &IsaIrq(1)]));
        children.push(isa_device("MOU_", "PNP0F13", &[&IsaIrq(12)]));
    }
    children.extend(machine.com_ports.iter().zip(1u8..=4).map(com_port));
    device("ISA_", &children.iter().map(|child| child as &dyn Aml).collect::<Vec<_>>())
}

fn isa_device(label: &str, id: &str, descriptors: &[&dyn Aml]) -> Raw {
    device(label, &[&name("_HID", &EISAName::new(id)), &resources(descriptors)])
}

fn com_port((port, number): (&ComPort, u8)) -> Raw {
    device(
        &format!("COM{number}"),
        &[
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &number),
            &resources(&[&ports(port.base, 8), &IsaIrq(port.irq)]),
        ],
    )
}

/// Resources that belong to no device but must not be given to one: ECAM and the power management block.
fn motherboard(machine: &Machine) -> Raw {
    let ecam = machine.ecam.map(|range| Memory32Fixed::new(true, range.base as u32, range.size as u32));
    let power = ports(machine.pm_base, PM_PORTS);
    let mut owned: Vec<&dyn Aml> = ecam.iter().map(|range| range as &dyn Aml).collect();
    owned.push(&power);
    device("MBRD", &[&name("_HID", &EISAName::new("PNP0C02")), &name("_UID", &ZERO), &resources(&owned)])
}

fn fw_cfg() -> Raw {
    device(
        "FWCF",
        &[&name("_HID", &"QEMU0002"), &name("_STA", &STA_HIDDEN), &resources(&[&ports(0x510, 12)])],
    )
}

/// A vCPU; `uid` ties it to its MADT entry.
fn processor(uid: u32) -> Raw {
    device(&format!("C{uid:03X}"), &[&name("_HID", &"ACPI0007"), &name("_UID", &uid)])
}
