//! SMBIOS structures: who the machine is, its processors and its memory, for tools such as dmidecode.
//!
//! Firmware takes the structures and an entry point from fw_cfg and puts them where it likes; a directly booted
//! machine finds them in the BIOS area, where Linux and others search for the entry point.
//!
//! Document: DMTF DSP0134, "SMBIOS" here; field offsets are those of its chapter 7.

#[cfg(test)]
mod tests;

use devices::mem::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout::{self, AddrRange, RamLayout};

/// fw_cfg file of the entry point.
pub const ANCHOR_FILE: &str = "etc/smbios/smbios-anchor";
/// fw_cfg file of the structures.
pub const TABLES_FILE: &str = "etc/smbios/smbios-tables";

/// Bytes of the largest memory device, unless there would be too many of them.
const DIMM: u64 = 16 << 30;
/// Most memory devices.
const MAX_DIMMS: u64 = 16;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Handles: the type in the upper byte, a number in the lower one.
const MEMORY_ARRAY: u16 = 16 << 8;
/// "No error information" and "no such cache".
const NO_ERROR_INFORMATION: u16 = 0xfffe;
const NO_CACHE: u16 = 0xffff;

/// Which revision of the standard: the entry point and the length of some structures differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 2.8 with the 32-bit entry point (5.2.1), which everyone reads.
    V2,
    /// 3.0 with the 64-bit entry point (5.2.2).
    V3,
}

/// What firmware says about itself (type 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// Who made it.
    pub vendor: String,
    /// Its version.
    pub version: String,
    /// Its date: mm/dd/yyyy.
    pub date: String,
}

/// What the machine is (type 1); an empty text is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// Who made it.
    pub manufacturer: String,
    /// The kind of machine.
    pub product: String,
    /// Version of the product.
    pub version: String,
    /// Serial number of this machine.
    pub serial: String,
    /// Identity of this machine, in the order of the text form; `None` reads as "not present".
    pub uuid: Option<[u8; 16]>,
    /// Stock keeping unit.
    pub sku: String,
    /// Family of products.
    pub family: String,
}

/// A part of the machine; an empty text is left out, and so is one that its structure has no field for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Who made it.
    pub manufacturer: String,
    /// Its version.
    pub version: String,
    /// Serial number.
    pub serial: String,
    /// Asset tag.
    pub asset: String,
    /// Part number.
    pub part: String,
    /// Stock keeping unit.
    pub sku: String,
}

/// The description that structures are made from.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Revision of the standard.
    pub revision: Version,
    /// Type 0. `None` leaves it to the firmware, which knows its own name.
    pub firmware: Option<Firmware>,
    /// Type 1.
    pub system: System,
    /// Type 3.
    pub enclosure: Part,
    /// Texts of type 4.
    pub processor: Part,
    /// Texts of type 17, for each memory device.
    pub memory: Part,
    /// Processor cores, one thread each, in one package (type 4).
    pub cpus: u16,
    /// CPUID leaf 1: EAX in the lower half, EDX in the upper one.
    pub processor_id: u64,
    /// RAM (types 16, 17 and 19).
    pub ram: RamLayout,
}

/// The finished structures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    revision: Version,
    bytes: Vec<u8>,
    count: u16,
    longest: u16,
}

impl Machine {
    /// Builds all structures.
    pub fn tables(&self) -> Tables {
        let mut tables = Tables { revision: self.revision, bytes: Vec::new(), count: 0, longest: 0 };
        if let Some(firmware) = &self.firmware {
            tables.add(bios(firmware));
        }
        tables.add(self.system());
        tables.add(self.enclosure());
        tables.add(self.processor());
        let dimms = dimms(self.ram.total());
        tables.add(memory_array(self.ram.total(), dimms.len() as u16));
        for (number, size) in (0..).zip(&dimms) {
            tables.add(self.memory_device(number, *size));
        }
        let ranges = [Some(AddrRange::new(0, self.ram.low_top())), self.ram.high()];
        for (number, range) in (0..).zip(ranges.into_iter().flatten()) {
            tables.add(mapped_memory(number, range, dimms.len()));
        }
        // Boot status 0: no error (7.33.1).
        tables.add(Structure::new(32, 0).bytes(&[0; 6]).byte(0));
        tables.add(Structure::new(127, 0));
        tables
    }

    /// Type 1 (7.2).
    fn system(&self) -> Structure {
        const POWER_SWITCH: u8 = 6;
        let system = &self.system;
        Structure::new(1, 0)
            .text(&system.manufacturer)
            .text(&system.product)
            .text(&system.version)
            .text(&system.serial)
            .bytes(&wire_uuid(system.uuid.unwrap_or_default()))
            .byte(POWER_SWITCH)
            .text(&system.sku)
            .text(&system.family)
    }

    /// Type 3 (7.4).
    fn enclosure(&self) -> Structure {
        const OTHER: u8 = 1;
        const SAFE: u8 = 3;
        const SECURITY_NONE: u8 = 3;
        Structure::new(3, 0)
            .text(&self.enclosure.manufacturer)
            .byte(OTHER)
            .text(&self.enclosure.version)
            .text(&self.enclosure.serial)
            .text(&self.enclosure.asset)
            // Boot-up, power supply and thermal state.
            .bytes(&[SAFE; 3])
            .byte(SECURITY_NONE)
            // OEM-defined, height, power cords, contained elements and the length of their records.
            .bytes(&[0; 8])
            .text(&self.enclosure.sku)
    }

    /// Type 4 (7.5).
    fn processor(&self) -> Structure {
        const CENTRAL: u8 = 3;
        const OTHER: u8 = 1;
        const POPULATED_ENABLED: u8 = 0x41;
        /// Certification programs refuse an unknown speed.
        const MHZ: u16 = 2000;
        /// 64-bit capable, multi-core, execute protection, virtualization is the host's.
        const CHARACTERISTICS: u16 = 1 << 2 | 1 << 3 | 1 << 5;
        let cores = u8::try_from(self.cpus).unwrap_or(0xff);
        let structure = Structure::new(4, 0)
            .text("CPU 0")
            .byte(CENTRAL)
            .byte(OTHER)
            .text(&self.processor.manufacturer)
            .bytes(&self.processor_id.to_le_bytes())
            .text(&self.processor.version)
            .byte(0)
            .word(0)
            .word(MHZ)
            .word(MHZ)
            .byte(POPULATED_ENABLED)
            .byte(OTHER)
            .word(NO_CACHE)
            .word(NO_CACHE)
            .word(NO_CACHE)
            .text(&self.processor.serial)
            .text(&self.processor.asset)
            .text(&self.processor.part)
            .bytes(&[cores; 3])
            .word(CHARACTERISTICS)
            .word(u16::from(OTHER));
        match self.revision {
            Version::V2 => structure,
            Version::V3 => structure.word(self.cpus).word(self.cpus).word(self.cpus),
        }
    }

    /// Type 17 (7.18).
    fn memory_device(&self, number: u8, size: u64) -> Structure {
        const UNKNOWN_WIDTH: u16 = 0xffff;
        const DIMM_FORM: u8 = 9;
        const RAM: u8 = 7;
        const DETAIL_OTHER: u16 = 1 << 1;
        const IN_KIB: u16 = 1 << 15;
        const SEE_EXTENDED: u16 = 0x7fff;
        let (mebibytes, kibibytes) = (size / MIB, size / KIB);
        let (short, extended) = match (u16::try_from(mebibytes), u16::try_from(kibibytes)) {
            (_, Ok(kibibytes)) if !size.is_multiple_of(MIB) && kibibytes < SEE_EXTENDED => {
                (kibibytes | IN_KIB, 0)
            }
            (Ok(mebibytes), _) if mebibytes < SEE_EXTENDED => (mebibytes, 0),
            _ => (SEE_EXTENDED, mebibytes as u32 & 0x7fff_ffff),
        };
        Structure::new(17, number)
            .word(MEMORY_ARRAY)
            .word(NO_ERROR_INFORMATION)
            .word(UNKNOWN_WIDTH)
            .word(UNKNOWN_WIDTH)
            .word(short)
            .byte(DIMM_FORM)
            .byte(0)
            .text(&format!("DIMM {number}"))
            .text("")
            .byte(RAM)
            .word(DETAIL_OTHER)
            .word(0)
            .text(&self.memory.manufacturer)
            .text(&self.memory.serial)
            .text(&self.memory.asset)
            .text(&self.memory.part)
            .byte(0)
            .dword(extended)
            // Speed and voltages: unknown.
            .bytes(&[0; 8])
    }
}

/// Type 0 (7.1).
fn bios(firmware: &Firmware) -> Structure {
    /// Bit 3: the list of characteristics is not supported.
    const NO_CHARACTERISTICS: u64 = 1 << 3;
    /// Second extension byte: targeted content distribution, virtual machine.
    const VIRTUAL_MACHINE: u8 = 1 << 2 | 1 << 4;
    Structure::new(0, 0)
        .text(&firmware.vendor)
        .text(&firmware.version)
        .word((layout::BIOS.base >> 4) as u16)
        .text(&firmware.date)
        .byte(0)
        .bytes(&NO_CHARACTERISTICS.to_le_bytes())
        .bytes(&[0, VIRTUAL_MACHINE])
        // Releases of firmware and embedded controller: none.
        .bytes(&[0, 0, 0xff, 0xff])
}

/// Type 16 (7.17).
fn memory_array(total: u64, devices: u16) -> Structure {
    const LOCATION_OTHER: u8 = 1;
    const SYSTEM_MEMORY: u8 = 3;
    const MULTI_BIT_ECC: u8 = 6;
    const SEE_EXTENDED: u32 = 0x8000_0000;
    let short = u32::try_from(total / KIB).ok().filter(|kibibytes| *kibibytes < SEE_EXTENDED);
    Structure::new(16, 0)
        .byte(LOCATION_OTHER)
        .byte(SYSTEM_MEMORY)
        .byte(MULTI_BIT_ECC)
        .dword(short.unwrap_or(SEE_EXTENDED))
        .word(NO_ERROR_INFORMATION)
        .word(devices)
        .qword(if short.is_some() { 0 } else { total })
}

/// Type 19 (7.20).
fn mapped_memory(number: u8, range: AddrRange, devices: usize) -> Structure {
    const SEE_EXTENDED: u32 = 0xffff_ffff;
    let last = range.end() - 1;
    let short = u32::try_from(range.base / KIB).ok().zip(u32::try_from(last / KIB).ok());
    let (start, end) = short.filter(|(_, end)| *end != SEE_EXTENDED).unwrap_or((SEE_EXTENDED, SEE_EXTENDED));
    let (extended_start, extended_end) = if start == SEE_EXTENDED { (range.base, last) } else { (0, 0) };
    Structure::new(19, number)
        .dword(start)
        .dword(end)
        .word(MEMORY_ARRAY)
        .byte(devices as u8)
        .qword(extended_start)
        .qword(extended_end)
}

/// Sizes of the memory devices: whole [`DIMM`]s and the rest, larger ones when they would be too many.
fn dimms(total: u64) -> Vec<u64> {
    let size = total.div_ceil(MAX_DIMMS).next_power_of_two().max(DIMM);
    let mut left = total;
    let mut sizes = Vec::new();
    while left > 0 {
        let size = left.min(size);
        sizes.push(size);
        left -= size;
    }
    sizes
}

/// The first three fields of a UUID are little-endian in SMBIOS (7.2.1).
fn wire_uuid(mut uuid: [u8; 16]) -> [u8; 16] {
    for field in [0..4, 4..6, 6..8] {
        if let Some(bytes) = uuid.get_mut(field) {
            bytes.reverse();
        }
    }
    uuid
}

impl Tables {
    fn add(&mut self, structure: Structure) {
        let bytes = structure.finish();
        self.count += 1;
        self.longest = self.longest.max(bytes.len() as u16);
        self.bytes.extend(bytes);
    }

    /// The structures, end-of-table included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The entry point for structures at `address` (5.2). Firmware that moves them writes the address and both
    /// checksums anew.
    pub fn entry_point(&self, address: u32) -> Vec<u8> {
        match self.revision {
            Version::V2 => self.entry_point_32(address),
            Version::V3 => self.entry_point_64(address),
        }
    }

    fn entry_point_32(&self, address: u32) -> Vec<u8> {
        let mut entry = b"_SM_\0\x1f\x02\x08".to_vec();
        entry.extend(self.longest.to_le_bytes());
        // Revision of the entry point, formatted area.
        entry.extend([0; 6]);
        let intermediate = entry.len();
        entry.extend(b"_DMI_\0");
        entry.extend((self.bytes.len() as u16).to_le_bytes());
        entry.extend(address.to_le_bytes());
        entry.extend(self.count.to_le_bytes());
        entry.push(0x28);
        seal(&mut entry, intermediate, intermediate + 5);
        seal(&mut entry, 0, 4);
        entry
    }

    fn entry_point_64(&self, address: u32) -> Vec<u8> {
        // Major, minor and document revision, revision of the entry point, reserved.
        let mut entry = b"_SM3_\0\x18\x03\0\0\x01\0".to_vec();
        entry.extend((self.bytes.len() as u32).to_le_bytes());
        entry.extend(u64::from(address).to_le_bytes());
        seal(&mut entry, 0, 5);
        entry
    }

    /// Puts entry point and structures into the BIOS area, where a directly booted kernel searches for them.
    ///
    /// # Errors
    /// When that is not RAM.
    pub fn install(&self, ram: &GuestRam) -> Result<(), GuestMemoryError> {
        let structures = layout::SMBIOS + 0x20;
        ram.write_slice(&self.entry_point(structures as u32), GuestAddress(layout::SMBIOS))?;
        ram.write_slice(&self.bytes, GuestAddress(structures))
    }
}

/// Makes the bytes from `start` on sum up to zero through the one at `checksum`.
fn seal(bytes: &mut [u8], start: usize, checksum: usize) {
    let sum = bytes.get(start..).unwrap_or_default().iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(checksum) {
        *byte = byte.wrapping_sub(sum);
    }
}

/// One structure under construction: the formatted part, then its texts (6.1.2, 6.1.3).
struct Structure {
    formatted: Vec<u8>,
    texts: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, number: u8) -> Self {
        Self { formatted: vec![kind, 0, number, kind], texts: Vec::new(), count: 0 }
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.formatted.extend_from_slice(bytes);
        self
    }

    fn byte(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    fn word(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn dword(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn qword(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A text field: its number among the structure's texts, 0 for none. A NUL would end the text.
    fn text(mut self, text: &str) -> Self {
        let text = text.split('\0').next().unwrap_or_default();
        if text.is_empty() {
            return self.byte(0);
        }
        self.texts.extend_from_slice(text.as_bytes());
        self.texts.push(0);
        self.count += 1;
        let number = self.count;
        self.byte(number)
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.formatted.len() as u8;
        if let Some(place) = self.formatted.get_mut(1) {
            *place = length;
        }
        if self.texts.is_empty() {
            self.texts.push(0);
        }
        self.texts.push(0);
        self.formatted.extend(self.texts);
        self.formatted
    }
}
