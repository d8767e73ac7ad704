//! The tables that SeaBIOS installed, as an operating system finds them in guest memory.

use std::path::Path;

use super::machine::{Plan, image, images};
use super::sector::Sector;

/// Where SeaBIOS looks for the root pointer, and where it puts the tables of a machine of 64 MiB: the file of
/// 128 KiB lies at the end of RAM, and what is used of it at its start.
const BIOS: (u32, u32) = (0xf_0000, 0x1_0000);
const TABLES: (u32, u32) = (0x400_0000 - 0x2_0000, 0x2000);

/// Guest memory from an address on.
struct Memory {
    base: u64,
    bytes: Vec<u8>,
}

/// Boots a machine of 64 MiB whose boot sector sends both areas to the serial port.
fn dump(image: &Path, vm: &'static str) -> [Memory; 2] {
    const MARK: &[u8] = b"<dump>";
    let sector = Sector::new().print("<dump>").dump(BIOS.0, BIOS.1).dump(TABLES.0, TABLES.1).finish();
    let mut machine = Plan { cpus: 3, vm, disks: vec![sector], ..Plan::new(image) }.start();
    let bytes = machine.wait("the dump", |machine| {
        let serial = machine.bytes("serial");
        let start = serial.windows(MARK.len()).position(|part| part == MARK)? + MARK.len();
        serial.get(start..start + (BIOS.1 + TABLES.1) as usize).map(<[u8]>::to_vec)
    });
    let (bios, tables) = bytes.split_at(BIOS.1 as usize);
    [(BIOS.0, bios), (TABLES.0, tables)]
        .map(|(base, bytes)| Memory { base: base.into(), bytes: bytes.to_vec() })
}

impl Memory {
    #[track_caller]
    fn at(&self, address: u64, len: usize) -> &[u8] {
        let from = address.checked_sub(self.base).unwrap() as usize;
        &self.bytes[from..from + len]
    }

    fn number(&self, address: u64, len: usize) -> u64 {
        self.at(address, len).iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// A table by its header, checksum verified.
    #[track_caller]
    fn table(&self, address: u64) -> &[u8] {
        let table = self.at(address, self.number(address + 4, 4) as usize);
        assert_eq!(sum(table), 0, "checksum of {}", String::from_utf8_lossy(&table[..4]));
        table
    }

    /// The address of the first paragraph that begins with `mark`.
    fn find(&self, mark: &[u8]) -> u64 {
        let at = self.bytes.chunks(16).position(|line| line.starts_with(mark)).unwrap();
        self.base + 16 * at as u64
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[test]
fn an_operating_system_finds_the_tables() {
    for image in images() {
        let [bios, tables] = dump(&image, "");
        check_acpi(&bios, &tables);
        check_smbios(&bios);
    }
}

#[test]
fn texts_of_the_configuration_are_in_the_tables() {
    const TEXTS: &str = "[vm.smbios]
        bios = { vendor = \"bios vendor\", version = \"bios version\", date = \"02/03/2024\" }
        system = { manufacturer = \"maker\", product = \"thing\", serial = \"number\", sku = \"unit\" }
        chassis = { asset = \"inventory\" }
        processor = { part = \"core part\" }
        memory = { manufacturer = \"memory maker\" }";
    let Some(image) = image() else { return };
    let [bios, _] = dump(&image, TEXTS);
    let structures = structures(&bios);
    let texts = |kind: u8| {
        let found = structures.iter().find(|(found, _)| *found == kind).unwrap();
        found.1.iter().map(String::as_str).collect::<Vec<_>>()
    };
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(texts(0), ["bios vendor", "bios version", "02/03/2024"]);
    assert_eq!(texts(1), ["maker", "thing", version, "number", "unit", "vm"]);
    assert_eq!(texts(3), ["maker", version, "inventory"]);
    assert_eq!(texts(4), ["CPU 0", "maker", version, "core part"]);
    assert_eq!(texts(17), ["DIMM 0", "memory maker"]);
    assert_eq!(structures.iter().filter(|(kind, _)| *kind == 0).count(), 1, "the firmware adds none");
}

/// Types and texts of the SMBIOS structures, in their order (DSP0134, 6.1.2 and 6.1.3).
fn structures(bios: &Memory) -> Vec<(u8, Vec<String>)> {
    let entry = bios.find(b"_SM_");
    let (mut at, len) = (bios.number(entry + 0x18, 4), bios.number(entry + 0x16, 2));
    let end = at + len;
    let mut found = Vec::new();
    while at < end {
        let kind = bios.number(at, 1) as u8;
        at += bios.number(at + 1, 1);
        let start = at;
        while bios.number(at, 2) != 0 {
            at += 1;
        }
        let bytes = bios.at(start, (at - start) as usize);
        let texts = bytes.split(|byte| *byte == 0).filter(|text| !text.is_empty());
        found.push((kind, texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect()));
        at += 2;
    }
    found
}

fn check_acpi(bios: &Memory, memory: &Memory) {
    let rsdp = bios.find(b"RSD PTR ");
    assert_eq!((sum(bios.at(rsdp, 20)), sum(bios.at(rsdp, 36)), bios.number(rsdp + 15, 1)), (0, 0, 2));
    let (rsdt, xsdt) = (bios.number(rsdp + 16, 4), bios.number(rsdp + 24, 8));
    let xsdt = memory.table(xsdt);
    assert_eq!(&xsdt[..4], b"XSDT");
    let tables: Vec<u64> = xsdt[36..].chunks(8).map(number).collect();
    let short: Vec<u64> = memory.table(rsdt)[36..].chunks(4).map(number).collect();
    assert_eq!(tables, short);
    let signatures: Vec<&[u8]> = tables.iter().map(|table| &memory.table(*table)[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG", b"WAET"]);
    let fadt = memory.table(tables[0]);
    let dsdt = memory.table(number(&fadt[40..44]));
    assert_eq!((&dsdt[..4], number(&fadt[140..148])), (&b"DSDT"[..], number(&fadt[40..44])));
    let facs = number(&fadt[36..40]);
    assert_eq!((memory.at(facs, 4), facs % 64), (&b"FACS"[..], 0));
    assert_eq!(number(&fadt[56..60]), 0x600, "PM1a event block");
    let madt = memory.table(tables[1]);
    // The first structures are those of the processors: type 0, 8 bytes, enabled.
    for cpu in 0..3 {
        let entry = &madt[44 + 8 * cpu..][..8];
        assert_eq!(entry, [0, 8, cpu as u8, cpu as u8, 1, 0, 0, 0]);
    }
    assert_eq!(number(&memory.table(tables[2])[44..52]), 0xb000_0000, "ECAM");
}

fn check_smbios(bios: &Memory) {
    let entry = bios.find(b"_SM_");
    assert_eq!((sum(bios.at(entry, 31)), sum(bios.at(entry + 16, 15))), (0, 0));
    let (mut at, len) = (bios.number(entry + 0x18, 4), bios.number(entry + 0x16, 2));
    let end = at + len;
    let mut types = Vec::new();
    while at < end {
        let (kind, formatted) = (bios.number(at, 1), bios.number(at + 1, 1));
        types.push(kind);
        if kind == 1 {
            let uuid = b"\x67\x45\x3e\x12\x9b\xe8\xd3\x12\xa4\x56\x42\x66\x14\x17\x40\x00";
            assert_eq!(bios.at(at + 8, 16), uuid);
        }
        at += formatted;
        while bios.number(at, 2) != 0 {
            at += 1;
        }
        at += 2;
    }
    assert_eq!(types, [0, 1, 3, 4, 16, 17, 19, 32, 127]);
}
