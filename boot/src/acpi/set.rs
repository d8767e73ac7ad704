//! Table blobs, the fixups that link them, and the two ways to apply these.

use devices::mem::GuestRam;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout::{self, AddrRange};

/// Length of the header common to all tables but FACS and RSDP (ACPI 5.2.6).
pub(super) const HEADER: usize = 36;
const LENGTH_AT: usize = 4;
const CHECKSUM_AT: usize = 9;
/// Creator ID: who wrote the table, here the AML library.
const CREATOR: [u8; 8] = *b"RVAT\x01\0\0\0";
/// Tables start on this boundary within their blob, the FACS on 64 (ACPI 5.2.10).
const TABLE_ALIGN: usize = 16;
/// RSDP revision 2 (ACPI 5.2.5.3): total length, and what the first checksum covers.
const RSDP_SIZE: usize = 36;
const RSDP_V1_SIZE: usize = 20;
/// The table area is a whole number of these.
const PAGE: u64 = 4096;

/// One of the two memory areas the tables live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blob {
    /// All tables.
    Tables,
    /// The root pointer, found by searching the BIOS area.
    Rsdp,
}

impl Blob {
    /// Name of its fw_cfg file.
    pub const fn file_name(self) -> &'static str {
        match self {
            Blob::Tables => "etc/acpi/tables",
            Blob::Rsdp => "etc/acpi/rsdp",
        }
    }

    /// Alignment in bytes.
    pub const fn align(self) -> u32 {
        match self {
            Blob::Tables => 64,
            Blob::Rsdp => 16,
        }
    }

    /// fw_cfg's zone: 1 is anywhere below 4 GiB, 2 is the BIOS area.
    const fn zone(self) -> u8 {
        match self {
            Blob::Tables => 1,
            Blob::Rsdp => 2,
        }
    }
}

/// A change to make once the blobs' addresses are known. Fixups apply in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fixup {
    /// Adds the address of `target` to the little-endian number of `size` bytes (4 or 8) at `offset` of
    /// `blob`, which holds the offset in `target`.
    Pointer {
        /// Blob to change.
        blob: Blob,
        /// Offset of the number.
        offset: u32,
        /// Bytes of the number.
        size: u8,
        /// Blob whose address is added.
        target: Blob,
    },
    /// Makes the bytes from `start`, `length` long, sum up to zero modulo 256 through the byte at `offset`,
    /// which holds zero.
    Checksum {
        /// Blob to change.
        blob: Blob,
        /// Offset of the checksum byte.
        offset: u32,
        /// First byte covered.
        start: u32,
        /// Number of bytes covered.
        length: u32,
    },
}

impl Fixup {
    /// The blob it changes.
    pub fn blob(&self) -> Blob {
        match *self {
            Fixup::Pointer { blob, .. } | Fixup::Checksum { blob, .. } => blob,
        }
    }
}

/// Where the blobs go in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Area of the tables, whole pages.
    pub range: AddrRange,
    /// Address of the RSDP.
    pub rsdp: u64,
}

/// Tables that could not be put into guest RAM.
#[derive(Debug, Error)]
pub enum InstallError {
    /// The area is too small.
    #[error(
        "ACPI tables of {size} bytes do not fit below {top:#x}; give the machine more memory or fewer CPUs"
    )]
    NoRoom {
        /// Bytes needed.
        size: u64,
        /// End of low RAM.
        top: u64,
    },
    /// Guest RAM is not mapped there.
    #[error(
        "ACPI tables at {address:#x}: guest memory is not mapped: {source}; this is a defect of the program"
    )]
    Memory {
        /// Guest physical address.
        address: u64,
        /// What the memory layer said.
        source: GuestMemoryError,
    },
    /// A fixup reaches outside its blob, or a 32-bit pointer cannot hold the address.
    #[error("ACPI table fixup {0:?} cannot be applied; this is a defect of the program")]
    Fixup(Fixup),
}

/// The finished tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableSet {
    tables: Vec<u8>,
    rsdp: Vec<u8>,
    fixups: Vec<Fixup>,
}

impl TableSet {
    /// Contents of a blob before any fixup: pointers are offsets, checksums zero.
    pub fn bytes(&self, blob: Blob) -> &[u8] {
        match blob {
            Blob::Tables => &self.tables,
            Blob::Rsdp => &self.rsdp,
        }
    }

    /// The fixups in the order to apply them.
    pub fn fixups(&self) -> &[Fixup] {
        &self.fixups
    }

    /// Direct boot's placement: tables in the last pages below `top`, RSDP at [`layout::RSDP`].
    ///
    /// # Errors
    /// When the tables would reach below 2 MiB.
    pub fn placement_below(&self, top: u64) -> Result<Placement, InstallError> {
        let size = (self.tables.len() as u64).next_multiple_of(PAGE);
        match top.checked_sub(size) {
            Some(base) if base >= 2 * layout::HIGH_RAM => {
                Ok(Placement { range: AddrRange { base, size }, rsdp: layout::RSDP })
            }
            _ => Err(InstallError::NoRoom { size, top }),
        }
    }

    /// Links the tables for `placement` and writes them.
    ///
    /// # Errors
    /// When the placement is not RAM or lies too high for 32-bit pointers.
    pub fn install(&self, ram: &GuestRam, placement: &Placement) -> Result<(), InstallError> {
        let (tables, rsdp) = self.linked(placement)?;
        for (bytes, address) in [(tables, placement.range.base), (rsdp, placement.rsdp)] {
            ram.write_slice(&bytes, GuestAddress(address))
                .map_err(|source| InstallError::Memory { address, source })?;
        }
        Ok(())
    }

    /// Both blobs with all fixups applied.
    fn linked(&self, placement: &Placement) -> Result<(Vec<u8>, Vec<u8>), InstallError> {
        let address = |blob| match blob {
            Blob::Tables => placement.range.base,
            Blob::Rsdp => placement.rsdp,
        };
        let mut linked = [self.tables.clone(), self.rsdp.clone()];
        for fixup in &self.fixups {
            let [tables, rsdp] = &mut linked;
            let bytes = match fixup.blob() {
                Blob::Tables => tables,
                Blob::Rsdp => rsdp,
            };
            let done = match *fixup {
                Fixup::Pointer { offset, size, target, .. } => {
                    add_address(bytes, offset, size, address(target))
                }
                Fixup::Checksum { offset, start, length, .. } => set_checksum(bytes, offset, start, length),
            };
            done.ok_or(InstallError::Fixup(*fixup))?;
        }
        let [tables, rsdp] = linked;
        Ok((tables, rsdp))
    }

    /// The same as a fw_cfg table loader script: 128-byte little-endian commands ALLOCATE (1), ADD_POINTER
    /// (2) and ADD_CHECKSUM (3).
    pub fn loader_script(&self) -> Vec<u8> {
        let allocations = [Blob::Rsdp, Blob::Tables].map(|blob| {
            LoaderCommand::new(1).name(blob).bytes(&blob.align().to_le_bytes()).bytes(&[blob.zone()])
        });
        let links = self.fixups.iter().map(|fixup| match *fixup {
            Fixup::Pointer { blob, offset, size, target } => {
                LoaderCommand::new(2).name(blob).name(target).bytes(&offset.to_le_bytes()).bytes(&[size])
            }
            Fixup::Checksum { blob, offset, start, length } => LoaderCommand::new(3)
                .name(blob)
                .bytes(&offset.to_le_bytes())
                .bytes(&start.to_le_bytes())
                .bytes(&length.to_le_bytes()),
        });
        allocations.into_iter().chain(links).flat_map(LoaderCommand::finish).collect()
    }
}

/// One entry of the loader script.
struct LoaderCommand(Vec<u8>);

impl LoaderCommand {
    const SIZE: usize = 128;
    const NAME: usize = 56;

    fn new(command: u32) -> Self {
        Self(command.to_le_bytes().to_vec())
    }

    fn name(mut self, blob: Blob) -> Self {
        let end = self.0.len() + Self::NAME;
        self.0.extend_from_slice(blob.file_name().as_bytes());
        self.0.resize(end, 0);
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(Self::SIZE, 0);
        self.0
    }
}

fn add_address(bytes: &mut [u8], offset: u32, size: u8, address: u64) -> Option<()> {
    let offset = offset as usize;
    let place = bytes.get_mut(offset..offset.checked_add(usize::from(size))?)?;
    let old = place.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
    let new = old.checked_add(address)?;
    if size < 8 && new >> (8 * u32::from(size)) != 0 {
        return None;
    }
    for (to, from) in place.iter_mut().zip(new.to_le_bytes()) {
        *to = from;
    }
    Some(())
}

fn set_checksum(bytes: &mut [u8], offset: u32, start: u32, length: u32) -> Option<()> {
    let start = start as usize;
    let covered = bytes.get(start..start.checked_add(length as usize)?)?;
    let sum = covered.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    let place = bytes.get_mut(offset as usize)?;
    *place = place.wrapping_sub(sum);
    Some(())
}

/// A table under construction: the common header with a zero checksum, then what is appended.
pub(super) struct Table(Vec<u8>);

impl Table {
    pub(super) fn new(signature: [u8; 4], revision: u8) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&signature);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&[revision, 0]);
        bytes.extend_from_slice(&OEM_ID);
        bytes.extend_from_slice(&OEM_TABLE_ID);
        bytes.extend_from_slice(&OEM_REVISION.to_le_bytes());
        bytes.extend_from_slice(&CREATOR);
        Self(bytes)
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        if let Some(place) = self.0.get_mut(LENGTH_AT..LENGTH_AT + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        self.0
    }
}

/// Collects tables into the blob and the fixups beside them.
#[derive(Default)]
pub(super) struct Builder {
    tables: Vec<u8>,
    fixups: Vec<Fixup>,
}

impl Builder {
    /// Appends bytes that carry no checksum; returns their offset.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> u32 {
        self.tables.resize(self.tables.len().next_multiple_of(TABLE_ALIGN), 0);
        let at = self.tables.len() as u32;
        self.tables.extend_from_slice(bytes);
        at
    }

    /// Appends a table; returns its offset.
    pub(super) fn table(&mut self, table: Table) -> u32 {
        self.table_with(table, |_, _| ())
    }

    /// Appends a table with pointers, which `pointers` adds given the table's offset: the checksum must come
    /// last.
    pub(super) fn table_with(&mut self, table: Table, pointers: impl FnOnce(&mut Vec<Fixup>, u32)) -> u32 {
        let bytes = table.finish();
        let at = self.raw(&bytes);
        pointers(&mut self.fixups, at);
        self.fixups.push(Fixup::Checksum {
            blob: Blob::Tables,
            offset: at + CHECKSUM_AT as u32,
            start: at,
            length: bytes.len() as u32,
        });
        at
    }

    /// Adds RSDT, XSDT and RSDP over the tables at the offsets `listed`.
    pub(super) fn finish(mut self, listed: &[u32]) -> TableSet {
        let rsdt = self.root(*b"RSDT", listed, 4);
        let xsdt = self.root(*b"XSDT", listed, 8);
        let mut rsdp = Vec::with_capacity(RSDP_SIZE);
        rsdp.extend_from_slice(b"RSD PTR \0");
        rsdp.extend_from_slice(&OEM_ID);
        rsdp.push(2);
        rsdp.extend_from_slice(&rsdt.to_le_bytes());
        rsdp.extend_from_slice(&(RSDP_SIZE as u32).to_le_bytes());
        rsdp.extend_from_slice(&u64::from(xsdt).to_le_bytes());
        rsdp.resize(RSDP_SIZE, 0);
        let pointer = |offset, size| Fixup::Pointer { blob: Blob::Rsdp, offset, size, target: Blob::Tables };
        let checksum = |offset, length: usize| Fixup::Checksum {
            blob: Blob::Rsdp,
            offset,
            start: 0,
            length: length as u32,
        };
        self.fixups.extend([
            pointer(16, 4),
            pointer(24, 8),
            checksum(8, RSDP_V1_SIZE),
            checksum(32, RSDP_SIZE),
        ]);
        TableSet { tables: self.tables, rsdp, fixups: self.fixups }
    }

    fn root(&mut self, signature: [u8; 4], listed: &[u32], size: u8) -> u32 {
        let mut table = Table::new(signature, 1);
        for &offset in listed {
            let entry = u64::from(offset).to_le_bytes();
            table = table.bytes(entry.get(..usize::from(size)).unwrap_or_default());
        }
        self.table_with(table, |fixups, at| {
            let first = at + HEADER as u32;
            fixups.extend((0..listed.len() as u32).map(|n| Fixup::Pointer {
                blob: Blob::Tables,
                offset: first + n * u32::from(size),
                size,
                target: Blob::Tables,
            }));
        })
    }
}
