//! Structures byte by byte, as DSP0134 lays them out.

use super::*;

fn machine(memory: u64, cpus: u16) -> Machine {
    Machine {
        revision: Version::V2,
        firmware: Some(Firmware { vendor: "V".into(), version: "1.2".into(), date: "01/02/2026".into() }),
        system: System {
            manufacturer: "Maker".into(),
            product: "Product".into(),
            version: "7".into(),
            serial: "S3R".into(),
            uuid: Some(*b"\x12\x3e\x45\x67\xe8\x9b\x12\xd3\xa4\x56\x42\x66\x14\x17\x40\x00"),
            sku: String::new(),
            family: "Family".into(),
        },
        enclosure: part("Case"),
        processor: part("Cpu"),
        memory: part("Dimm"),
        cpus,
        processor_id: 0x0f8b_fbff_0080_0f12,
        ram: RamLayout::new(memory).unwrap(),
    }
}

/// A part whose texts begin with its name.
fn part(name: &str) -> Part {
    Part {
        manufacturer: format!("{name} maker"),
        version: format!("{name} version"),
        serial: format!("{name} serial"),
        asset: format!("{name} asset"),
        part: format!("{name} part"),
        sku: format!("{name} sku"),
    }
}

/// A structure as a reader finds it: type, handle, formatted part, texts.
#[derive(Debug)]
struct Read {
    kind: u8,
    handle: u16,
    formatted: Vec<u8>,
    texts: Vec<String>,
}

impl Read {
    fn text(&self, at: usize) -> &str {
        match self.formatted[at] {
            0 => "",
            number => &self.texts[usize::from(number) - 1],
        }
    }
    fn number(&self, at: usize, len: usize) -> u64 {
        self.formatted[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

/// Walks the structures as 6.1.2 says.
fn walk(mut bytes: &[u8]) -> Vec<Read> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (formatted, rest) = bytes.split_at(usize::from(bytes[1]));
        let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
        let texts = &rest[..end];
        found.push(Read {
            kind: formatted[0],
            handle: u16::from_le_bytes([formatted[2], formatted[3]]),
            formatted: formatted.to_vec(),
            texts: texts
                .split(|byte| *byte == 0)
                .filter(|text| !text.is_empty())
                .map(|text| String::from_utf8(text.to_vec()).unwrap())
                .collect(),
        });
        bytes = &rest[end + 2..];
    }
    found
}

fn one(tables: &Tables, kind: u8) -> Read {
    let mut found: Vec<_> = walk(tables.bytes()).into_iter().filter(|s| s.kind == kind).collect();
    assert_eq!(found.len(), 1, "type {kind}");
    found.remove(0)
}

#[test]
fn all_types_with_their_lengths() {
    let tables = machine(3 << 30, 2).tables();
    let found: Vec<_> = walk(tables.bytes()).iter().map(|s| (s.kind, s.formatted.len())).collect();
    let expected = [
        (0, 0x18),
        (1, 0x1b),
        (3, 0x16),
        (4, 0x2a),
        (16, 0x17),
        (17, 0x28),
        (19, 0x1f),
        (19, 0x1f),
        (32, 0x0b),
        (127, 4),
    ];
    assert_eq!(found, expected);
    let mut handles: Vec<_> = walk(tables.bytes()).iter().map(|s| s.handle).collect();
    handles.dedup();
    assert_eq!(handles.len(), expected.len(), "handles are unique");
}

#[test]
fn firmware_and_system() {
    let tables = machine(1 << 30, 1).tables();
    let bios = one(&tables, 0);
    assert_eq!((bios.text(4), bios.text(5), bios.text(8)), ("V", "1.2", "01/02/2026"));
    assert_eq!(bios.formatted[0x0a..0x14], [8, 0, 0, 0, 0, 0, 0, 0, 0, 0x14]);
    let system = one(&tables, 1);
    let texts = [4, 5, 6, 7, 0x19, 0x1a].map(|at| system.text(at));
    assert_eq!(texts, ["Maker", "Product", "7", "S3R", "", "Family"]);
    assert_eq!(
        system.formatted[8..0x18],
        *b"\x67\x45\x3e\x12\x9b\xe8\xd3\x12\xa4\x56\x42\x66\x14\x17\x40\x00",
        "the first three fields are little-endian"
    );
    assert_eq!(system.formatted[0x18], 6);
    let mut without = machine(1 << 30, 1);
    without.firmware = None;
    without.system = System::default();
    without.enclosure = Part::default();
    let bytes = without.tables().bytes().to_vec();
    assert_eq!(bytes[..2], [1, 0x1b], "type 0 is the firmware's");
    assert_eq!(bytes[8..0x18], [0; 16], "no UUID");
    assert_eq!(bytes[0x1b..0x1f], [0, 0, 3, 0x16], "no texts: two NULs");
}

#[test]
fn enclosure_and_memory_have_texts() {
    let tables = machine(1 << 30, 1).tables();
    let case = one(&tables, 3);
    let texts = [4, 6, 7, 8, 0x15].map(|at| case.text(at));
    assert_eq!(texts, ["Case maker", "Case version", "Case serial", "Case asset", "Case sku"]);
    let dimm = one(&tables, 17);
    let texts = [0x10, 0x17, 0x18, 0x19, 0x1a].map(|at| dimm.text(at));
    assert_eq!(texts, ["DIMM 0", "Dimm maker", "Dimm serial", "Dimm asset", "Dimm part"]);
}

#[test]
fn processors_share_a_package() {
    let cpu = one(&machine(1 << 30, 4).tables(), 4);
    let texts = [4, 7, 0x10, 0x20, 0x21, 0x22].map(|at| cpu.text(at));
    assert_eq!(texts, ["CPU 0", "Cpu maker", "Cpu version", "Cpu serial", "Cpu asset", "Cpu part"]);
    assert_eq!(cpu.formatted[8..16], [0x12, 0x0f, 0x80, 0, 0xff, 0xfb, 0x8b, 0x0f]);
    assert_eq!((cpu.formatted[0x18], cpu.number(0x14, 2)), (0x41, 2000));
    assert_eq!(cpu.formatted[0x1a..0x20], [0xff; 6]);
    assert_eq!(cpu.formatted[0x23..0x26], [4, 4, 4]);
    let mut many = machine(1 << 30, 300);
    many.revision = Version::V3;
    let cpu = one(&many.tables(), 4);
    assert_eq!(cpu.formatted[0x23..0x26], [0xff; 3]);
    assert_eq!(cpu.formatted[0x2a..0x30], [0x2c, 1, 0x2c, 1, 0x2c, 1]);
}

#[test]
fn memory_sizes_and_ranges() {
    let tables = machine(6 << 30, 1).tables();
    let array = one(&tables, 16);
    assert_eq!((array.number(7, 4), array.number(0x0d, 2), array.number(0x0f, 8)), (6 << 20, 1, 0));
    let device = one(&tables, 17);
    assert_eq!((device.number(4, 2), device.number(0x0c, 2)), (u64::from(array.handle), 6 << 10));
    let mapped: Vec<_> = walk(tables.bytes()).into_iter().filter(|s| s.kind == 19).collect();
    let ranges: Vec<_> = mapped.iter().map(|s| (s.number(4, 4), s.number(8, 4))).collect();
    assert_eq!(ranges, [(0, 0x1f_ffff), (0x40_0000, 0x7f_ffff)]);
}

#[test]
fn huge_and_odd_memory() {
    let tables = machine(40 << 30, 1).tables();
    let sizes: Vec<_> =
        walk(tables.bytes()).iter().filter(|s| s.kind == 17).map(|s| s.number(0x0c, 2)).collect();
    assert_eq!(sizes, [0x4000, 0x4000, 0x2000]);
    // 8 TiB: 16 devices of 512 GiB, beyond what the short fields can say.
    let tables = machine(8 << 40, 1).tables();
    let structures = walk(tables.bytes());
    let devices: Vec<_> = structures.iter().filter(|s| s.kind == 17).collect();
    assert_eq!(devices.len(), 16);
    assert_eq!((devices[0].number(0x0c, 2), devices[0].number(0x1c, 4)), (0x7fff, 512 << 10));
    let array = one(&tables, 16);
    assert_eq!((array.number(7, 4), array.number(0x0f, 8)), (0x8000_0000, 8 << 40));
    let high = structures.iter().filter(|s| s.kind == 19).nth(1).unwrap();
    assert_eq!((high.number(4, 4), high.number(8, 4)), (0xffff_ffff, 0xffff_ffff));
    assert_eq!(
        (high.number(0x0f, 8), high.number(0x17, 8)),
        (4 << 30, (4 << 30) + (8 << 40) - (2 << 30) - 1)
    );
    let tables = machine((8 << 20) + 4096, 1).tables();
    assert_eq!(one(&tables, 17).number(0x0c, 2), 0x8000 | 8196, "in KiB");
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn entry_points() {
    let tables = machine(1 << 30, 1).tables();
    let entry = tables.entry_point(0x1234_5678);
    assert_eq!((entry.len(), sum(&entry), sum(&entry[0x10..])), (31, 0, 0));
    assert_eq!((&entry[..4], &entry[5..8]), (&b"_SM_"[..], &[31, 2, 8][..]));
    assert_eq!(&entry[0x10..0x15], b"_DMI_");
    assert_eq!(usize::from(u16::from_le_bytes([entry[0x16], entry[0x17]])), tables.bytes().len());
    assert_eq!(entry[0x18..0x1f], [0x78, 0x56, 0x34, 0x12, 9, 0, 0x28]);
    let longest = walk(tables.bytes())
        .iter()
        .map(|s| s.formatted.len() + s.texts.iter().map(|t| t.len() + 1).sum::<usize>() + 1)
        .max()
        .unwrap();
    assert_eq!(usize::from(entry[8]), longest);

    let mut machine = machine(1 << 30, 1);
    machine.revision = Version::V3;
    let tables = machine.tables();
    let entry = tables.entry_point(0x000f_0020);
    assert_eq!((entry.len(), sum(&entry)), (24, 0));
    assert_eq!((&entry[..5], &entry[6..12]), (&b"_SM3_"[..], &[24, 3, 0, 0, 1, 0][..]));
    assert_eq!(u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize, tables.bytes().len());
    assert_eq!(entry[16..24], [0x20, 0, 0x0f, 0, 0, 0, 0, 0]);
}

#[test]
fn installed_where_kernels_search() {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let tables = machine(1 << 30, 1).tables();
    tables.install(&ram).unwrap();
    let mut area = vec![0; 0x1_0000];
    ram.read_slice(&mut area, GuestAddress(0xf_0000)).unwrap();
    let at = area.chunks(16).position(|line| line.starts_with(b"_SM_")).unwrap() * 16;
    let entry = &area[at..at + 31];
    assert_eq!(sum(entry), 0);
    let address = u32::from_le_bytes(entry[0x18..0x1c].try_into().unwrap()) as usize - 0xf_0000;
    assert_eq!(&area[address..address + tables.bytes().len()], tables.bytes());
}
