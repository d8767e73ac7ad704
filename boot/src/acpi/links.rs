//! Interrupts of PCI: straight to GSIs where the operating system uses the IOAPIC, and else through the router of the LPC
//! bridge to ISA interrupts, which it chooses.

use acpi_tables::aml::{
    And, Arg, CreateDWordField, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, Local, Method, NotEqual, OpRegion, OpRegionSpace, Or, Package, PackageBuilder,
    ResourceTemplate, Return, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::Machine;
use super::dsdt::{Raw, device, name, path, when};
use super::madt::PIRQ_ISA;

/// Slots of bus 0 and pins of each.
const SLOTS: u8 = 32;
const PINS: u8 = 4;
/// The GSI of PIRQ A; the others follow.
const FIRST_GSI: u32 = 16;
/// PIRQ wires, A to H.
const WIRES: u8 = 8;
/// Route registers in the configuration space of the LPC bridge: A to D, and E to H (ICH9 datasheet, 13.1.9 and 13.1.13).
const ROUTES: u8 = 0x60;
const ROUTES_LEN: u8 = 0x0c;
/// In a route register: not routed to an ISA interrupt.
const OFF: u8 = 0x80;
/// In a route register: the ISA interrupt.
const IRQ: u8 = 0x0f;
/// `_STA`: present, decoding, shown, functioning; and without decoding (ACPI 6.3.7).
const STA_ON: u8 = 0x0b;
const STA_OFF: u8 = 0x09;
/// Offset of the first interrupt in an extended interrupt descriptor (ACPI 6.4.3.6).
const NUMBER: u8 = 5;

/// Extended interrupt descriptor: one of these, level-triggered, active high as the MADT says, shared.
struct Interrupts<'a>(&'a [u8]);

impl Aml for Interrupts<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let count = self.0.len() as u8;
        sink.byte(0x89);
        sink.word(2 + 4 * u16::from(count));
        // Consumer, level, high, shared.
        sink.byte(0x09);
        sink.byte(count);
        self.0.iter().for_each(|&number| sink.dword(number.into()));
    }
}

/// Letter of a wire.
fn letter(wire: u8) -> char {
    char::from(b'A' + wire % WIRES)
}

fn register(wire: u8) -> String {
    format!("PRQ{}", letter(wire))
}

fn link(wire: u8) -> String {
    format!("LNK{}", letter(wire))
}

/// The flag that the operating system uses the IOAPIC, and `_PIC`, by which it says so.
pub(super) fn interrupt_model() -> Raw {
    let flag = path("PICF");
    let told = Store::new(&flag, &Arg(0));
    Raw::of(&[&name("PICF", &ZERO), &Method::new(path("_PIC"), 1, false, vec![&told])])
}

/// `_PRT` of the host bridge: every slot and pin of bus 0.
pub(super) fn routing(machine: &Machine) -> Raw {
    let (mut straight, mut linked) = (PackageBuilder::new(), PackageBuilder::new());
    for (slot, pin) in (0..SLOTS).flat_map(|slot| (0..PINS).map(move |pin| (slot, pin))) {
        let address = u32::from(slot) << 16 | 0xffff;
        let gsi = (machine.intx_gsi)(slot, pin);
        straight.add_element(&Package::new(vec![&address, &pin, &ZERO, &gsi]));
        if let Some(wire) = gsi.checked_sub(FIRST_GSI).filter(|wire| *wire < u32::from(WIRES)) {
            linked.add_element(&Package::new(vec![
                &address,
                &pin,
                &path(&format!("ISA_.{}", link(wire as u8))),
                &ZERO,
            ]));
        }
    }
    let (flag, straight_name, linked_name) = (path("PICF"), path("PRTA"), path("PRTL"));
    let with_ioapic = when(&NotEqual::new(&flag, &ZERO), &[&Return::new(&straight_name)]);
    let without = Return::new(&linked_name);
    let method = Method::new(path("_PRT"), 0, false, vec![&with_ioapic, &without]);
    Raw::of(&[&name("PRTA", &straight), &name("PRTL", &linked), &method])
}

/// The route registers, for the scope of the LPC bridge.
pub(super) fn registers() -> Raw {
    let bits = |wire| {
        let mut field = *b"PRQ_";
        field[3] = letter(wire) as u8;
        FieldEntry::Named(field, 8)
    };
    let mut fields: Vec<_> = (0..4).map(bits).collect();
    fields.push(FieldEntry::Reserved(32));
    fields.extend((4..WIRES).map(bits));
    Raw::of(&[
        &OpRegion::new(path("PIRR"), OpRegionSpace::PCIConfig, &ROUTES, &ROUTES_LEN),
        &Field::new(
            path("PIRR"),
            FieldAccessType::Byte,
            FieldLockRule::NoLock,
            FieldUpdateRule::Preserve,
            fields,
        ),
    ])
}

/// The interrupt link devices, one for each wire, beside the registers.
pub(super) fn links() -> Vec<Raw> {
    (0..WIRES).map(link_device).collect()
}

fn link_device(wire: u8) -> Raw {
    let route = path(&register(wire));
    let status = {
        let masked = And::new(&Local(0), &route, &OFF);
        let off = when(&NotEqual::new(&Local(0), &ZERO), &[&Return::new(&STA_OFF)]);
        method("_STA", 0, &[&masked, &off, &Return::new(&STA_ON)])
    };
    let disable = method("_DIS", 0, &[&Or::new(&route, &route, &OFF)]);
    let current = {
        let (buffer, number) = (path("BUF0"), path("IRQ0"));
        let field = CreateDWordField::new(&number, &buffer, &NUMBER);
        // Interrupt 0 means none.
        let none = Store::new(&number, &ZERO);
        let masked = And::new(&Local(0), &route, &OFF);
        let on = when(&Equal::new(&Local(0), &ZERO), &[&And::new(&number, &route, &IRQ)]);
        method("_CRS", 0, &[&field, &none, &masked, &on, &Return::new(&buffer)])
    };
    let set = {
        let number = path("IRQ1");
        let field = CreateDWordField::new(&number, &Arg(0), &NUMBER);
        method("_SRS", 1, &[&field, &And::new(&route, &number, &IRQ)])
    };
    let possible = name("_PRS", &ResourceTemplate::new(vec![&Interrupts(&PIRQ_ISA)]));
    let (kind, number) = (name("_HID", &EISAName::new("PNP0C0F")), name("_UID", &wire));
    let template = name("BUF0", &ResourceTemplate::new(vec![&Interrupts(&[0])]));
    device(&link(wire), &[&kind, &number, &template, &possible, &status, &disable, &current, &set])
}

/// A serialized method: several create names.
fn method(label: &str, arguments: u8, parts: &[&dyn Aml]) -> Raw {
    Raw::of(&[&Method::new(path(label), arguments, true, parts.to_vec())])
}
