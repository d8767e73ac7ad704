//! ELF kernels: program headers (System V ABI, chapter 5) and the PVH entry note.

use linux_loader::loader::bootparam::setup_header;

use super::error::{LoadError, Size};
use super::file::BootFile;
use super::{Load, Plan};
use crate::cpu::EntryKind;
use crate::layout::{AddrRange, FOUR_GIB, HIGH_RAM};

/// `e_ident` starts with this.
pub(super) const MAGIC: &[u8] = b"\x7fELF";
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
/// `e_type`: a fully linked program.
const ET_EXEC: u64 = 2;
const EM_386: u64 = 3;
const EM_X86_64: u64 = 62;
const PT_LOAD: u64 = 1;
const PT_NOTE: u64 = 4;
/// Owner and type of the note that holds the PVH entry (Xen's elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY).
const NOTE_OWNER: &[u8] = b"Xen\0";
const NOTE_PHYS32_ENTRY: u64 = 18;
/// More program headers or note bytes than any kernel has.
const MAX_SEGMENTS: u64 = 64;
const MAX_NOTES: u64 = 1 << 16;
/// Linux on x86 keeps this many bytes of command line, with the NUL; a PVH kernel cannot say how many it
/// takes.
const CMDLINE_SIZE: usize = 2048;
/// Linux on x86-64 is linked to run in the upper half of the address space.
const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;

/// One program header.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u64,
    offset: u64,
    virtual_address: u64,
    address: u64,
    file_size: u64,
    size: u64,
    align: u64,
}

impl Segment {
    /// Whether the physical address lies in the part that comes from the file.
    fn has_code_at(&self, address: u64) -> bool {
        self.kind == PT_LOAD
            && address.checked_sub(self.address).is_some_and(|offset| offset < self.file_size)
    }
}

/// Linux is entered at a physical address of a segment that is linked to the upper half.
fn is_vmlinux(header: &Header, segments: &[Segment]) -> bool {
    let entered = segments.iter().find(|segment| segment.has_code_at(header.entry));
    header.wide && header.kind == ET_EXEC && entered.is_some_and(|s| s.virtual_address >= KERNEL_HALF)
}

/// A little-endian field of `size` bytes at `at`.
fn field(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

/// The ELF header's facts.
struct Header {
    wide: bool,
    kind: u64,
    machine: u64,
    entry: u64,
    table: u64,
    entry_size: u64,
    entries: u64,
}

impl Header {
    fn parse(head: &[u8], wide: bool) -> Option<Self> {
        let word = if wide { 8 } else { 4 };
        let (table, sizes) = if wide { (32, 54) } else { (28, 42) };
        Some(Self {
            wide,
            kind: field(head, 16, 2)?,
            machine: field(head, 18, 2)?,
            entry: field(head, 24, word)?,
            table: field(head, table, word)?,
            entry_size: field(head, sizes, 2)?,
            entries: field(head, sizes + 2, 2)?,
        })
    }

    fn segment(&self, bytes: &[u8]) -> Option<Segment> {
        let at = |wide: usize, narrow: usize| {
            if self.wide { field(bytes, wide, 8) } else { field(bytes, narrow, 4) }
        };
        Some(Segment {
            kind: field(bytes, 0, 4)?,
            offset: at(8, 4)?,
            virtual_address: at(16, 8)?,
            address: at(24, 12)?,
            file_size: at(32, 16)?,
            size: at(40, 20)?,
            align: at(48, 28)?,
        })
    }
}

/// A file under inspection, with the three ways to refuse it.
struct Reader<'a> {
    file: &'a BootFile,
}

impl Reader<'_> {
    fn damaged(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Damaged { path: self.file.path().to_path_buf(), reason: reason.into() }
    }

    fn unsupported(&self, reason: impl Into<String>, remedy: &'static str) -> LoadError {
        LoadError::Unsupported { path: self.file.path().to_path_buf(), reason: reason.into(), remedy }
    }

    fn too_large(&self, end: u64, limit: u64) -> LoadError {
        LoadError::KernelTooLarge {
            path: self.file.path().to_path_buf(),
            needed: Size(end),
            available: Size(limit),
        }
    }

    fn header(&self, head: &[u8]) -> Result<Header, LoadError> {
        let wide = match head.get(4) {
            Some(&CLASS_32) => false,
            Some(&CLASS_64) => true,
            _ => return Err(self.damaged("it is neither a 32-bit nor a 64-bit ELF file")),
        };
        let header = Header::parse(head, wide).ok_or_else(|| self.damaged("its header is cut off"))?;
        let known = matches!(header.machine, EM_386 | EM_X86_64) && head.get(5) == Some(&LITTLE_ENDIAN);
        if !known {
            return Err(self.unsupported("is an ELF file for another processor", "use a kernel for x86-64"));
        }
        Ok(header)
    }

    fn segments(&self, header: &Header) -> Result<Vec<Segment>, LoadError> {
        let entry_size = if header.wide { 56 } else { 32 };
        if header.entries == 0 {
            return Err(self
                .unsupported("is an ELF file without segments", "use a linked kernel, not an object file"));
        }
        if header.entries > MAX_SEGMENTS || header.entry_size != entry_size {
            return Err(self.damaged("its program header table is malformed"));
        }
        let table = self.file.bytes(header.table, (header.entries * entry_size) as usize)?;
        let segments: Option<Vec<_>> = (0..header.entries)
            .map(|n| {
                let at = (n * entry_size) as usize;
                header.segment(table.get(at..at + entry_size as usize)?)
            })
            .collect();
        segments.ok_or_else(|| self.damaged("its program header table is cut off"))
    }

    /// The loadable segments by address, each checked against the file and against RAM ending at `limit`.
    fn loadable(&self, segments: &[Segment], limit: u64) -> Result<Vec<Segment>, LoadError> {
        let mut loads: Vec<_> =
            segments.iter().copied().filter(|s| s.kind == PT_LOAD && s.size != 0).collect();
        loads.sort_by_key(|segment| segment.address);
        let mut free_from = 0;
        for segment in &loads {
            if segment.file_size > segment.size {
                return Err(self.damaged("a segment is larger in the file than in memory"));
            }
            if segment.offset.checked_add(segment.file_size).is_none_or(|end| end > self.file.size()) {
                return Err(self.damaged("a segment reaches beyond the end of the file"));
            }
            if segment.address < HIGH_RAM {
                let reason = format!("has a segment at address {:#x}, below 1 MiB", segment.address);
                return Err(self.unsupported(reason, "link it to run at 1 MiB or above"));
            }
            let end = segment.address.saturating_add(segment.size);
            if end > limit {
                return Err(self.too_large(end, limit));
            }
            if segment.address < free_from {
                return Err(self.damaged("its segments overlap"));
            }
            free_from = end;
        }
        if loads.is_empty() {
            return Err(self.unsupported(
                "is an ELF file with nothing to load",
                "use a linked kernel, not an object file",
            ));
        }
        Ok(loads)
    }

    /// The PVH entry, if any note segment has one.
    fn pvh_entry(&self, segments: &[Segment]) -> Result<Option<u32>, LoadError> {
        for segment in segments.iter().filter(|segment| segment.kind == PT_NOTE) {
            let size = segment.file_size.min(MAX_NOTES) as usize;
            let notes = self.file.bytes(segment.offset, size)?;
            // Notes are padded to 4 bytes, or to 8 where the segment says so.
            let align = if segment.align == 8 { 8 } else { 4 };
            if let Some(entry) = find_pvh_note(&notes, align) {
                return u32::try_from(entry)
                    .map(Some)
                    .map_err(|_| self.damaged("its PVH entry lies above 4 GiB"));
            }
        }
        Ok(None)
    }
}

/// Walks a note segment; a malformed note ends the walk.
fn find_pvh_note(notes: &[u8], align: usize) -> Option<u64> {
    let padded = |size: u64| usize::try_from(size).ok()?.checked_next_multiple_of(align);
    let mut at = 0usize;
    loop {
        let name_size = field(notes, at, 4)?;
        let value_size = field(notes, at.checked_add(4)?, 4)?;
        let kind = field(notes, at.checked_add(8)?, 4)?;
        let name_at = at.checked_add(12)?;
        let value_at = name_at.checked_add(padded(name_size)?)?;
        let name = notes.get(name_at..name_at.checked_add(usize::try_from(name_size).ok()?)?)?;
        if kind == NOTE_PHYS32_ENTRY && name == NOTE_OWNER && value_size >= 4 {
            return field(notes, value_at, if value_size >= 8 { 8 } else { 4 });
        }
        at = value_at.checked_add(padded(value_size)?)?;
    }
}

pub(super) fn plan(file: &BootFile, head: &[u8], limit: u64) -> Result<Plan, LoadError> {
    let reader = Reader { file };
    let header = reader.header(head)?;
    let segments = reader.segments(&header)?;
    let (kind, entry) = match reader.pvh_entry(&segments)? {
        Some(entry) => (EntryKind::Pvh32, u64::from(entry)),
        // Without a note only a Linux vmlinux is known to follow the boot protocol; anything else would be
        // some program for user space.
        None if is_vmlinux(&header, &segments) => (EntryKind::Long64, header.entry),
        None => {
            return Err(reader.unsupported(
                "is an ELF file without a PVH entry note and no 64-bit Linux vmlinux",
                "build the kernel with CONFIG_PVH=y or use its bzImage",
            ));
        }
    };
    let loads = reader.loadable(&segments, limit)?;
    if !loads.iter().any(|segment| segment.has_code_at(entry)) {
        return Err(reader.damaged(format!("its entry {entry:#x} lies in no segment")));
    }
    let base = loads.first().map_or(HIGH_RAM, |s| s.address);
    let end = loads.last().map_or(HIGH_RAM, |s| s.address.saturating_add(s.size));
    Ok(Plan {
        kind,
        needs_64bit: header.wide,
        entry,
        load: loads
            .iter()
            .filter(|s| s.file_size != 0)
            .map(|s| Load { offset: s.offset, size: s.file_size, address: s.address })
            .collect(),
        zero: loads
            .iter()
            .filter(|s| s.size > s.file_size)
            .map(|s| AddrRange { base: s.address.saturating_add(s.file_size), size: s.size - s.file_size })
            .collect(),
        occupied: AddrRange::new(base, end),
        initrd_end: FOUR_GIB,
        cmdline_limit: CMDLINE_SIZE - 1,
        header: vmlinux_header(),
    })
}

/// A vmlinux carries no setup header; these are the fields it reads from one (boot protocol, "64-bit boot
/// protocol").
fn vmlinux_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x020c,
        loadflags: 1,
        kernel_alignment: 0x100_0000,
        cmdline_size: CMDLINE_SIZE as u32 - 1,
        ..Default::default()
    }
}
