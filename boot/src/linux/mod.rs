//! Direct boot: kernel, initrd and command line into guest RAM, ready for the first instruction.
//!
//! Three kinds of kernel are known, told apart by content:
//! - a **bzImage** (boot protocol 2.12 and later), entered in 64-bit mode if it can be, else in 32-bit mode;
//! - an **ELF file with a PVH note**, 32-bit or 64-bit: Linux vmlinux, FreeBSD, unikernels, test programs;
//! - a **Linux vmlinux** without that note, entered by the 64-bit boot protocol.
//!
//! Speed: the files go by read(2) from the page cache straight into guest RAM, in pieces shared by several
//! threads, and nothing of their size is ever on the heap.

mod bzimage;
mod elf;
mod error;
mod file;
mod image;
mod params;

use std::path::{Path, PathBuf};

use devices::mem::GuestRam;
use linux_loader::loader::bootparam::setup_header;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::acpi::{Placement, TableSet};
use crate::cpu::{CpuState, Entry, EntryKind};
use crate::e820::E820Map;
use crate::layout::{self, AddrRange, RamLayout};

pub use error::{LoadError, Role, Size};
use file::{BootFile, Piece};

/// What to boot: the `[boot]` part of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: String,
}

impl Source {
    /// Checks that the parts belong together. `Ok(None)` when none is given: then firmware boots.
    ///
    /// # Errors
    /// An initrd or a command line without a kernel, or a NUL character in the command line.
    pub fn new(
        kernel: Option<PathBuf>,
        initrd: Option<PathBuf>,
        cmdline: Option<String>,
    ) -> Result<Option<Self>, LoadError> {
        let Some(kernel) = kernel else {
            return match (initrd, cmdline) {
                (Some(initrd), _) => Err(LoadError::InitrdWithoutKernel(initrd)),
                (None, Some(_)) => Err(LoadError::CmdlineWithoutKernel),
                (None, None) => Ok(None),
            };
        };
        let cmdline = cmdline.unwrap_or_default();
        match cmdline.find('\0') {
            Some(at) => Err(LoadError::CmdlineNul(at)),
            None => Ok(Some(Self { kernel, initrd, cmdline })),
        }
    }

    /// The kernel image.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// The initial RAM disk.
    pub fn initrd(&self) -> Option<&Path> {
        self.initrd.as_deref()
    }

    /// The kernel command line.
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }
}

/// What a kernel file asks for, before any of it has been read into RAM.
#[derive(Debug)]
struct Plan {
    kind: EntryKind,
    needs_64bit: bool,
    /// Address of the first instruction.
    entry: u64,
    /// Parts of the file and where they go.
    load: Vec<Load>,
    /// What must be zero around them.
    zero: Vec<AddrRange>,
    /// Everything the kernel uses before it reads the memory map.
    occupied: AddrRange,
    /// The initrd must end at or below this address.
    initrd_end: u64,
    /// Longest command line without its NUL.
    cmdline_limit: usize,
    /// Setup header for the zero page.
    header: setup_header,
}

/// A part of the kernel file: file offset, length, guest physical address.
#[derive(Clone, Copy, Debug)]
struct Load {
    offset: u64,
    size: u64,
    address: u64,
}

/// Puts a kernel with everything it needs into guest RAM.
///
/// `ram` must be mapped as `layout` says and hold no running guest. Bytes that the kernel expects to be zero
/// are cleared, so this may be called again for a reset. The ACPI tables go to the end of low RAM, the RSDP
/// to [`layout::RSDP`].
///
/// # Errors
/// One line for the user, see [`LoadError`]; RAM then holds unspecified contents.
pub fn load(
    ram: &GuestRam,
    layout: &RamLayout,
    source: &Source,
    acpi: &TableSet,
) -> Result<Entry, LoadError> {
    let kernel_file = BootFile::open(Role::Kernel, &source.kernel)?;
    let initrd_file = source.initrd.as_deref().map(|path| BootFile::open(Role::Initrd, path)).transpose()?;

    let tables = acpi.placement_below(layout.low_top())?;
    let plan = image::plan(&kernel_file, tables.range.base)?;
    if source.cmdline.len() > plan.cmdline_limit {
        return Err(LoadError::CmdlineTooLong {
            kernel: source.kernel.clone(),
            length: source.cmdline.len(),
            limit: plan.cmdline_limit,
        });
    }
    let initrd =
        initrd_file.as_ref().map(|file| place_initrd(file, &plan, tables.range.base, layout)).transpose()?;

    for range in &plan.zero {
        file::zero(ram, range.base, range.size)?;
    }
    let mut pieces: Vec<_> = plan
        .load
        .iter()
        .map(|load| Piece { file: &kernel_file, offset: load.offset, size: load.size, address: load.address })
        .collect();
    if let (Some(file), Some(range)) = (&initrd_file, initrd) {
        pieces.push(Piece { file, offset: 0, size: range.size, address: range.base });
    }
    file::read_all(ram, &pieces)?;

    let cpu = match plan.kind {
        EntryKind::Long64 => CpuState::long64(plan.entry),
        EntryKind::Linux32 => CpuState::linux32(plan.entry as u32),
        EntryKind::Pvh32 => CpuState::pvh32(plan.entry as u32),
    };
    let entry = Entry { kind: plan.kind, needs_64bit: plan.needs_64bit, cpu, kernel: plan.occupied, initrd };
    write_parameters(ram, layout, source, acpi, &tables, &plan.header, &entry)?;
    tracing::debug!(kind = ?entry.kind, kernel = ?entry.kernel, initrd = ?entry.initrd, "kernel loaded");
    Ok(entry)
}

/// Everything in RAM that is not from a file.
fn write_parameters(
    ram: &GuestRam,
    layout: &RamLayout,
    source: &Source,
    acpi: &TableSet,
    tables: &Placement,
    header: &setup_header,
    entry: &Entry,
) -> Result<(), LoadError> {
    acpi.install(ram, tables)?;
    let at = |address| move |source: GuestMemoryError| LoadError::Memory { address, source };
    let mut cmdline = source.cmdline.clone().into_bytes();
    cmdline.push(0);
    ram.write_slice(&cmdline, GuestAddress(layout::CMDLINE)).map_err(at(layout::CMDLINE))?;
    entry.cpu.write_tables(ram).map_err(at(layout::GDT))?;

    let map = E820Map::direct_boot(layout, tables.range);
    let given = params::Given { map: &map, initrd: entry.initrd, rsdp: tables.rsdp };
    match entry.kind {
        EntryKind::Long64 | EntryKind::Linux32 => {
            given.write_zero_page(ram, header).map_err(at(layout::ZERO_PAGE))
        }
        EntryKind::Pvh32 => given.write_start_info(ram).map_err(at(layout::PVH_INFO)),
    }
}

/// As high as the kernel allows, page-aligned: far from the kernel, which unpacks itself upwards.
fn place_initrd(
    file: &BootFile,
    plan: &Plan,
    limit: u64,
    layout: &RamLayout,
) -> Result<AddrRange, LoadError> {
    const PAGE: u64 = 4096;
    let top = limit.min(plan.initrd_end);
    let free_from = plan.occupied.end().next_multiple_of(PAGE);
    let base = top.checked_sub(file.size()).map(|base| base & !(PAGE - 1));
    match base {
        Some(base) if base >= free_from => Ok(AddrRange { base, size: file.size() }),
        _ => Err(LoadError::InitrdTooLarge {
            path: file.path().to_path_buf(),
            size: Size(file.size()),
            available: Size(top.saturating_sub(free_from)),
            memory: Size(layout.low_top()),
        }),
    }
}

#[cfg(test)]
mod tests;
