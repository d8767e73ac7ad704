//! bzImage: the setup header (boot protocol, "The Real-Mode Kernel Header") and where the kernel behind it
//! goes.

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::error::{LoadError, Size};
use super::file::BootFile;
use super::{Load, Plan};
use crate::cpu::EntryKind;
use crate::layout::{AddrRange, CMDLINE_SIZE, HIGH_RAM};

/// Offset of the setup header in the file and in the zero page.
const HEADER: usize = 0x1f1;
/// The header's end is 0x202 plus the byte at 0x201 (the displacement of a jump instruction).
const JUMP: usize = 0x201;
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// First protocol with `xloadflags`, which announces the 64-bit entry (Linux 3.8).
const VERSION_XLOADFLAGS: u16 = 0x020c;
/// The header must reach `handover_offset`, the last field of protocol 2.12.
const MIN_END: usize = 0x264;
/// `loadflags`: the protected-mode code goes to 1 MiB.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: the 64-bit entry exists.
const KERNEL_64: u16 = 1 << 0;
/// The 32-bit entry is the load address; the 64-bit entry lies this far behind it.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;

/// Whether the file starts like a Linux kernel image of any age since 1995.
pub(super) fn has_magic(head: &[u8]) -> bool {
    head.get(MAGIC_AT..).is_some_and(|bytes| bytes.starts_with(MAGIC))
}

pub(super) fn plan(file: &BootFile, head: &[u8], limit: u64) -> Result<Plan, LoadError> {
    let header = read_header(file, head)?;
    let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let offset = (sectors + 1) * SECTOR;
    let size = file.size().saturating_sub(offset);
    // `syssize` counts units of 16 bytes, rounded up.
    let announced = u64::from(header.syssize) * 16;
    if size == 0 || size + 16 < announced {
        let reason = format!("the file ends after {} of {} bytes", file.size(), offset + announced.max(1));
        return Err(LoadError::Damaged { path: file.path().to_path_buf(), reason });
    }

    let init_size = u64::from(header.init_size);
    let pref_address = header.pref_address;
    let address =
        if header.relocatable_kernel != 0 && pref_address > HIGH_RAM { pref_address } else { HIGH_RAM };
    // A kernel that cannot be relocated moves itself to its preferred address.
    let end = address
        .checked_add(size)
        .zip(pref_address.max(address).checked_add(init_size))
        .map(|(loaded, unpacked)| loaded.max(unpacked));
    match end {
        Some(end) if end <= limit => {}
        _ => {
            return Err(LoadError::KernelTooLarge {
                path: file.path().to_path_buf(),
                needed: Size(end.unwrap_or(u64::MAX)),
                available: Size(limit),
            });
        }
    }
    let end = end.unwrap_or(limit);
    let (kind, entry) = match header.xloadflags & KERNEL_64 {
        0 => (EntryKind::Linux32, address),
        _ => (EntryKind::Long64, address + ENTRY_64),
    };
    Ok(Plan {
        kind,
        needs_64bit: kind == EntryKind::Long64,
        entry,
        load: vec![Load { offset, size, address }],
        zero: Vec::new(),
        occupied: AddrRange::new(address, end),
        initrd_end: u64::from(header.initrd_addr_max) + 1,
        cmdline_limit: header.cmdline_size.min(CMDLINE_SIZE as u32 - 1) as usize,
        header: setup_header { code32_start: address as u32, ..header },
    })
}

/// The setup header, with zeroes where this kernel's header has already ended.
fn read_header(file: &BootFile, head: &[u8]) -> Result<setup_header, LoadError> {
    let path = || file.path().to_path_buf();
    let damaged = |reason: &str| LoadError::Damaged { path: path(), reason: reason.into() };
    let end = MAGIC_AT + usize::from(head.get(JUMP).copied().unwrap_or(0));
    let mut bytes = [0u8; size_of::<setup_header>()];
    let present =
        head.get(HEADER..end.min(HEADER + bytes.len())).ok_or_else(|| damaged("its header is cut off"))?;
    for (to, from) in bytes.iter_mut().zip(present) {
        *to = *from;
    }
    let header = *setup_header::from_slice(&bytes).ok_or_else(|| damaged("its header is cut off"))?;

    let version = header.version;
    let unsupported = |reason, remedy| Err(LoadError::Unsupported { path: path(), reason, remedy });
    if version < VERSION_XLOADFLAGS {
        return unsupported(
            format!("speaks boot protocol {}.{:02}, older than 2.12", version >> 8, version & 0xff),
            "use Linux 3.8 or later",
        );
    }
    if end < MIN_END {
        return Err(damaged("its header is shorter than its version demands"));
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return unsupported("is a zImage, which loads below 1 MiB".into(), "use a bzImage");
    }
    Ok(header)
}
